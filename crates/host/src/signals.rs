//! Signals as something to read: signalfd(2).
//!
//! Owns: the blocked set of the thread that made it. Never: installs a handler. Called by stubs and by
//! foreground verbs; single-threaded, or made before the first thread, so that no thread takes the signals.

use nix::sys::signal::{SigSet, SigmaskHow, Signal, pthread_sigmask};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};

/// A signal that arrived.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Arrived {
    /// Its number.
    pub number: i32,
    /// The sender's pid, 0 when the kernel sent it or the sender is in another pid namespace.
    pub sender: i32,
}

/// Blocks signals for this thread and delivers them through a descriptor; dropping it restores the mask.
#[derive(Debug)]
pub struct Signals {
    fd: SignalFd,
    before: SigSet,
}

impl Signals {
    /// Of the given signal numbers.
    ///
    /// # Errors
    /// `InvalidInput` for a number that is no catchable signal of 1 to 31 (real-time signals are the
    /// C library's business); what signalfd(2) reports.
    pub fn of(numbers: &[i32]) -> io::Result<Self> {
        let mut set = SigSet::empty();
        for number in numbers {
            let signal =
                Signal::try_from(*number).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
            set.add(signal);
        }
        Self::of_set(&set)
    }

    /// Of every signal there is but SIGKILL, SIGSTOP (which cannot be caught) and the ones a fault raises,
    /// which must end the process.
    ///
    /// # Errors
    /// What signalfd(2) reports.
    pub fn all() -> io::Result<Self> {
        let mut set = SigSet::all();
        for fault in [
            Signal::SIGSEGV,
            Signal::SIGBUS,
            Signal::SIGILL,
            Signal::SIGFPE,
            Signal::SIGTRAP,
            Signal::SIGSYS,
        ] {
            set.remove(fault);
        }
        Self::of_set(&set)
    }

    fn of_set(set: &SigSet) -> io::Result<Self> {
        let mut before = SigSet::empty();
        pthread_sigmask(SigmaskHow::SIG_BLOCK, Some(set), Some(&mut before))?;
        match SignalFd::with_flags(set, SfdFlags::SFD_CLOEXEC | SfdFlags::SFD_NONBLOCK) {
            Ok(fd) => Ok(Self { fd, before }),
            Err(errno) => {
                pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&before), None)?;
                Err(errno.into())
            }
        }
    }

    /// The next one that has arrived, `None` when there is none now. Wait for it by polling [`AsFd`].
    ///
    /// # Errors
    /// What read(2) reports.
    pub fn next(&self) -> io::Result<Option<Arrived>> {
        Ok(self.fd.read_signal()?.map(|info| Arrived {
            number: i32::try_from(info.ssi_signo).unwrap_or(0),
            sender: i32::try_from(info.ssi_pid).unwrap_or(0),
        }))
    }
}

impl AsFd for Signals {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

impl Drop for Signals {
    fn drop(&mut self) {
        // Fails only for an invalid set, and this one came from the kernel.
        let _ = pthread_sigmask(SigmaskHow::SIG_SETMASK, Some(&self.before), None);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deadline::{Deadline, readable};
    use std::time::Duration;

    #[test]
    fn a_signal_to_this_thread_is_read_and_the_mask_restored() {
        let before = SigSet::thread_get_mask().unwrap();
        let signals = Signals::of(&[libc::SIGUSR1, libc::SIGUSR2]).unwrap();
        assert_eq!(signals.next().unwrap(), None);
        nix::sys::signal::raise(Signal::SIGUSR2).unwrap();
        assert!(readable(signals.as_fd(), Deadline::after(Duration::from_secs(60))).unwrap());
        assert_eq!(signals.next().unwrap().unwrap().number, libc::SIGUSR2);
        drop(signals);
        assert_eq!(SigSet::thread_get_mask().unwrap(), before);
    }

    #[test]
    fn a_number_that_is_no_signal_is_refused() {
        assert_eq!(Signals::of(&[0]).unwrap_err().kind(), io::ErrorKind::InvalidInput);
    }
}
