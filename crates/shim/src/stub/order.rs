//! What verb and stub say to each other before the stub is on its own.
//!
//! Owns: three messages over a socket pair, each a little-endian u32 length and JSON. Never: outlives the
//! verb: after `Go` the channel is closed.

use super::View;
use bulkhead_model::{Failure, ProcessKey};
use bulkhead_sandbox::Command;
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use std::io::{self, Read, Write};
use std::os::fd::RawFd;
use std::os::unix::net::UnixStream;

/// Descriptor of the channel in the stub.
pub(super) const CHANNEL_FD: RawFd = 3;
/// Descriptor of the connection to the supervisor.
pub(super) const CONNECTION_FD: RawFd = 4;
/// Descriptor of the host's `/dev/null`, which replaces ended streams.
pub(super) const NULL_FD: RawFd = 5;
/// Descriptor of the log, if the order says so.
pub(super) const LOG_FD: RawFd = 6;
/// Pidfd of the container's stub, if the order says so.
pub(super) const JOIN_FD: RawFd = 7;

/// Listening socket on which it waits for a fresh supervisor.
pub(super) const RENEW_FD: RawFd = 8;

/// Verb to stub, first.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Order {
    /// Whose stub it is.
    pub(super) key: ProcessKey,
    /// Descriptor 0 is a terminal.
    pub(super) terminal: bool,
    /// Descriptor 6 is the log.
    pub(super) log: bool,
    /// What to show; `None`: join the namespaces of descriptor 7.
    pub(super) view: Option<Box<View>>,
}

/// Stub to verb.
#[derive(Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub(super) enum Report {
    /// Its namespaces are complete.
    Ready {
        /// What was left out, a line each.
        warnings: Vec<String>,
    },
    /// It could not begin and exits.
    Failed(Failure),
}

/// Verb to stub, last: the supervisor knows it now.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Go {
    /// What the supervisor was told; a fresh one is told the same.
    pub(super) attach: Command,
}

/// Sends one message.
pub(super) fn send<T: Serialize>(mut to: &UnixStream, message: &T) -> io::Result<()> {
    let body = serde_json::to_vec(message)?;
    let length = u32::try_from(body.len()).map_err(io::Error::other)?;
    to.write_all(&length.to_le_bytes())?;
    to.write_all(&body)
}

/// Receives one message; the end of the channel is `UnexpectedEof`.
pub(super) fn receive<T: DeserializeOwned>(mut from: &UnixStream) -> io::Result<T> {
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let mut body = Vec::new();
    from.take(u64::from(u32::from_le_bytes(length)))
        .read_to_end(&mut body)?;
    Ok(serde_json::from_slice(&body)?)
}
