//! The stub: the host process whose pid stands for a container's or an exec's process.
//!
//! ```text
//!  verb                     stub                                      supervisor
//!   │ connect ──────────────────────────────────────────────────────────► │
//!   │ clone into new namespaces, exec `bulkhead stub`                      │
//!   │ order (JSON) ─────────► enter or build the view                      │
//!   │ ◄──────────── ready or failed                                        │
//!   │ Attach + duplicates of the stdio (on the connection the stub has) ─► │
//!   │ go ───────────────────► serve: signals, sizes ─────────────────────► │
//!   ╵ exits; the stub's new parent is the caller's subreaper ◄──── notices │
//! ```
//!
//! Owns: the namespaces engines see behind the pid, the stub's copies of the stdio, its exit status. Never:
//! data (it flows between supervisor and the stdio directly), and no thread. Called by `create`, `run`,
//! `exec` and the task service.

mod duty;
mod order;
mod request;
mod spawn;
mod view;

pub use request::{Handover, Namespaces, NetworkChoice, Stdio, StubRequest};
pub use spawn::{Stub, StubError, spawn};
pub use view::View;

use std::os::fd::RawFd;
use std::process::ExitCode;

/// Exit status of a stub that lost its supervisor or could not begin.
pub const LOST: u8 = 255;

/// The hidden verb's main: `fd` is the channel to the verb that started it.
#[must_use]
pub fn main(fd: RawFd) -> ExitCode {
    match duty::run(fd) {
        Ok(code) => ExitCode::from(code),
        Err(_) => ExitCode::from(LOST),
    }
}
