//! The engine: everything a sandbox is and does.
//!
//! Owns: lifecycle, containers, processes, storage, journal, undo. Never builds a VMM argument or QMP
//! message, never parses TOML or OCI. Called by `shim`.

pub mod boot;
mod clock;
pub mod command;
pub mod container;
pub mod engine;
pub mod error;
mod guest_log;
pub mod handle;
mod happened;
pub mod host;
pub mod inspect;
pub mod journal;
pub mod layout;
pub mod lifecycle;
pub mod map;
mod meet;
pub mod network;
mod pids;
pub mod platform;
mod recover;
pub mod saved;
pub mod share;
mod side;
pub mod size;
mod span;
mod start_up;
mod take;
pub mod template;
pub mod timeline;
mod verb;
pub mod world;

pub use command::{Command, Notice, Reply, StdioSet};
pub use engine::{Beginning, Engine};
pub use error::SandboxError;
pub use handle::{Handle, Luggage};
pub use journal::{Journal, Resource};
pub use layout::{Layout, SandboxPaths};
pub use lifecycle::Attachment;
pub use map::ContainerMap;
pub use platform::Platform;
pub use saved::SavedSandbox;
pub use timeline::Recorder;
pub use world::World;
