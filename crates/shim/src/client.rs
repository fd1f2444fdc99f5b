//! The supervisor's socket, client side: blocking, deadline on every call, no async runtime.
//!
//! Wire: each message is a little-endian u32 length and that many bytes of JSON; descriptors travel with
//! the first byte of a message (SCM_RIGHTS). A request is a [`Command`]; the answer is
//! `{"ok": Reply}` or `{"err": Failure}`. After `Attach` the supervisor sends [`Notice`]s at any time as
//! `{"notice": Notice}`. `Tell` is not answered.
//!
//! Owns: framing and connecting. Never: starting a supervisor (see `launch`). Called by `cli` and stubs.

use crate::words::Words;
use bulkhead_model::timeline::Told;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::{Command, Notice, Reply};
use serde::{Deserialize, Serialize};
use std::io::{IoSlice, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

/// Largest message in bytes: a plan with a 1 MB environment and 10,000 mounts fits many times.
pub(crate) const MAX_MESSAGE_BYTES: u32 = 64 << 20;

/// What the supervisor sends.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Message {
    /// It worked.
    Ok(Reply),
    /// It did not.
    Err(Failure),
    /// To a stub.
    Notice(Notice),
}

/// One connection to a supervisor.
#[derive(Debug)]
pub struct Client {
    stream: UnixStream,
    words: Option<Words>,
}

impl Client {
    /// Connects to the supervisor listening at `path`.
    ///
    /// # Errors
    /// The connect error as it is: not found and refused mean that no supervisor is there.
    pub fn connect(path: &Path) -> std::io::Result<Self> {
        UnixStream::connect(path).map(Self::from_stream)
    }

    /// Over a connection made by someone else.
    #[must_use]
    pub fn from_stream(stream: UnixStream) -> Self {
        Self { stream, words: None }
    }

    /// With the pipe through which the supervisor says why it ends, from whoever started it.
    #[must_use]
    pub(crate) fn hearing(self, words: Words) -> Self {
        Self {
            words: Some(words),
            ..self
        }
    }

    /// Why the sandbox of a supervisor this process started is gone, if its boot failed. Does not wait: it is said
    /// before the socket closes.
    pub fn last_words(&mut self) -> Option<Failure> {
        self.words.as_mut()?.last()
    }

    /// Sends a command and waits at most `deadline` for its answer (`None`: for ever, for `Wait`).
    ///
    /// # Errors
    /// The supervisor's failure, `Unavailable` when the connection ends, `DeadlineExceeded`.
    pub fn call(&mut self, command: &Command, deadline: Option<Duration>) -> Result<Reply, Failure> {
        self.send(command, &[])?;
        loop {
            match self.receive(deadline)? {
                Message::Ok(reply) => return Ok(reply),
                Message::Err(failure) => return Err(failure),
                Message::Notice(_) => {}
            }
        }
    }

    /// Sends a command with descriptors; the answer is read with [`Self::receive`].
    ///
    /// # Errors
    /// `Unavailable` when the supervisor is gone.
    pub fn send(&mut self, command: &Command, fds: &[BorrowedFd<'_>]) -> Result<(), Failure> {
        let body = serde_json::to_vec(command)
            .map_err(|e| Failure::new(FailureKind::Internal, format!("encoding a command: {e}")))?;
        let length = u32::try_from(body.len())
            .ok()
            .filter(|n| *n <= MAX_MESSAGE_BYTES)
            .ok_or_else(|| {
                Failure::new(
                    FailureKind::InvalidArgument,
                    format!(
                        "a request of {} bytes is too large: expected at most {MAX_MESSAGE_BYTES}",
                        body.len()
                    ),
                )
            })?
            .to_le_bytes();
        let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
        let control = [nix::sys::socket::ControlMessage::ScmRights(&raw)];
        nix::sys::socket::sendmsg::<()>(
            self.stream.as_raw_fd(),
            &[IoSlice::new(&length)],
            if raw.is_empty() { &[] } else { &control },
            nix::sys::socket::MsgFlags::MSG_NOSIGNAL,
            None,
        )
        .map_err(|e| gone(&e.into()))?;
        self.stream.write_all(&body).map_err(|e| gone(&e))
    }

    /// Tells what was measured of an operation, before it is asked for or, `late`, afterwards. There is no answer, and
    /// a supervisor that is gone is for the next call to find.
    pub fn tell(&mut self, told: Told, late: bool) {
        let _ = self.send(&Command::Tell { told, late }, &[]);
    }

    /// Reads the next message.
    ///
    /// # Errors
    /// `DeadlineExceeded`, or `Unavailable` when the supervisor is gone.
    pub fn receive(&mut self, deadline: Option<Duration>) -> Result<Message, Failure> {
        self.stream.set_read_timeout(deadline).map_err(|e| gone(&e))?;
        let mut length = [0; 4];
        self.stream.read_exact(&mut length).map_err(|e| gone(&e))?;
        let length = u32::from_le_bytes(length);
        if length > MAX_MESSAGE_BYTES {
            return Err(Failure::new(
                FailureKind::Internal,
                format!("the supervisor announced {length} bytes"),
            ));
        }
        let mut body = vec![0; length as usize];
        self.stream.read_exact(&mut body).map_err(|e| gone(&e))?;
        serde_json::from_slice(&body)
            .map_err(|e| Failure::new(FailureKind::Internal, format!("the supervisor's answer: {e}")))
    }

    /// The socket, for polling.
    #[must_use]
    pub fn stream(&self) -> &UnixStream {
        &self.stream
    }
}

fn gone(error: &std::io::Error) -> Failure {
    match error.kind() {
        std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut => Failure::new(
            FailureKind::DeadlineExceeded,
            "the supervisor did not answer in time",
        ),
        _ => Failure::new(
            FailureKind::Unavailable,
            format!("the supervisor is gone: {error}"),
        ),
    }
}
