//! A new pseudo-terminal and where its master goes.
//!
//! Owns: opening the pair, sending the master over a console socket (contract K-04). Never: copies data.

use crate::fdpass::{self, PassError};
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::pty::PtyMaster;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Why there is no terminal.
#[derive(Debug, thiserror::Error)]
pub enum PtyError {
    /// The pair could not be made.
    #[error("opening a pseudo-terminal: {step}")]
    Open {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The console socket does not answer.
    #[error("connecting to the console socket {}", path.display())]
    Connect {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The console socket did not take the terminal.
    #[error("sending the terminal to the console socket {}", path.display())]
    Send {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: PassError,
    },
}

/// Both ends of a pseudo-terminal, close-on-exec.
#[derive(Debug)]
pub struct PtyPair {
    /// The end that stands for the user.
    pub master: OwnedFd,
    /// The end a process sees as its terminal; opened without making it the controlling one.
    pub slave: OwnedFd,
    /// The slave's path, `/dev/pts/<n>` of this mount namespace.
    pub path: PathBuf,
}

/// Opens a pair.
///
/// # Errors
/// [`PtyError::Open`]: no devpts, or no pseudo-terminal left.
pub fn open() -> Result<PtyPair, PtyError> {
    let failed = |step| {
        move |errno: Errno| PtyError::Open {
            step,
            source: errno.into(),
        }
    };
    let flags = OFlag::O_RDWR | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
    let master: PtyMaster = nix::pty::posix_openpt(flags).map_err(failed("posix_openpt"))?;
    nix::pty::unlockpt(&master).map_err(failed("unlockpt"))?;
    let path = nix::pty::ptsname_r(&master).map_err(failed("ptsname"))?;
    // By the master, not by the path: another devpts may be mounted at /dev/pts.
    // SAFETY: the argument of TIOCGPTPEER is a number, the open flags.
    let slave = unsafe { libc::ioctl(master.as_raw_fd(), libc::TIOCGPTPEER, flags.bits()) };
    let slave = Errno::result(slave).map_err(failed("opening the slave"))?;
    // SAFETY: TIOCGPTPEER returned a new descriptor; nobody else owns it.
    let slave = unsafe { OwnedFd::from_raw_fd(slave) };
    let master = master
        .as_fd()
        .try_clone_to_owned()
        .map_err(|source| PtyError::Open {
            step: "duplicating the master",
            source,
        })?;
    Ok(PtyPair {
        master,
        slave,
        path: path.into(),
    })
}

/// Sends the master over the unix socket at `socket`, with the terminal's name as the data, as container
/// engines expect it (contract K-04). The caller closes its master afterwards by dropping it.
///
/// # Errors
/// [`PtyError::Connect`], [`PtyError::Send`], both naming the path.
pub fn send_to_console_socket(socket: &Path, master: &OwnedFd, within: Duration) -> Result<(), PtyError> {
    let connect = |source| PtyError::Connect {
        path: socket.to_owned(),
        source,
    };
    fdpass::check_socket_path(socket)
        .map_err(|error| connect(io::Error::new(io::ErrorKind::InvalidInput, error)))?;
    let stream = UnixStream::connect(socket).map_err(connect)?;
    let name = b"/dev/ptmx";
    stream.set_write_timeout(Some(within)).map_err(connect)?;
    fdpass::send(stream.as_fd(), name, &[master.as_fd()]).map_err(|source| PtyError::Send {
        path: socket.to_owned(),
        source,
    })?;
    Ok(())
}
