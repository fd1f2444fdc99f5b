//! The agent as the engine calls it: [`Guest`] over the two ports.
//!
//! Owns: one connection: its deadlines, the count of calls, the end of everything that waits. Never: reconnects; a
//! new connection is a new `Client` on the same `StreamStore`. Called by `sandbox`.

use super::control::ControlStream;
use super::data::DataPort;
use super::greeting::{self, greet};
use super::{StreamStore, convert};
use crate::api::agent::{
    self, ContainerRequest, Empty, ExecRequest, NextEventsRequest, OnlineRequest, ProcessRequest,
    ResizeTerminalRequest, SignalRequest, UpdateRequest,
};
use crate::api::agent_ttrpc::AgentClient;
use crate::guest::{
    Guest, GuestContainer, GuestError, GuestEvent, GuestExit, GuestHello, GuestIdentity, GuestProcess,
    GuestStdio, GuestSteps, StreamId,
};
use crate::network::GuestNetwork;
use crate::refusal::kind_of;
use async_trait::async_trait;
use bulkhead_model::{ContainerId, ProcessKey, stats::ContainerStats};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;
use tokio::net::UnixStream;
use tokio::sync::watch;
use ttrpc::r#async::transport::Socket;
use ttrpc::context::Context;

/// For what only looks at or pokes something.
const SHORT: Duration = Duration::from_secs(30);
/// For what mounts, forks or waits for devices.
const LONG: Duration = Duration::from_secs(120);
/// A mount is some 200 bytes of a spec and takes 7 ms in a translated guest, and a multiple of that on a busy host or
/// among thousands of others.
const PER_SPEC_BYTE: Duration = Duration::from_micros(250);

/// What a [`Client`] is made from.
#[derive(Debug)]
pub struct Attachment {
    /// Connected unix socket of the control port's chardev.
    pub control: OwnedFd,
    /// Connected unix socket of the data port's chardev.
    pub data: OwnedFd,
    /// What earlier connections to this guest left.
    pub store: Arc<StreamStore>,
    /// Whether somebody may have left this guest in mid-sentence: a connection that broke, or a supervisor that
    /// was killed. Not for a guest restored from a template whose maker had said all.
    pub reattach: bool,
    /// For the guest to come up and say hello.
    pub deadline: Duration,
}

/// One connection to the agent of one sandbox. Dropping it ends all its streams where they are.
#[derive(Debug)]
pub struct Client {
    hello: GuestHello,
    agent: Caller,
    data: Arc<DataPort>,
    gone: Arc<watch::Sender<bool>>,
    epoch: u64,
    calls: AtomicU64,
    requests: AtomicU64,
    steps: Mutex<Option<GuestSteps>>,
}

struct Caller(AgentClient);

impl std::fmt::Debug for Caller {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("AgentClient")
    }
}

