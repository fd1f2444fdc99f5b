//! Host cgroups of either version: where they are, joining, a memory limit, taking them away.
//!
//! ```text
//!  Hierarchy::detect ─► Cgroup::plan (contract K-03) ─► create ─► procs files to join ─► remove
//! ```
//!
//! Owns: directories below the cgroup mounts. Never: ends the processes in one, and never turns a limit the
//! host refuses into an error (it is a value for the log). Called by `sandbox`, the stub's spawner and gc.

mod group;
mod hierarchy;

pub use group::{Cgroup, Created, LimitRefusal, join, remove, remove_if_empty};
pub use hierarchy::{CgroupError, Hierarchy, RESOURCES, expand_systemd};
