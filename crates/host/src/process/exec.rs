//! The child's side of a start: what happens between clone and exec.
//!
//! Owns: one function that only makes system calls. Never: allocates, locks, panics or touches anything
//! another thread may hold; the parent may have threads. Called by [`super::Spawn`] in the new process.

use std::ffi::{CStr, c_char, c_int};
use std::os::fd::RawFd;

/// What went wrong in the child; travels through the report pipe.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u32)]
pub(super) enum Step {
    /// Not fatal; `index` is that of the file.
    Cgroup = 1,
    /// Not fatal; `index` is that of the limit.
    Limit = 2,
    Session = 3,
    /// `index` is that of the namespace.
    Namespace = 4,
    Directory = 5,
    /// `index` is that of the descriptor.
    Descriptor = 6,
    CloseRange = 7,
    Exec = 8,
}

impl Step {
    pub(super) fn from_number(number: u32) -> Option<Self> {
        [
            Self::Cgroup,
            Self::Limit,
            Self::Session,
            Self::Namespace,
            Self::Directory,
            Self::Descriptor,
            Self::CloseRange,
            Self::Exec,
        ]
        .into_iter()
        .find(|step| *step as u32 == number)
    }
}

/// One report: step, index, errno, each a native-endian u32.
pub(super) const REPORT_BYTES: usize = 12;

/// How the program is named.
pub(super) enum Target<'a> {
    Path(&'a CStr),
    Fd(RawFd),
}

/// Everything the child needs, laid out by the parent.
pub(super) struct Prepared<'a> {
    pub(super) target: Target<'a>,
    /// Null-terminated, as execve(2) wants it.
    pub(super) argv: &'a [*const c_char],
    pub(super) envp: &'a [*const c_char],
    /// Sources and fixed numbers; the sources are all above the highest number.
    pub(super) fds: &'a [(RawFd, RawFd)],
    /// Ranges of descriptors to close, both ends included.
    pub(super) close: &'a [(u32, u32)],
    /// Open `cgroup.procs` files.
    pub(super) cgroups: &'a [RawFd],
    /// Namespace descriptor and its CLONE_NEW* flag.
    pub(super) namespaces: &'a [(RawFd, c_int)],
    pub(super) limits: &'a [(u32, libc::rlimit)],
    pub(super) directory: Option<&'a CStr>,
    pub(super) new_session: bool,
    pub(super) report: RawFd,
}

/// Turns the new process into the program.
///
/// # Safety
/// Must be called right after clone in the new process, which has its own memory (no `CLONE_VM`), with
/// every pointer in `prepared` valid and all signals blocked.
pub(super) unsafe fn become_program(prepared: &Prepared<'_>) -> ! {
    // SAFETY: the caller's promise; from here on only async-signal-safe calls are made.
    unsafe {
        let (step, index) = steps(prepared);
        report(prepared.report, step, index);
        libc::_exit(127)
    }
}

/// Runs all steps; returns only with the one that failed, errno set.
unsafe fn steps(prepared: &Prepared<'_>) -> (Step, usize) {
    // SAFETY: system calls on descriptors and pointers the parent prepared for this very process.
    unsafe {
        reset_signals();
        for (index, fd) in prepared.cgroups.iter().enumerate() {
            // "0" is the writer itself, whatever its pid namespace (cgroups(7)).
            if libc::write(*fd, c"0".as_ptr().cast(), 1) < 0 {
                report(prepared.report, Step::Cgroup, index);
            }
        }
        for (index, (resource, limit)) in prepared.limits.iter().enumerate() {
            if libc::setrlimit(*resource, limit) < 0 {
                report(prepared.report, Step::Limit, index);
            }
        }
        if prepared.new_session && libc::setsid() < 0 {
            return (Step::Session, 0);
        }
        for (index, (fd, flag)) in prepared.namespaces.iter().enumerate() {
            if libc::setns(*fd, *flag) < 0 {
                return (Step::Namespace, index);
            }
        }
        if let Some(directory) = prepared.directory
            && libc::chdir(directory.as_ptr()) < 0
        {
            return (Step::Directory, 0);
        }
        for (index, (source, number)) in prepared.fds.iter().enumerate() {
            if libc::dup2(*source, *number) < 0 {
                return (Step::Descriptor, index);
            }
        }
        for (first, last) in prepared.close {
            // Marked, not closed: the report pipe and the program's descriptor live until exec.
            if libc::syscall(libc::SYS_close_range, *first, *last, libc::CLOSE_RANGE_CLOEXEC) < 0 {
                return (Step::CloseRange, 0);
            }
        }
        unblock_signals();
        match prepared.target {
            Target::Path(path) => libc::execve(path.as_ptr(), prepared.argv.as_ptr(), prepared.envp.as_ptr()),
            Target::Fd(fd) => libc::syscall(
                libc::SYS_execveat,
                fd,
                c"".as_ptr(),
                prepared.argv.as_ptr(),
                prepared.envp.as_ptr(),
                libc::AT_EMPTY_PATH,
            ) as c_int,
        };
        (Step::Exec, 0)
    }
}

/// Every disposition back to default: exec keeps ignored signals ignored, and the Rust runtime ignores
/// SIGPIPE.
unsafe fn reset_signals() {
    // The system call itself: the C library's wrapper refuses its own two signals, which may have been
    // inherited as ignored. 8 is the size of the kernel's signal set.
    // SAFETY: an all-zero kernel sigaction (four words) is SIG_DFL without flags and mask; SIGKILL and
    // SIGSTOP fail, which changes nothing.
    unsafe {
        let default = [0_u64; 4];
        for signal in 1..=64 {
            libc::syscall(libc::SYS_rt_sigaction, signal, default.as_ptr(), 0_usize, 8_usize);
        }
    }
}

unsafe fn unblock_signals() {
    // SAFETY: sigset_t is plain data, initialised by sigemptyset.
    unsafe {
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&raw mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &raw const none, std::ptr::null_mut());
    }
}

unsafe fn report(fd: RawFd, step: Step, index: usize) {
    // SAFETY: errno is this thread's own; the buffer lives on this stack.
    unsafe {
        let errno = *libc::__errno_location();
        let words = [step as u32, index as u32, errno as u32];
        // Below PIPE_BUF, so written whole; with nobody reading there is nothing left to do.
        libc::write(fd, words.as_ptr().cast(), REPORT_BYTES);
    }
}
