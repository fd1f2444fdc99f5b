//! The engine: everything a sandbox is and does.
//!
//! Owns: lifecycle, containers, processes, storage, journal, undo. Never builds a VMM argument or QMP
//! message, never parses TOML or OCI. Called by `shim`.

pub mod command;
pub mod layout;
pub mod map;

pub use command::{Command, Notice, Reply, StdioSet};
pub use layout::{Layout, SandboxPaths};
pub use map::ContainerMap;
