//! Host processes: starting them with exact surroundings, waiting for them by pidfd, finding them again.
//!
//! ```text
//!  Spawn ──spawn()──► Child ──wait / kill_and_wait──► Exit
//!  (pid, start time) ──identity──► alive? signal exactly that one
//!  BULKHEAD_SANDBOX=<value> ──marker──► pids
//! ```
//!
//! Owns: pids, pidfds and the code between clone and exec. Never: reaps a child it did not start, and no
//! async runtime (a [`Child`] is an `AsFd` that becomes readable when the process ends). Called by `vmm`,
//! `sandbox`, `shim` and `cli`.

mod child;
mod code;
mod exec;
mod identity;
mod marker;
mod namespace;
mod prepare;
mod priority;
mod spawn;
mod watched;

pub use child::{Child, Exit};
pub use code::Code;
pub use identity::{IdentityError, alive, open_exact, signal_exact, start_time, wait_gone};
pub use marker::{MARKER, marked};
pub use namespace::Namespace;
pub use priority::give_way;
pub use spawn::{CgroupRefusal, Spawn, SpawnError, Started};
pub use watched::{Minded, Run, mind};
