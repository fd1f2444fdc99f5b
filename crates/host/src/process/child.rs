//! A started process and how it ended.
//!
//! Owns: the pidfd. Never: ends or reaps the process when dropped (the journal of the caller does).
//! Made by [`super::Spawn`].

use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Mutex;
use std::time::Duration;

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Exit {
    /// It called exit with this status, 0 to 255.
    Code(i32),
    /// This signal ended it.
    Signal(i32),
}

/// A process this one started. Its pidfd ([`AsFd`]) becomes readable when it has ended.
#[derive(Debug)]
pub struct Child {
    pid: i32,
    start_time: u64,
    pidfd: OwnedFd,
    // Reaping happens once; later calls get the same answer.
    exit: Mutex<Option<Exit>>,
}

impl Child {
    pub(super) fn new(pid: i32, start_time: u64, pidfd: OwnedFd) -> Self {
        Self {
            pid,
            start_time,
            pidfd,
            exit: Mutex::new(None),
        }
    }

    /// Process id as this process sees it.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Start time in clock ticks since boot: field 22 of proc_pid_stat(5).
    #[must_use]
    pub fn start_time(&self) -> u64 {
        self.start_time
    }

    /// Reaps it if it has ended; `None` while it runs.
    ///
    /// # Errors
    /// What waitid(2) reports; `ECHILD` when someone else reaped it.
    pub fn try_wait(&self) -> io::Result<Option<Exit>> {
        let mut exit = self
            .exit
            .lock()
            .unwrap_or_else(std::sync::PoisonError::into_inner);
        if exit.is_none() {
            *exit = reap(self.pidfd.as_fd())?;
        }
        Ok(*exit)
    }

    /// Waits at most `within` for the end and reaps it; `None` when the deadline passed first.
    ///
    /// # Errors
    /// What poll(2) or waitid(2) report.
    pub fn wait(&self, within: Duration) -> io::Result<Option<Exit>> {
        let deadline = Deadline::after(within);
        loop {
            if let Some(exit) = self.try_wait()? {
                return Ok(Some(exit));
            }
            if !deadline::readable(self.pidfd.as_fd(), deadline)? {
                return Ok(None);
            }
        }
    }

    /// Sends a signal. A process that has ended already counts as success.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) reports, except `ESRCH`.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        super::identity::send_signal(self.pidfd.as_fd(), signal)
    }

    /// SIGKILL, then waits at most `within` and reaps; `None` when it outlived the deadline
    /// (a process in uninterruptible sleep does).
    ///
    /// # Errors
    /// As [`Self::signal`] and [`Self::wait`].
    pub fn kill_and_wait(&self, within: Duration) -> io::Result<Option<Exit>> {
        if let Some(exit) = self.try_wait()? {
            return Ok(Some(exit));
        }
        self.signal(libc::SIGKILL)?;
        self.wait(within)
    }
}

impl AsFd for Child {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
}

fn reap(pidfd: BorrowedFd<'_>) -> io::Result<Option<Exit>> {
    loop {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG;
        match nix::sys::wait::waitid(Id::PIDFd(pidfd), flags) {
            Ok(WaitStatus::Exited(_, code)) => return Ok(Some(Exit::Code(code))),
            Ok(WaitStatus::Signaled(_, signal, _)) => return Ok(Some(Exit::Signal(signal as i32))),
            Ok(_) => return Ok(None),
            Err(Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
