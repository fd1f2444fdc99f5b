//! Pipes and terminals between a process and the streams of the data port.
//!
//! ```text
//!  Ends::pipes ─► child ends (given to the launch) + agent ends ──connect──► Endpoint
//! ```
//!
//! Owns: making and connecting them. Never: reads or writes them (the endpoint does). Called by `container`.

use crate::sys::tty;
use bulkhead_protocol::api::agent::Stdio;
use bulkhead_protocol::guest_end::{Endpoint, EndpointError};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{Gid, Uid, fchown, pipe2};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};

/// Why the streams of a process could not be made.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StdioError {
    /// A system call.
    #[error("{step}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// The data port.
    #[error(transparent)]
    Endpoint(#[from] EndpointError),
}

/// Stream ids of a process that is connected; 0 stands for none.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct Streams {
    /// To the process.
    pub(crate) stdin: u32,
    /// From the process.
    pub(crate) stdout: u32,
    /// From the process.
    pub(crate) stderr: u32,
}

impl Streams {
    /// Those of a request.
    #[must_use]
    pub(crate) fn of(stdio: &Stdio) -> Self {
        Self {
            stdin: stdio.stdin,
            stdout: stdio.stdout,
            stderr: stdio.stderr,
        }
    }
}

/// Pipe ends of the agent's side.
#[derive(Debug)]
pub(crate) struct Ends {
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
}

fn failed<E: Into<io::Error>>(step: &'static str) -> impl FnOnce(E) -> StdioError {
    move |error| StdioError::Io {
        step,
        source: error.into(),
    }
}

fn null() -> Result<OwnedFd, StdioError> {
    let file = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(failed("opening /dev/null"))?;
    Ok(OwnedFd::from(file))
}

/// A pipe that belongs to the process's user, who may open it again by `/dev/stdout`.
fn pipe(owner: (u32, u32), bytes: u32) -> Result<(OwnedFd, OwnedFd), StdioError> {
    let (read, write) = pipe2(OFlag::O_CLOEXEC).map_err(failed("making a pipe"))?;
    // Root's it is already.
    if owner != (0, 0) {
        fchown(&read, Some(Uid::from_raw(owner.0)), Some(Gid::from_raw(owner.1)))
            .map_err(failed("owner of a pipe"))?;
    }
    if bytes > 0 {
        let size = i32::try_from(bytes).unwrap_or(i32::MAX);
        fcntl(&write, FcntlArg::F_SETPIPE_SZ(size)).map_err(failed("size of a pipe"))?;
    }
    Ok((read, write))
}

impl Ends {
    /// Three descriptors for the process and what is kept of them. `owner` is its user and group id.
    ///
    /// # Errors
    /// [`StdioError::Io`].
    pub(crate) fn pipes(
        streams: Streams,
        owner: (u32, u32),
        bytes: u32,
    ) -> Result<(Vec<OwnedFd>, Self), StdioError> {
        let mut ends = Self {
            stdin: None,
            stdout: None,
            stderr: None,
        };
        let mut child = Vec::with_capacity(3);
        if streams.stdin == 0 {
            child.push(null()?);
        } else {
            let (read, write) = pipe(owner, bytes)?;
            child.push(read);
            ends.stdin = Some(write);
        }
        for (stream, keep) in [
            (streams.stdout, &mut ends.stdout),
            (streams.stderr, &mut ends.stderr),
        ] {
            if stream == 0 {
                child.push(null()?);
            } else {
                let (read, write) = pipe(owner, bytes)?;
                child.push(write);
                *keep = Some(read);
            }
        }
        Ok((child, ends))
    }

    /// Connects them to the data port.
    ///
    /// # Errors
    /// [`StdioError::Endpoint`]; what was connected is ended again.
    pub(crate) fn connect(self, endpoint: &Endpoint, streams: Streams) -> Result<(), StdioError> {
        let connect = || -> Result<(), EndpointError> {
            if let Some(end) = self.stdin {
                endpoint.input(streams.stdin, end)?;
            }
            if let Some(end) = self.stdout {
                endpoint.output(streams.stdout, end)?;
            }
            if let Some(end) = self.stderr {
                endpoint.output(streams.stderr, end)?;
            }
            Ok(())
        };
        connect().map_err(|error| {
            finish(endpoint, streams);
            error.into()
        })
    }
}

/// Ends all streams of a process.
pub(crate) fn finish(endpoint: &Endpoint, streams: Streams) {
    for stream in [streams.stdin, streams.stdout, streams.stderr] {
        if stream != 0 {
            endpoint.finish(stream);
        }
    }
}

/// Connects a terminal and returns a descriptor of it for resizing.
///
/// # Errors
/// [`StdioError`].
pub(crate) fn connect_terminal(
    endpoint: &Endpoint,
    streams: Streams,
    master: OwnedFd,
    size: (u32, u32),
) -> Result<OwnedFd, StdioError> {
    let kept = master.try_clone().map_err(failed("terminal"))?;
    if size.0 > 0 || size.1 > 0 {
        tty::set_size(kept.as_fd(), cells(size.0), cells(size.1)).map_err(failed("terminal size"))?;
    }
    endpoint.terminal(streams.stdin, streams.stdout, master)?;
    Ok(kept)
}

/// A terminal is at most 65535 cells wide or high.
#[must_use]
pub(crate) fn cells(count: u32) -> u16 {
    u16::try_from(count).unwrap_or(u16::MAX)
}
