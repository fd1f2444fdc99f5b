//! Mounts: what is mounted, making mounts without a path race, taking them away, a new root.
//!
//! ```text
//!  Tree (a detached mount) ── set attributes ──► attach at an open target
//!  InRoot (a directory)    ── open / ensure, never outside of it ──► that target
//! ```
//!
//! Owns: the mount system calls (mount_setattr(2) and friends; Linux 5.12 or later) and mountinfo. Never:
//! decides what is mounted where. Called by `sandbox` (shares), the stub and the agent.

mod count;
mod facts;
mod info;
mod options;
mod root;
mod tree;

pub use count::{CountError, count_files};
pub use facts::{
    DeviceNumber, FactError, PathDevice, bind_source, device_for_path, has_option, has_option_prefix,
    is_block_device, is_device_mapper, is_host_device, is_symlink, is_system_mount,
};
pub use info::{MountInfo, MountInfoError, parse, read};
pub use options::mount_by_options;
pub use root::{InRoot, TargetKind};
pub use tree::{Attributes, MountError, Propagation, Tree, move_to_root, propagate, restrict, unmount};
