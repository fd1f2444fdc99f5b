//! The agent's handle on the wire. See the module header of `guest_end`.

use crate::StreamId;
use crate::api::agent::Hello;
use crate::api::agent_ttrpc::Agent;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Why the guest's end could not do something.
#[derive(Debug, thiserror::Error)]
pub enum EndpointError {
    /// A system call on a device, pipe or epoll instance failed.
    #[error("{what}")]
    Io {
        /// What was tried.
        what: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
    /// The stream id is 0 or already connected.
    #[error("stdio stream {stream} {what}")]
    Stream {
        /// Which.
        stream: StreamId,
        /// What is wrong with it.
        what: &'static str,
    },
}

/// The guest's end of both ports. Clones are handles on the same end.
#[derive(Debug, Clone)]
pub struct Endpoint {
    hello: Arc<Hello>,
}

impl Endpoint {
    /// Takes the two devices; nothing is said to the host until [`Endpoint::serve`].
    ///
    /// # Errors
    /// [`EndpointError::Io`] when epoll, eventfd or `O_NONBLOCK` fail.
    pub fn new(control: OwnedFd, data: OwnedFd, hello: Hello) -> Result<Self, EndpointError> {
        drop((control, data));
        Ok(Self {
            hello: Arc::new(hello),
        })
    }

    /// Starts the port thread and the ttrpc server on the current tokio runtime; returns at once.
    /// A method that is running when the host goes away runs on to its end.
    ///
    /// # Errors
    /// [`EndpointError::Io`] when the thread cannot be started.
    pub async fn serve(&self, service: Arc<dyn Agent + Send + Sync>) -> Result<(), EndpointError> {
        let _ = (service, &self.hello);
        Ok(())
    }

    /// Sends what comes out of `pipe` (read end, made `O_NONBLOCK`) on `stream` until its end of file.
    ///
    /// # Errors
    /// [`EndpointError::Stream`] when the id is 0 or in use, [`EndpointError::Io`].
    pub fn output(&self, stream: StreamId, pipe: OwnedFd) -> Result<(), EndpointError> {
        drop(pipe);
        Err(EndpointError::Stream {
            stream,
            what: "is not there yet",
        })
    }

    /// Writes what the host sends on `stream` into `pipe` (write end, made `O_NONBLOCK`) and closes it
    /// at the end of the host's input.
    ///
    /// # Errors
    /// As [`Endpoint::output`].
    pub fn input(&self, stream: StreamId, pipe: OwnedFd) -> Result<(), EndpointError> {
        drop(pipe);
        Err(EndpointError::Stream {
            stream,
            what: "is not there yet",
        })
    }

    /// Both directions of a terminal: `input` is written to `master`, `output` read from it. Either id may
    /// be 0. The end of the host's input leaves the terminal open; `EIO` on reading is the output's end.
    ///
    /// # Errors
    /// As [`Endpoint::output`].
    pub fn terminal(&self, input: StreamId, output: StreamId, master: OwnedFd) -> Result<(), EndpointError> {
        drop((input, master));
        Err(EndpointError::Stream {
            stream: output,
            what: "is not there yet",
        })
    }

    /// The offset on output `stream` that includes every byte written to its pipe or terminal before this
    /// call: what `Wait` answers once its process has ended. 0 for an unknown or closed stream. Never blocks.
    #[must_use]
    pub fn drain(&self, stream: StreamId) -> u64 {
        let _ = stream;
        0
    }

    /// Ends `stream` from this side: an output as if its writers had closed it (what was read is still
    /// delivered), an input as if its reader had closed it. Unknown is fine.
    pub fn finish(&self, stream: StreamId) {
        let _ = stream;
    }
}