impl Client {
    /// Says hello on both ports and waits for the guest's answer, which comes when its agent is up. Needs a tokio
    /// runtime; the client's tasks live on it.
    ///
    /// # Errors
    /// [`GuestError::Deadline`], [`GuestError::Gone`] when a socket closes (the VMM ended) or cannot be used,
    /// [`GuestError::Protocol`] when the guest is of another version.
    pub async fn connect(attachment: Attachment) -> Result<Self, GuestError> {
        let epoch = nonce()?;
        let control = socket(attachment.control)?;
        let data = socket(attachment.data)?;
        let both = async {
            tokio::try_join!(
                greet(control, epoch, attachment.reattach),
                greet(data, epoch, attachment.reattach)
            )
        };
        let (control, data) = tokio::time::timeout(attachment.deadline, both)
            .await
            .map_err(|_| GuestError::Deadline {
                call: greeting::CALL,
                seconds: attachment.deadline.as_secs(),
            })??;
        let hello = convert::hello(control.hello.clone());
        let gone = Arc::new(watch::Sender::new(false));
        let stream = ControlStream::new(control, epoch, Arc::clone(&gone));
        let agent = AgentClient::new(ttrpc::r#async::Client::new(Socket::new(stream)));
        let data = DataPort::start(data, epoch, attachment.store, Arc::clone(&gone));
        Ok(Self {
            hello,
            agent: Caller(agent),
            data,
            gone,
            epoch,
            calls: AtomicU64::new(0),
            requests: AtomicU64::new(0),
            steps: Mutex::default(),
        })
    }

    /// Resolves when the connection has ended, for whatever reason.
    pub async fn gone(&self) {
        let mut watcher = self.gone.subscribe();
        // An error needs every sender gone, and `self` holds one.
        let _ = watcher.wait_for(|gone| *gone).await;
    }

    /// Ends the connection and waits until nothing of it touches the store or a user's descriptor any more: to be
    /// called before a new connection on the same store is made in this process.
    pub async fn close(&self) {
        self.gone.send_replace(true);
        self.data.close().await;
    }

    fn request_id(&self) -> String {
        let number = self.requests.fetch_add(1, Ordering::Relaxed);
        format!("{:x}-{number}", self.epoch)
    }

    /// Runs one call to its answer, its deadline or the end of the connection.
    async fn call<T>(
        &self,
        call: &'static str,
        deadline: Option<Duration>,
        answer: impl Future<Output = ttrpc::Result<T>>,
    ) -> Result<T, GuestError> {
        let late = async {
            match deadline {
                Some(deadline) => tokio::time::sleep(deadline).await,
                None => std::future::pending().await,
            }
        };
        let result = tokio::select! {
            biased;
            result = answer => result,
            () = self.gone() => return Err(GuestError::Gone { call }),
            () = late => {
                let seconds = deadline.unwrap_or_default().as_secs();
                return Err(GuestError::Deadline { call, seconds });
            }
        };
        match result {
            Ok(value) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Ok(value)
            }
            Err(ttrpc::Error::RpcStatus(status)) => {
                self.calls.fetch_add(1, Ordering::Relaxed);
                Err(GuestError::Refused {
                    kind: kind_of(&status),
                    message: status.message,
                })
            }
            Err(ttrpc::Error::Others(what)) if !*self.gone.borrow() => Err(GuestError::Protocol { what }),
            Err(_) => Err(GuestError::Gone { call }),
        }
    }

    fn keep_steps(&self, steps: protobuf::MessageField<agent::Steps>) {
        *self.steps.lock().unwrap_or_else(PoisonError::into_inner) = convert::steps(steps);
    }

    fn container(&self, id: &ContainerId) -> ContainerRequest {
        ContainerRequest {
            request_id: self.request_id(),
            container: id.as_str().to_owned(),
            ..Default::default()
        }
    }

    fn process(&self, key: &ProcessKey) -> ProcessRequest {
        let (container, exec) = convert::key(key);
        ProcessRequest {
            request_id: self.request_id(),
            container,
            exec,
            ..Default::default()
        }
    }
}

impl Drop for Client {
    fn drop(&mut self) {
        self.data.abort();
    }
}

#[async_trait]
impl Guest for Client {
    fn hello(&self) -> &GuestHello {
        &self.hello
    }

    fn calls(&self) -> u64 {
        self.calls.load(Ordering::Relaxed)
    }

    fn take_steps(&self) -> Option<GuestSteps> {
        self.steps.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    async fn configure(&self, identity: GuestIdentity) -> Result<(), GuestError> {
        let request = convert::configure(self.request_id(), identity);
        let answer = self.agent.0.configure(Context::default(), &request);
        let done = self.call("configure", Some(LONG), answer).await?;
        self.keep_steps(done.steps);
        Ok(())
    }

    async fn create_container(&self, container: GuestContainer) -> Result<i32, GuestError> {
        let deadline = LONG + PER_SPEC_BYTE * u32::try_from(container.spec.len()).unwrap_or(u32::MAX);
        let request = convert::create(self.request_id(), container);
        let answer = self.agent.0.create_container(Context::default(), &request);
        let response = self.call("create_container", Some(deadline), answer).await?;
        self.keep_steps(response.steps);
        Ok(response.guest_pid)
    }

    async fn start_container(&self, id: &ContainerId) -> Result<(), GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.start_container(Context::default(), &request);
        let done = self.call("start_container", Some(LONG), answer).await?;
        self.keep_steps(done.steps);
        Ok(())
    }

