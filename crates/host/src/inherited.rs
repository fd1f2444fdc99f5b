//! Descriptors a process was started with.
//!
//! Owns: taking one by its number. Never: what it is for. Called once per number, first thing in the `main`
//! of a program that was told the number by whoever started it.

use nix::errno::Errno;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};

/// Takes the descriptor `number` and makes it close on exec.
///
/// Nobody else in the program may own that number: call this once per number, before anything was opened
/// that could have got it.
///
/// # Errors
/// `EBADF` when no such descriptor is open; `InvalidInput` for the three standard streams, which the
/// standard library owns.
pub fn take_inherited(number: RawFd) -> io::Result<OwnedFd> {
    if number < 3 {
        return Err(io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("descriptor {number} cannot be taken: expected 3 or more"),
        ));
    }
    // SAFETY: F_SETFD reads and writes no memory of this process; an unused number gives EBADF.
    Errno::result(unsafe { libc::fcntl(number, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the number is open, as fcntl just showed, and by this function's contract it was inherited
    // and has no other owner.
    Ok(unsafe { OwnedFd::from_raw_fd(number) })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::{AsRawFd, IntoRawFd};

    #[test]
    fn a_descriptor_changes_hands_once() {
        let number = std::fs::File::open("/dev/null").unwrap().into_raw_fd();
        let owned = take_inherited(number).unwrap();
        assert_eq!(owned.as_raw_fd(), number);
    }

    #[test]
    fn what_is_not_there_is_an_error() {
        assert_eq!(
            take_inherited(1_000_000).unwrap_err().raw_os_error(),
            Some(libc::EBADF)
        );
        assert_eq!(take_inherited(1).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
