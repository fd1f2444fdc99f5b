//! The verbs that change a sandbox: one file each, as methods of [`World`](crate::world::World).
//!
//! ```text
//!  create ─► start ─► (pause ◄─► resume) ─► stop ─► delete
//!     └─ failure ─► rollback (C-11)                  └─ last one ─► tear_down
//! ```
//!
//! Owns: order and tolerance of steps. Never: concurrency (the engine runs one verb at a time).

mod create;
mod delete;
mod exec;
mod freeze;
mod sharing;
mod start;
mod stop;
mod update;

pub use create::Attachment;

use std::time::Duration;

/// How long a process may take to be gone after SIGKILL.
pub const KILL_DEADLINE: Duration = Duration::from_secs(30);