    async fn remove_container(&self, id: &ContainerId) -> Result<(), GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.remove_container(Context::default(), &request);
        match self.call("remove_container", Some(LONG), answer).await {
            Err(GuestError::Refused {
                kind: bulkhead_model::FailureKind::NotFound,
                ..
            }) => Ok(()),
            other => other.map(|done| self.keep_steps(done.steps)),
        }
    }

    async fn exec(&self, key: &ProcessKey, process: Vec<u8>, stdio: GuestStdio) -> Result<i32, GuestError> {
        let (container, exec) = convert::key(key);
        let request = ExecRequest {
            request_id: self.request_id(),
            container,
            exec,
            process,
            stdio: convert::stdio(stdio),
            ..Default::default()
        };
        let answer = self.agent.0.exec(Context::default(), &request);
        let response = self.call("exec", Some(LONG), answer).await?;
        self.keep_steps(response.steps);
        Ok(response.guest_pid)
    }

    async fn signal(&self, key: &ProcessKey, signal: i32, all: bool) -> Result<(), GuestError> {
        let (container, exec) = convert::key(key);
        let request = SignalRequest {
            request_id: self.request_id(),
            container,
            exec,
            signal,
            all,
            ..Default::default()
        };
        let answer = self.agent.0.signal(Context::default(), &request);
        self.call("signal", Some(SHORT), answer).await.map(drop)
    }

    async fn wait(&self, key: &ProcessKey) -> Result<GuestExit, GuestError> {
        let request = self.process(key);
        let answer = self.agent.0.wait(Context::default(), &request);
        convert::exit(&self.call("wait", None, answer).await?)
    }

    async fn delivered(&self, stream: StreamId, offset: u64) -> Result<(), GuestError> {
        if stream == 0 {
            return Ok(());
        }
        let progress = self.data.mark(stream).wait(|p| p.delivered >= offset).await;
        if progress.ended || progress.delivered >= offset {
            return Ok(());
        }
        Err(GuestError::Gone { call: "delivered" })
    }

    async fn forget(&self, key: &ProcessKey) -> Result<(), GuestError> {
        let request = self.process(key);
        let answer = self.agent.0.forget_process(Context::default(), &request);
        self.call("forget_process", Some(SHORT), answer).await.map(drop)
    }

    async fn resize(&self, key: &ProcessKey, columns: u16, rows: u16) -> Result<(), GuestError> {
        let (container, exec) = convert::key(key);
        let request = ResizeTerminalRequest {
            container,
            exec,
            columns: columns.into(),
            rows: rows.into(),
            ..Default::default()
        };
        let answer = self.agent.0.resize_terminal(Context::default(), &request);
        self.call("resize_terminal", Some(SHORT), answer).await.map(drop)
    }

    async fn processes(&self, id: &ContainerId) -> Result<Vec<GuestProcess>, GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.list_processes(Context::default(), &request);
        let response = self.call("list_processes", Some(SHORT), answer).await?;
        Ok(response.processes.into_iter().map(convert::process).collect())
    }

    async fn pause(&self, id: &ContainerId) -> Result<(), GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.pause(Context::default(), &request);
        self.call("pause", Some(SHORT), answer).await.map(drop)
    }

    async fn resume(&self, id: &ContainerId) -> Result<(), GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.resume(Context::default(), &request);
        self.call("resume", Some(SHORT), answer).await.map(drop)
    }

    async fn update(&self, id: &ContainerId, resources: Vec<u8>) -> Result<(), GuestError> {
        let request = UpdateRequest {
            request_id: self.request_id(),
            container: id.as_str().to_owned(),
            resources,
            ..Default::default()
        };
        let answer = self.agent.0.update(Context::default(), &request);
        self.call("update", Some(SHORT), answer).await.map(drop)
    }

    async fn stats(&self, id: &ContainerId) -> Result<ContainerStats, GuestError> {
        let request = self.container(id);
        let answer = self.agent.0.stats(Context::default(), &request);
        let response = self.call("stats", Some(SHORT), answer).await?;
        serde_json::from_slice(&response.stats).map_err(|error| GuestError::Protocol {
            what: format!("its statistics cannot be read: {error}"),
        })
    }

    async fn online(&self, cpus: u32, memory: bool) -> Result<(u32, u64), GuestError> {
        let request = OnlineRequest {
            request_id: self.request_id(),
            cpus,
            memory,
            ..Default::default()
        };
        let answer = self.agent.0.online(Context::default(), &request);
        let response = self.call("online", Some(LONG), answer).await?;
        Ok((response.cpus, response.memory_bytes))
    }

    async fn next_events(&self, after: u64) -> Result<Vec<(u64, GuestEvent)>, GuestError> {
        let request = NextEventsRequest {
            after,
            ..Default::default()
        };
        let answer = self.agent.0.next_events(Context::default(), &request);
        let response = self.call("next_events", None, answer).await?;
        Ok(response.events.into_iter().filter_map(convert::event).collect())
    }

    async fn update_network(&self, network: GuestNetwork) -> Result<(), GuestError> {
        let request = network.request(self.request_id());
        let answer = self.agent.0.update_network(Context::default(), &request);
        self.call("update_network", Some(LONG), answer).await.map(drop)
    }

    async fn rehearse(&self) -> Result<(), GuestError> {
        let request = Empty::new();
        let answer = self.agent.0.rehearse(Context::default(), &request);
        self.call("rehearse", Some(LONG), answer).await.map(drop)
    }

    async fn sync(&self) -> Result<(), GuestError> {
        let request = Empty::default();
        let answer = self.agent.0.sync(Context::default(), &request);
        self.call("sync", Some(LONG), answer).await.map(drop)
    }

    fn connect_output(&self, stream: StreamId, sink: OwnedFd) -> Result<(), GuestError> {
        check(stream)?;
        self.data
            .output(stream, sink)
            .map_err(|error| failed(stream, error))
    }

    fn connect_input(&self, stream: StreamId, source: OwnedFd) -> Result<(), GuestError> {
        check(stream)?;
        self.data
            .input(stream, source)
            .map_err(|error| failed(stream, error))
    }

    fn close_input(&self, stream: StreamId) {
        self.data.end_input(stream);
    }

    fn disconnect(&self, stream: StreamId) {
        self.data.disconnect(stream);
    }

    async fn stream_ended(&self, stream: StreamId) {
        if stream != 0 {
            self.data.mark(stream).wait(|_| false).await;
        }
    }
}

