//! Naming a process so that a reused pid is not mistaken for it: pid and start time.
//!
//! Owns: the check pid + start time through a pidfd. Never: waits for or reaps someone else's child.
//! Called wherever a process is known from saved state or a journal.

use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::time::Duration;

/// Why a process could not be looked at.
#[derive(Debug, thiserror::Error)]
pub enum IdentityError {
    /// No such process, or its pid belongs to another one by now.
    #[error("process {pid} (start time {start_time}) is gone")]
    Gone {
        /// The pid.
        pid: i32,
        /// The start time it should have had.
        start_time: u64,
    },
    /// A pid that cannot be one.
    #[error("{pid} is not a process id: expected a number above 0")]
    NotAPid {
        /// The value.
        pid: i32,
    },
    /// The kernel refused.
    #[error("process {pid}: {call}")]
    Kernel {
        /// The pid.
        pid: i32,
        /// What was asked.
        call: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
}

/// Start time of a process in clock ticks since boot: field 22 of proc_pid_stat(5). `None` when there is
/// no such process.
///
/// # Errors
/// When `/proc` cannot be read or shows something else than documented.
pub fn start_time(pid: i32) -> Result<Option<u64>, IdentityError> {
    Ok(stat(pid)?.map(|(_, start_time)| start_time))
}

/// Whether exactly this process still runs. A zombie has ended and does not count.
///
/// # Errors
/// As [`start_time`].
pub fn alive(pid: i32, start_time: u64) -> Result<bool, IdentityError> {
    Ok(matches!(stat(pid)?, Some((state, at)) if at == start_time && !matches!(state, b'Z' | b'X' | b'x')))
}

/// A pidfd of exactly this process; readable once it has ended.
///
/// # Errors
/// [`IdentityError::Gone`] when it has ended or the pid is another's.
pub fn open_exact(pid: i32, start_time: u64) -> Result<OwnedFd, IdentityError> {
    open_if(pid, start_time, |state| !matches!(state, b'Z' | b'X' | b'x'))
}

/// [`open_exact`], if the process is in a state that does.
fn open_if(pid: i32, start_time: u64, does: impl Fn(u8) -> bool) -> Result<OwnedFd, IdentityError> {
    if pid <= 0 {
        return Err(IdentityError::NotAPid { pid });
    }
    let gone = IdentityError::Gone { pid, start_time };
    let pidfd = match pidfd_open(pid) {
        Ok(fd) => fd,
        Err(Errno::ESRCH) => return Err(gone),
        Err(errno) => {
            return Err(IdentityError::Kernel {
                pid,
                call: "pidfd_open",
                source: errno.into(),
            });
        }
    };
    // The pidfd holds on to whoever has the pid now, so checking after opening leaves no gap.
    match stat(pid)? {
        Some((state, at)) if at == start_time && does(state) => Ok(pidfd),
        _ => Err(gone),
    }
}

/// Sends `signal` to exactly this process; false when it is gone.
///
/// # Errors
/// When the kernel refuses for another reason than that it is gone.
pub fn signal_exact(pid: i32, start_time: u64, signal: i32) -> Result<bool, IdentityError> {
    let pidfd = match open_exact(pid, start_time) {
        Err(IdentityError::Gone { .. }) => return Ok(false),
        other => other?,
    };
    send_signal(pidfd.as_fd(), signal).map_err(|source| IdentityError::Kernel {
        pid,
        call: "pidfd_send_signal",
        source,
    })?;
    Ok(true)
}

/// Waits at most `within` until exactly this process has ended; false when it still runs. A process whose first
/// thread is a zombie may have others, which still hold its memory and files: it has not ended.
///
/// # Errors
/// As [`start_time`].
pub fn wait_gone(pid: i32, start_time: u64, within: Duration) -> Result<bool, IdentityError> {
    match open_if(pid, start_time, |_| true) {
        Err(IdentityError::Gone { .. }) => Ok(true),
        Err(error) => Err(error),
        Ok(pidfd) => deadline::readable(pidfd.as_fd(), Deadline::after(within)).map_err(|source| {
            IdentityError::Kernel {
                pid,
                call: "poll",
                source,
            }
        }),
    }
}

pub(super) fn send_signal(pidfd: BorrowedFd<'_>, signal: i32) -> io::Result<()> {
    // SAFETY: plain system call; the descriptor is borrowed, so open, and the siginfo pointer is null.
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// pidfd_open(2); the descriptor is close-on-exec by definition.
fn pidfd_open(pid: i32) -> nix::Result<OwnedFd> {
    // SAFETY: plain system call without pointers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    let fd = i32::try_from(fd).map_err(|_| Errno::EBADF)?;
    // SAFETY: the kernel just returned this descriptor to us; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// State letter and start time.
fn stat(pid: i32) -> Result<Option<(u8, u64)>, IdentityError> {
    if pid <= 0 {
        return Err(IdentityError::NotAPid { pid });
    }
    let text = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(text) => text,
        Err(e) if e.kind() == io::ErrorKind::NotFound || e.raw_os_error() == Some(libc::ESRCH) => {
            return Ok(None);
        }
        Err(source) => {
            return Err(IdentityError::Kernel {
                pid,
                call: "reading /proc/<pid>/stat",
                source,
            });
        }
    };
    parse_stat(&text).map(Some).ok_or_else(|| IdentityError::Kernel {
        pid,
        call: "parsing /proc/<pid>/stat",
        source: io::ErrorKind::InvalidData.into(),
    })
}

/// The command name (field 2) is in parentheses and may contain anything, `)` too: count from the last one.
fn parse_stat(text: &[u8]) -> Option<(u8, u64)> {
    let end = text.iter().rposition(|b| *b == b')')?;
    let rest = std::str::from_utf8(text.get(end + 1..)?).ok()?;
    let mut fields = rest.split_ascii_whitespace();
    let state = *fields.next()?.as_bytes().first()?;
    // The state is field 3; 18 more and the next is field 22.
    let start_time = fields.nth(18)?.parse().ok()?;
    Some((state, start_time))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_with_brackets_and_blanks_does_not_shift_the_fields() {
        let line = b"7 (a) b (c)) S 1 7 7 0 -1 4194560 1 2 3 4 5 6 7 8 20 0 1 0 4242 9 9";
        assert_eq!(parse_stat(line), Some((b'S', 4242)));
        assert_eq!(parse_stat(b""), None);
        assert_eq!(parse_stat(b"1 (x) S 1"), None);
    }

    #[test]
    fn own_process_is_alive_with_its_start_time_only() {
        let me = i32::try_from(std::process::id()).unwrap();
        let at = start_time(me).unwrap().unwrap();
        assert!(alive(me, at).unwrap());
        assert!(!alive(me, at + 1).unwrap());
        assert!(matches!(open_exact(me, at + 1), Err(IdentityError::Gone { .. })));
        assert!(!signal_exact(me, at + 1, libc::SIGKILL).unwrap());
        assert!(wait_gone(me, at + 1, Duration::from_secs(60)).unwrap());
        assert!(!wait_gone(me, at, Duration::from_millis(1)).unwrap());
    }

    #[test]
    fn a_pid_must_be_positive() {
        assert!(matches!(start_time(0), Err(IdentityError::NotAPid { pid: 0 })));
        assert!(matches!(
            signal_exact(-1, 0, 9),
            Err(IdentityError::NotAPid { pid: -1 })
        ));
    }
}
