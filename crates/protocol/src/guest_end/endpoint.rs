//! The agent's handle on the wire. See the module header of `guest_end`.

use super::mux::{Command, Mailbox, Mux, Parts};
use crate::StreamId;
use crate::api::agent::Hello;
use crate::api::agent_ttrpc::{Agent, create_agent};
use rustix::event::{EventfdFlags, epoll, eventfd};
use rustix::fs::OFlags;
use std::collections::BTreeSet;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;
use tokio::sync::mpsc::unbounded_channel;
use ttrpc::r#async::Server;
use ttrpc::r#async::transport::Listener;

/// For one round of the port thread.
const DRAIN_DEADLINE: Duration = Duration::from_secs(60);

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
        source: io::Error,
    },
    /// The ttrpc server did not start.
    #[error("start the ttrpc server")]
    Server(#[source] ttrpc::Error),
    /// [`Endpoint::serve`] was called twice.
    #[error("the ports are being served already")]
    Serving,
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
#[derive(Clone)]
pub struct Endpoint(Arc<Shared>);

struct Shared {
    mailbox: Arc<Mailbox>,
    /// Ids ever connected: each is used once.
    used: Mutex<BTreeSet<StreamId>>,
    /// Until `serve`.
    ports: Mutex<Option<Ports>>,
    /// Kept: dropping it ends the connections.
    server: Mutex<Option<Server>>,
}

struct Ports {
    control: OwnedFd,
    data: OwnedFd,
    hello: Hello,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.mailbox.post(Command::Stop);
    }
}

impl std::fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Endpoint")
            .field("mailbox", &self.0.mailbox)
            .finish_non_exhaustive()
    }
}

