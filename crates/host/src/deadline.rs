//! Waiting for descriptors with a deadline that survives interruptions.
//!
//! Owns: the loop around poll(2). Never: decides how long to wait. Called by every module that waits.

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout};
use std::os::fd::BorrowedFd;
use std::time::{Duration, Instant};

/// A point in time after which waiting is over; [`Deadline::NEVER`] does not come.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Deadline(Option<Instant>);

impl Deadline {
    /// Waits without end. Only for waits that another event is certain to end.
    pub const NEVER: Self = Self(None);

    /// `after` from now; a duration too long for the clock is never.
    #[must_use]
    pub fn after(after: Duration) -> Self {
        Self(Instant::now().checked_add(after))
    }

    /// Time left; zero once passed, `None` for never.
    #[must_use]
    pub fn left(self) -> Option<Duration> {
        self.0.map(|at| at.saturating_duration_since(Instant::now()))
    }

    /// Whether it has passed.
    #[must_use]
    pub fn passed(self) -> bool {
        self.left() == Some(Duration::ZERO)
    }

    fn poll_timeout(self) -> PollTimeout {
        match self.left() {
            None => PollTimeout::NONE,
            // Rounded up: a wait must not end before its deadline and spin through the last millisecond.
            Some(left) => {
                let millis = left.as_micros().div_ceil(1000).min(i32::MAX as u128);
                PollTimeout::try_from(i32::try_from(millis).unwrap_or(i32::MAX)).unwrap_or(PollTimeout::MAX)
            }
        }
    }
}

/// Waits until one of `fds` has an event or the deadline passes; returns how many have one (0: too late).
///
/// # Errors
/// What poll(2) reports, except `EINTR`, which is waited through.
pub fn poll(fds: &mut [PollFd<'_>], deadline: Deadline) -> std::io::Result<usize> {
    loop {
        match nix::poll::poll(fds, deadline.poll_timeout()) {
            Ok(0) if !deadline.passed() => {}
            Ok(n) => return Ok(usize::try_from(n).unwrap_or(0)),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Waits until `fd` is readable (or hung up); false when the deadline passed first.
///
/// # Errors
/// As [`poll`].
pub fn readable(fd: BorrowedFd<'_>, deadline: Deadline) -> std::io::Result<bool> {
    let mut fds = [PollFd::new(fd, PollFlags::POLLIN)];
    Ok(poll(&mut fds, deadline)? > 0)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_silent_descriptor_ends_at_the_deadline() {
        let (end, _other) = nix::unistd::pipe().unwrap();
        let before = Instant::now();
        let seen = readable(end.as_fd(), Deadline::after(Duration::from_millis(30))).unwrap();
        assert!(!seen);
        assert!(before.elapsed() >= Duration::from_millis(30));
    }

    #[test]
    fn a_closed_writer_is_an_event() {
        let (end, other) = nix::unistd::pipe().unwrap();
        drop(other);
        assert!(readable(end.as_fd(), Deadline::after(Duration::from_secs(60))).unwrap());
    }
}
