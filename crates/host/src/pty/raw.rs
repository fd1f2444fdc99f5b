//! Raw mode as a value.
//!
//! Owns: a terminal's settings while it lives. Never: outlives the terminal it borrowed.

use nix::sys::termios::{SetArg, Termios, cfmakeraw, tcgetattr, tcsetattr};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A terminal in raw mode (cfmakeraw(3)); dropping it restores what was before.
#[derive(Debug)]
pub struct RawMode {
    terminal: OwnedFd,
    before: Termios,
}

impl RawMode {
    /// Puts the terminal into raw mode. The descriptor is duplicated.
    ///
    /// # Errors
    /// `ENOTTY` when it is not a terminal.
    pub fn enter(terminal: BorrowedFd<'_>) -> io::Result<Self> {
        let terminal = terminal.try_clone_to_owned()?;
        let before = tcgetattr(&terminal)?;
        make_raw(terminal.as_fd())?;
        Ok(Self { terminal, before })
    }

    /// Puts the terminal into raw mode for good.
    ///
    /// # Errors
    /// `ENOTTY` when it is not a terminal.
    pub fn set(terminal: BorrowedFd<'_>) -> io::Result<()> {
        make_raw(terminal)
    }
}

fn make_raw(terminal: BorrowedFd<'_>) -> io::Result<()> {
    let mut settings = tcgetattr(terminal)?;
    cfmakeraw(&mut settings);
    Ok(tcsetattr(terminal, SetArg::TCSANOW, &settings)?)
}

impl Drop for RawMode {
    fn drop(&mut self) {
        // A terminal that hung up has no settings to restore.
        let _ = tcsetattr(&self.terminal, SetArg::TCSANOW, &self.before);
    }
}