fn check(stream: StreamId) -> Result<(), GuestError> {
    if stream == 0 {
        let error = io::Error::new(io::ErrorKind::InvalidInput, "the id is 0: ids start at 1");
        return Err(failed(stream, error));
    }
    Ok(())
}

fn failed(stream: StreamId, error: io::Error) -> GuestError {
    GuestError::Stream {
        stream,
        source: Arc::new(error),
    }
}

fn socket(fd: OwnedFd) -> Result<UnixStream, GuestError> {
    let stream = std::os::unix::net::UnixStream::from(fd);
    stream
        .set_nonblocking(true)
        .and_then(|()| UnixStream::from_std(stream))
        .map_err(|error| {
            tracing::debug!(%error, "a port's socket cannot be used");
            GuestError::Gone { call: greeting::CALL }
        })
}

/// A number no other connection has had.
fn nonce() -> Result<u64, GuestError> {
    let mut bytes = [0u8; 8];
    let mut filled = 0;
    while filled < bytes.len() {
        let flags = rustix::rand::GetRandomFlags::empty();
        filled += rustix::io::retry_on_intr(|| rustix::rand::getrandom(&mut bytes[filled..], flags))
            .map_err(|error| GuestError::Protocol {
                what: format!("no random numbers for an epoch: {error}"),
            })?;
    }
    Ok(u64::from_le_bytes(bytes))
}