impl Endpoint {
    /// Takes the two devices; nothing is said to the host until [`Endpoint::serve`].
    ///
    /// # Errors
    /// [`EndpointError::Io`] when eventfd or `O_NONBLOCK` fail.
    pub fn new(control: OwnedFd, data: OwnedFd, hello: Hello) -> Result<Self, EndpointError> {
        nonblocking(&control)?;
        nonblocking(&data)?;
        let event = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)
            .map_err(|e| failed("make an eventfd", e.into()))?;
        Ok(Self(Arc::new(Shared {
            mailbox: Arc::new(Mailbox::new(event)),
            used: Mutex::new(BTreeSet::new()),
            ports: Mutex::new(Some(Ports { control, data, hello })),
            server: Mutex::new(None),
        })))
    }

    /// Starts the port thread and the ttrpc server on the current tokio runtime; returns at once.
    /// The future of a method that is running when the host goes away is dropped: what must not stay half done is not to
    /// be done by the future itself.
    ///
    /// # Errors
    /// [`EndpointError::Io`] when epoll or the thread cannot be had, [`EndpointError::Serving`] on a second call.
    pub async fn serve(&self, service: Arc<dyn Agent + Send + Sync>) -> Result<(), EndpointError> {
        let ports = locked(&self.0.ports).take().ok_or(EndpointError::Serving)?;
        let epoll = epoll::create(epoll::CreateFlags::CLOEXEC)
            .map_err(|e| failed("make an epoll instance", e.into()))?;
        let (accepted, mut connections) = unbounded_channel();
        let parts = Parts {
            epoll,
            mailbox: Arc::clone(&self.0.mailbox),
            control: Arc::new(ports.control),
            data: Arc::new(ports.data),
            accepted,
        };
        let mux = Mux::new(parts, &ports.hello).map_err(|e| failed("watch the ports", e))?;
        let incoming =
            futures::stream::poll_fn(move |cx| connections.poll_recv(cx).map(|c| c.map(io::Result::Ok)));
        let mut server = Server::new()
            .register_service(create_agent(service))
            .add_listener(Listener::new(incoming));
        server.start().await.map_err(EndpointError::Server)?;
        *locked(&self.0.server) = Some(server);
        std::thread::Builder::new()
            .name("ports".to_owned())
            .stack_size(128 * 1024)
            .spawn(move || {
                if let Err(error) = mux.run() {
                    tracing::error!(%error, "the port thread ended");
                }
            })
            .map_err(|e| failed("start the port thread", e))?;
        Ok(())
    }

    /// Sends what comes out of `pipe` (read end, made `O_NONBLOCK`) on `stream` until its end of file.
    ///
    /// # Errors
    /// [`EndpointError::Stream`] when the id is 0 or was used before, [`EndpointError::Io`].
    pub fn output(&self, stream: StreamId, pipe: OwnedFd) -> Result<(), EndpointError> {
        self.claim(&[stream])?;
        nonblocking(&pipe)?;
        self.0.mailbox.post(Command::Output(stream, pipe, false));
        Ok(())
    }

    /// Writes what the host sends on `stream` into `pipe` (write end, made `O_NONBLOCK`) and closes it
    /// at the end of the host's input.
    ///
    /// # Errors
    /// As [`Endpoint::output`].
    pub fn input(&self, stream: StreamId, pipe: OwnedFd) -> Result<(), EndpointError> {
        self.claim(&[stream])?;
        nonblocking(&pipe)?;
        self.0.mailbox.post(Command::Input(stream, pipe));
        Ok(())
    }

    /// Both directions of a terminal: `input` is written to `master`, `output` read from it. Either id may
    /// be 0. The end of the host's input leaves the terminal open; `EIO` on reading is the output's end.
    ///
    /// # Errors
    /// As [`Endpoint::output`].
    pub fn terminal(&self, input: StreamId, output: StreamId, master: OwnedFd) -> Result<(), EndpointError> {
        let ids: Vec<StreamId> = [input, output].into_iter().filter(|id| *id != 0).collect();
        self.claim(&ids)?;
        nonblocking(&master)?;
        if input != 0 {
            let same = master
                .try_clone()
                .map_err(|e| failed("duplicate a terminal", e))?;
            self.0.mailbox.post(Command::Input(input, same));
        }
        if output != 0 {
            self.0.mailbox.post(Command::Output(output, master, true));
        }
        Ok(())
    }

    /// The offset on output `stream` that includes every byte written to its pipe or terminal before this
    /// call: what `Wait` answers once its process has ended. 0 for an unknown or closed stream. Takes one
    /// round of the port thread.
    #[must_use]
    pub fn drain(&self, stream: StreamId) -> u64 {
        if stream == 0 {
            return 0;
        }
        let (answer, offset) = mpsc::sync_channel(1);
        self.0.mailbox.post(Command::Drain(stream, answer));
        // Without an answer the thread is gone or was never started, and nothing is sent then.
        offset.recv_timeout(DRAIN_DEADLINE).unwrap_or(0)
    }

    /// Ends `stream` from this side: an output as if its writers had closed it (what is there is still
    /// delivered), an input as if its reader had closed it. Unknown is fine.
    pub fn finish(&self, stream: StreamId) {
        if stream != 0 {
            self.0.mailbox.post(Command::Finish(stream));
        }
    }

    fn claim(&self, streams: &[StreamId]) -> Result<(), EndpointError> {
        let mut used = locked(&self.0.used);
        for stream in streams {
            let what = match stream {
                0 => "cannot be connected: ids start at 1",
                _ if used.contains(stream) => "was connected before",
                _ => continue,
            };
            return Err(EndpointError::Stream {
                stream: *stream,
                what,
            });
        }
        used.extend(streams);
        Ok(())
    }
}

fn locked<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

const fn failed(what: &'static str, source: io::Error) -> EndpointError {
    EndpointError::Io { what, source }
}

fn nonblocking(fd: &OwnedFd) -> Result<(), EndpointError> {
    rustix::fs::fcntl_getfl(fd)
        .and_then(|flags| rustix::fs::fcntl_setfl(fd, flags | OFlags::NONBLOCK))
        .map_err(|e| failed("set O_NONBLOCK", e.into()))
}
