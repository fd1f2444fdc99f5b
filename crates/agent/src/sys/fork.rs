//! fork(2) and its sibling form. Only for single-threaded callers.

use nix::unistd::Pid;
use std::io;

/// Which side of a fork the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller; the new process has this pid in the caller's pid namespace.
    Parent(Pid),
    /// The new process.
    Child,
}

fn clone(flags: libc::c_int) -> io::Result<Side> {
    // SAFETY: without CLONE_VM the child gets a copy of the address space and goes on with its own copy
    // of this stack, as after fork(2). Callers are single-threaded (the fork server and its workers, and
    // the agent before it starts any thread), so no lock can be held by a thread that does not exist in
    // the child.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone,
            libc::c_long::from(flags),
            0_usize,
            0_usize,
            0_usize,
            0_usize,
        )
    };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => Ok(Side::Child),
        pid => Ok(Side::Parent(Pid::from_raw(pid as i32))),
    }
}

/// An ordinary child.
///
/// # Errors
/// The kernel's, for example `EAGAIN` at a process limit.
pub(crate) fn child() -> io::Result<Side> {
    clone(libc::SIGCHLD)
}

/// A child of the caller's parent, who reaps it.
///
/// # Errors
/// As [`child`].
pub(crate) fn sibling() -> io::Result<Side> {
    clone(libc::SIGCHLD | libc::CLONE_PARENT)
}
