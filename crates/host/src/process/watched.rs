//! A process that starts itself again when it is killed.
//!
//! ```text
//!  minder ── fork ──► worker (the caller goes on here)
//!    │ wait: exited ─► exit with its status
//!    └───── killed by a signal ─► fork again, at most `most` times
//! ```
//!
//! Owns: the fork and the wait. Never: what the worker does. Called by the supervisor, before any thread is
//! started.

use nix::errno::Errno;
use nix::sys::wait::{WaitStatus, waitpid};
use nix::unistd::{ForkResult, fork};
use std::io;

/// Which run of the worker this is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Run(pub u32);

/// What the caller is after the call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Minded {
    /// The worker, in this run; the first is 0.
    Worker(Run),
    /// The minder: the worker has ended by itself with this status, or was killed too often (by that signal).
    Over {
        /// Exit status to end with.
        status: u8,
    },
}

/// Forks a worker and minds it: returns in each new worker, and in the minder when all is over. The two share
/// every open file description, locks among them.
///
/// # Errors
/// fork(2) and waitpid(2), in the minder.
pub fn mind(most: u32) -> io::Result<Minded> {
    let mut run = 0;
    loop {
        // SAFETY: by this function's contract the process has a single thread, so the child may do anything
        // its parent could.
        match unsafe { fork() }? {
            ForkResult::Child => return Ok(Minded::Worker(Run(run))),
            ForkResult::Parent { child } => match wait(child)? {
                WaitStatus::Exited(_, code) => {
                    return Ok(Minded::Over {
                        status: u8::try_from(code).unwrap_or(1),
                    });
                }
                WaitStatus::Signaled(_, signal, _) if run >= most => {
                    return Ok(Minded::Over {
                        status: 128 + signal as u8,
                    });
                }
                _ => run += 1,
            },
        }
    }
}

fn wait(child: nix::unistd::Pid) -> io::Result<WaitStatus> {
    loop {
        match waitpid(child, None) {
            Err(Errno::EINTR) => {}
            Ok(status @ (WaitStatus::Exited(..) | WaitStatus::Signaled(..))) => return Ok(status),
            Ok(_) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
