//! The verb's side: starting a stub and introducing it to the supervisor.
//!
//! Owns: the stub until the verb lets it go: dropping a [`Stub`] kills it. Never: waits without a deadline.

use super::order::{self, CHANNEL_FD, CONNECTION_FD, Go, JOIN_FD, LOG_FD, NULL_FD, Order, RENEW_FD, Report};
use super::request::{Handover, Namespaces, NetworkChoice, Stdio, StubRequest};
use crate::{Client, Message};
use bulkhead_host::netns::{Netns, NetnsError};
use bulkhead_host::process::{self, Child, Exit, IdentityError, MARKER, Namespace, Spawn, SpawnError};
use bulkhead_host::pty;
use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind, HostProcess, ProcessKey};
use bulkhead_sandbox::{Command, StdioSet};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Building the view is some tens of mounts; these machines may be slow.
const READY_DEADLINE: Duration = Duration::from_secs(60);

/// The supervisor answers an `Attach` without waiting for the VM.
const ATTACH_DEADLINE: Duration = Duration::from_secs(60);

/// A killed process is gone at once unless the kernel holds it.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// Why there is no stub. Nothing of it is left.
#[derive(Debug, thiserror::Error)]
pub enum StubError {
    /// The supervisor's socket does not answer.
    #[error("connecting to the supervisor at {}", path.display())]
    Connect {
        /// The socket.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The spec's network namespace cannot be used.
    #[error(transparent)]
    Netns(#[from] NetnsError),
    /// The container's own stub is gone, so nothing can join it.
    #[error("the container's stub cannot be joined")]
    Join(#[from] IdentityError),
    /// The process could not be started.
    #[error("starting the stub")]
    Spawn(#[from] SpawnError),
    /// The stub said why it could not begin.
    #[error("{0}")]
    Stub(Failure),
    /// The stub ended, or did not answer, while it was needed.
    #[error("the stub: {step}")]
    Lost {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The supervisor refused it.
    #[error("{0}")]
    Refused(Failure),
}

impl StubError {
    /// As users and clients see it.
    #[must_use]
    pub fn to_failure(&self) -> Failure {
        match self {
            Self::Stub(failure) | Self::Refused(failure) => failure.clone(),
            Self::Netns(_) => Failure::from_chain(FailureKind::InvalidArgument, self),
            Self::Join(_) => Failure::from_chain(FailureKind::FailedPrecondition, self),
            Self::Connect { .. } => Failure::from_chain(FailureKind::Unavailable, self),
            Self::Spawn(_) | Self::Lost { .. } => Failure::from_chain(FailureKind::Internal, self),
        }
    }
}

/// A stub at work. Dropping it kills it, which kills its process; [`Stub::leave`] does not.
#[derive(Debug)]
pub struct Stub {
    child: Option<Child>,
    process: HostProcess,
    /// What its view leaves out: for the log.
    pub refusals: Vec<String>,
}

impl Stub {
    /// The process whose pid is the container's on the host.
    #[must_use]
    pub fn process(&self) -> HostProcess {
        self.process
    }

    /// Waits at most `within` for its end; its exit status is the guest process's (128 + n for signal n).
    ///
    /// # Errors
    /// What poll(2) and waitid(2) report.
    pub fn wait(&self, within: Duration) -> io::Result<Option<u8>> {
        let Some(child) = &self.child else { return Ok(None) };
        Ok(child.wait(within)?.map(|exit| match exit {
            Exit::Code(code) => u8::try_from(code).unwrap_or(super::LOST),
            Exit::Signal(signal) => u8::try_from(128 + signal).unwrap_or(super::LOST),
        }))
    }

    /// Sends it a signal, which it forwards.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) reports.
    pub fn signal(&self, signal: i32) -> io::Result<()> {
        self.child.as_ref().map_or(Ok(()), |child| child.signal(signal))
    }

    /// Lets it go on without this process.
    pub fn leave(mut self) -> HostProcess {
        self.child = None;
        self.process
    }

    /// Its pidfd, readable when it has ended.
    #[must_use]
    pub fn pidfd(&self) -> Option<BorrowedFd<'_>> {
        self.child.as_ref().map(AsFd::as_fd)
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        if let Some(child) = &self.child {
            // Nothing to be done about one the kernel does not let die.
            let _ = child.kill_and_wait(KILL_DEADLINE);
        }
    }
}

/// Starts a stub, waits until its namespaces are complete, and attaches it to the supervisor.
///
/// # Errors
/// [`StubError`]; nothing is left then.
pub fn spawn(request: StubRequest) -> Result<Stub, StubError> {
    let lost = |step| move |source| StubError::Lost { step, source };
    let mut client = Client::connect(&request.control_socket).map_err(|source| StubError::Connect {
        path: request.control_socket.clone(),
        source,
    })?;
    let (channel, far) = UnixStream::pair().map_err(lost("making a channel"))?;
    let connection = client
        .stream()
        .as_fd()
        .try_clone_to_owned()
        .map_err(lost("duplicating the connection"))?;
    let stdio = match request.handover {
        Some(handover) => handover,
        None => duplicates(&request.stdio).map_err(lost("duplicating its streams"))?,
    };
    let mut order = Order {
        key: request.key.clone(),
        terminal: matches!(request.stdio, Stdio::Terminal(_)),
        log: request.log.is_some(),
        view: None,
    };

    let program = request.program.unwrap_or_else(|| PathBuf::from("/proc/self/exe"));
    let program =
        File::open(&program).map_err(|source| StubError::Spawn(SpawnError::Program { program, source }))?;
    // Opened here: a descriptor from the stub's own copy of the mounts would keep that copy in memory.
    let null = File::options()
        .read(true)
        .write(true)
        .open("/dev/null")
        .map_err(lost("opening /dev/null"))?;
    let renew = listen_for_successors(&request.control_socket, &request.key)?;
    let mut spawn = Spawn::from_fd(program.into(), "bulkhead")
        .args(["stub", "3"])
        .arg(request.key.to_string())
        .env(MARKER, &request.marker)
        .fd(far.into(), CHANNEL_FD)
        .fd(connection, CONNECTION_FD)
        .fd(null.into(), NULL_FD)
        .fd(renew.into(), RENEW_FD)
        .directory("/")
        .new_session();
    spawn = give_streams(spawn, request.stdio);
    if let Some(log) = request.log {
        spawn = spawn.fd(log, LOG_FD);
    }
    spawn = place(spawn, request.namespaces, &mut order)?;
    let started = spawn.spawn()?;
    let mut stub = Stub {
        process: HostProcess {
            pid: started.child.pid(),
            start_time: started.child.start_time(),
        },
        child: Some(started.child),
        refusals: Vec::new(),
    };
    introduce(&mut stub, &order, &channel, &mut client, &stdio)?;
    Ok(stub)
}

/// The socket on which the stub is found by a supervisor that takes over.
fn listen_for_successors(control_socket: &Path, key: &ProcessKey) -> Result<UnixListener, StubError> {
    let sockets = control_socket.parent().unwrap_or(Path::new("/")).to_owned();
    let path = bulkhead_sandbox::layout::stub_socket(&sockets, key);
    // One of an earlier process by this name, which has ended: an id in use is refused by the supervisor.
    let _ = std::fs::remove_file(&path);
    bulkhead_host::fdpass::listen(&path).map_err(|error| StubError::Lost {
        step: "listening for a fresh supervisor",
        source: io::Error::other(error),
    })
}

fn give_streams(spawn: Spawn, stdio: Stdio) -> Spawn {
    match stdio {
        Stdio::Terminal(slave) => spawn.fd(slave, 0),
        Stdio::Streams {
            stdin,
            stdout,
            stderr,
        } => [stdin, stdout, stderr]
            .into_iter()
            .zip(0..)
            .fold(spawn, |spawn, (fd, number)| match fd {
                Some(fd) => spawn.fd(fd, number),
                None => spawn,
            }),
    }
}

/// The namespaces it starts in; the rest it enters by its order.
fn place(spawn: Spawn, namespaces: Namespaces, order: &mut Order) -> Result<Spawn, StubError> {
    let lost = |step| move |source| StubError::Lost { step, source };
    match namespaces {
        Namespaces::New { view, network } => {
            order.view = Some(view);
            let spawn = [Namespace::Pid, Namespace::Mount, Namespace::Ipc, Namespace::Uts]
                .into_iter()
                .fold(spawn, Spawn::unshare);
            Ok(match network {
                NetworkChoice::Inherit => spawn,
                NetworkChoice::New => spawn.unshare(Namespace::Network),
                NetworkChoice::Path(path) => {
                    let netns = Netns::open(&path)?;
                    let fd = netns.to_fd().map_err(lost("duplicating a namespace"))?;
                    spawn.enter(Namespace::Network, fd)
                }
            })
        }
        Namespaces::Join(container) => {
            // Only the pid namespace before exec: the program and its loader are the host's, so the mount
            // namespace comes after.
            let pidfd = process::open_exact(container.pid, container.start_time)?;
            let again = pidfd.try_clone().map_err(lost("duplicating a pidfd"))?;
            Ok(spawn.enter(Namespace::Pid, pidfd).fd(again, JOIN_FD))
        }
    }
}

/// Gives the stub its order, waits until it is ready, attaches it and lets it go to work.
fn introduce(
    stub: &mut Stub,
    order: &Order,
    channel: &UnixStream,
    client: &mut Client,
    stdio: &Handover,
) -> Result<(), StubError> {
    let lost = |step| move |source| StubError::Lost { step, source };
    channel
        .set_read_timeout(Some(READY_DEADLINE))
        .and_then(|()| channel.set_write_timeout(Some(READY_DEADLINE)))
        .map_err(lost("setting a deadline"))?;
    order::send(channel, order).map_err(lost("giving it its order"))?;
    match order::receive(channel).map_err(lost("waiting until it is ready"))? {
        Report::Ready { warnings } => stub.refusals.extend(warnings),
        Report::Failed(failure) => return Err(StubError::Stub(failure)),
    }
    let attach = Command::Attach {
        key: order.key.clone(),
        stub: stub.process,
        stdio: stdio.set,
        size: stdio.size,
    };
    let fds: Vec<BorrowedFd<'_>> = stdio.fds.iter().map(AsFd::as_fd).collect();
    client.send(&attach, &fds).map_err(StubError::Refused)?;
    // Notices cannot come before the answer: the process does not exist yet.
    match client
        .receive(Some(ATTACH_DEADLINE))
        .map_err(StubError::Refused)?
    {
        Message::Ok(_) => {}
        Message::Err(failure) => return Err(StubError::Refused(failure)),
        Message::Notice(notice) => {
            return Err(StubError::Refused(Failure::new(
                FailureKind::Internal,
                format!("the supervisor answered an attach with the notice {notice:?}"),
            )));
        }
    }
    order::send(channel, &Go { attach }).map_err(lost("sending it to work"))
}

/// What goes to the supervisor when the stub has the streams too.
fn duplicates(stdio: &Stdio) -> io::Result<Handover> {
    let mut set = StdioSet::default();
    let mut fds = Vec::new();
    let mut size = None;
    match stdio {
        Stdio::Terminal(slave) => {
            set.terminal = true;
            size = pty::window_size(slave.as_fd())
                .ok()
                .filter(|size| size.columns > 0 && size.rows > 0)
                .map(|size| (size.columns, size.rows));
            fds.push(slave.try_clone()?);
        }
        Stdio::Streams {
            stdin,
            stdout,
            stderr,
        } => {
            set.stdin = stdin.is_some();
            set.stdout = stdout.is_some();
            set.stderr = stderr.is_some();
            for fd in [stdin, stdout, stderr].into_iter().flatten() {
                fds.push(fd.try_clone()?);
            }
        }
    }
    Ok(Handover { set, fds, size })
}

/// For the reports of the stub: an error and its causes in one line.
pub(super) fn internal(error: &dyn std::error::Error) -> Failure {
    Failure::new(FailureKind::Internal, format!("the stub: {}", chain(error)))
}
