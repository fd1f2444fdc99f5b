//! fork(2) and clone3(2). Only for single-threaded callers.
//!
//! Owns: both calls. Never: what the child does. Called by `launch`.

use nix::unistd::Pid;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Which side of a fork the caller is on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Side {
    /// The caller; the new process has this pid in the caller's pid namespace.
    Parent(Pid),
    /// The new process.
    Child,
}

/// CLONE_CLEAR_SIGHAND of linux/sched.h: no handler of this program survives in the child.
const CLEAR_HANDLERS: u64 = 0x1_0000_0000;
/// CLONE_INTO_CGROUP of linux/sched.h.
const INTO_CGROUP: u64 = 0x2_0000_0000;

/// `struct clone_args` of linux/sched.h, its third version.
#[repr(C)]
#[derive(Default)]
struct Arguments {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
    set_tid: u64,
    set_tid_size: u64,
    cgroup: u64,
}

fn clone3(arguments: &Arguments) -> io::Result<Side> {
    // SAFETY: without CLONE_VM the child gets a copy of the address space and goes on with its own copy
    // of this stack, as after fork(2). Callers are single-threaded (the fork server, its children, and the
    // agent before it starts any thread), so no lock can be held by a thread that does not exist in the
    // child. The kernel only reads the structure, whose size is given.
    let pid = unsafe {
        libc::syscall(
            libc::SYS_clone3,
            std::ptr::from_ref(arguments),
            size_of::<Arguments>(),
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
    clone3(&Arguments {
        exit_signal: libc::SIGCHLD as u64,
        ..Arguments::default()
    })
}

/// A child of the caller's parent, who reaps it, in new namespaces (`CLONE_NEW*`) and in `cgroup` from its first
/// instruction on.
///
/// # Errors
/// The kernel's: `EBUSY` if the cgroup hands its controllers on and so takes no process itself, `ENOMEM` if the pid
/// namespace to be born into has ended.
pub(crate) fn sibling(namespaces: u64, cgroup: BorrowedFd<'_>) -> io::Result<Side> {
    // The signal that tells of its end is that of the caller: it must not be given here, clone(2).
    clone3(&Arguments {
        flags: namespaces | libc::CLONE_PARENT as u64 | CLEAR_HANDLERS | INTO_CGROUP,
        cgroup: u64::from(cgroup.as_raw_fd().unsigned_abs()),
        ..Arguments::default()
    })
}

/// A child of the caller's parent, in new namespaces, to go on in the caller's place.
///
/// # Errors
/// The kernel's.
pub(crate) fn replacement(namespaces: u64) -> io::Result<Side> {
    clone3(&Arguments {
        flags: namespaces | libc::CLONE_PARENT as u64,
        ..Arguments::default()
    })
}
