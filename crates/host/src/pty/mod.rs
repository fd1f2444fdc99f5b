//! Pseudo-terminals: pairs, raw mode, window size, controlling terminal, the console socket, and a relay
//! between a user's terminal and a master.
//!
//! Owns: everything that is an ioctl on a terminal. Never: O_NONBLOCK on a description it was lent.
//! Called by `cli` (foreground verbs, console socket K-04, stubs) and the agent.

mod pair;
mod raw;
mod relay;

pub use pair::{PtyError, PtyPair, open, send_to_console_socket};
pub use raw::RawMode;
pub use relay::{Relay, RelayEvent};

use nix::errno::Errno;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Size of a terminal in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct WindowSize {
    /// Columns; 0 means unknown.
    pub columns: u16,
    /// Rows; 0 means unknown.
    pub rows: u16,
}

/// Reads the window size (TIOCGWINSZ, ioctl_tty(2)).
///
/// # Errors
/// `ENOTTY` when it is not a terminal.
pub fn window_size(terminal: BorrowedFd<'_>) -> io::Result<WindowSize> {
    let mut size = libc::winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCGWINSZ writes one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCGWINSZ, &raw mut size) })?;
    Ok(WindowSize {
        columns: size.ws_col,
        rows: size.ws_row,
    })
}

/// Sets the window size; the foreground processes on the slave get SIGWINCH if it changes.
///
/// # Errors
/// `ENOTTY` when it is not a terminal.
pub fn set_window_size(terminal: BorrowedFd<'_>, size: WindowSize) -> io::Result<()> {
    let size = libc::winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })?;
    Ok(())
}

/// Makes `terminal` the controlling terminal of this process, which must lead a session without one
/// (setsid(2), TIOCSCTTY).
///
/// # Errors
/// `EPERM` when this process leads no session or the terminal controls another one.
pub fn make_controlling(terminal: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: the argument of TIOCSCTTY is a number, 0: do not steal it.
    Errno::result(unsafe { libc::ioctl(terminal.as_raw_fd(), libc::TIOCSCTTY, 0) })?;
    Ok(())
}

/// Whether it is a terminal.
#[must_use]
pub fn is_terminal(fd: BorrowedFd<'_>) -> bool {
    nix::unistd::isatty(fd).unwrap_or(false)
}
