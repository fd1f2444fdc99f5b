//! Both ends of the wire with a model of virtio-serial between them: what is in flight when the host end closes is
//! lost, wherever a frame's boundary is.

use async_trait::async_trait;
use bulkhead_protocol::api::agent::{self, Hello};
use bulkhead_protocol::api::agent_ttrpc::Agent;
use bulkhead_protocol::guest_end::Endpoint;
use bulkhead_protocol::refusal::refuse;
use bulkhead_protocol::{Attachment, Client, GuestError, PROTOCOL_VERSION, StreamStore};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream as StdStream;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::{Notify, mpsc};
use ttrpc::r#async::TtrpcContext;

/// For anything that should happen at once; machines may be slow for minutes.
pub(crate) const SOON: Duration = Duration::from_secs(60);

/// A service that answers what a test needs.
#[derive(Default)]
pub(crate) struct FakeAgent {
    pub(crate) exited: Notify,
    pub(crate) signalled: Notify,
}

#[async_trait]
impl Agent for FakeAgent {
    async fn configure(
        &self,
        _: &TtrpcContext,
        request: agent::ConfigureRequest,
    ) -> ttrpc::Result<agent::Done> {
        assert!(!request.request_id.is_empty());
        let step = agent::Step {
            name: "mount".to_owned(),
            begin_ns: 6,
            end_ns: 7,
            ..Default::default()
        };
        let steps = agent::Steps {
            received_ns: 5,
            answered_ns: 8,
            steps: vec![step],
            ..Default::default()
        };
        Ok(agent::Done {
            steps: Some(steps).into(),
            ..Default::default()
        })
    }
    async fn exec(
        &self,
        _: &TtrpcContext,
        request: agent::ExecRequest,
    ) -> ttrpc::Result<agent::ExecResponse> {
        Err(refuse(
            bulkhead_model::FailureKind::ProgramNotFound,
            format!("exec: {:?}: executable file not found in $PATH", request.exec),
        ))
    }
    async fn signal(&self, _: &TtrpcContext, _: agent::SignalRequest) -> ttrpc::Result<agent::Empty> {
        self.signalled.notify_one();
        Ok(agent::Empty::new())
    }
    async fn wait(&self, _: &TtrpcContext, _: agent::ProcessRequest) -> ttrpc::Result<agent::WaitResponse> {
        self.exited.notified().await;
        Ok(agent::WaitResponse {
            signal: 9,
            stdout_offset: 3,
            ..Default::default()
        })
    }
}

/// One guest for the length of a test.
pub(crate) struct Wire {
    pub(crate) guest: Endpoint,
    pub(crate) agent: Arc<FakeAgent>,
    control: mpsc::Sender<UnixStream>,
    data: mpsc::Sender<UnixStream>,
}

pub(crate) fn hello() -> Hello {
    Hello {
        protocol_version: PROTOCOL_VERSION,
        kernel_release: "6.12.0-test".to_owned(),
        boot_nonce: "nonce".to_owned(),
        ..Default::default()
    }
}

impl Wire {
    pub(crate) async fn new() -> Self {
        Self::with_hello(hello()).await
    }

    pub(crate) async fn with_hello(hello: Hello) -> Self {
        let (control_guest, control) = port();
        let (data_guest, data) = port();
        let guest = Endpoint::new(control_guest, data_guest, hello).unwrap();
        let agent = Arc::new(FakeAgent::default());
        guest.serve(agent.clone()).await.unwrap();
        Self {
            guest,
            agent,
            control,
            data,
        }
    }

    /// Connects as a supervisor would.
    pub(crate) async fn attach(&self, store: StreamStore, reattach: bool) -> Result<Client, GuestError> {
        let (control, control_far) = UnixStream::pair().unwrap();
        let (data, data_far) = UnixStream::pair().unwrap();
        self.control.send(control_far).await.unwrap();
        self.data.send(data_far).await.unwrap();
        Client::connect(Attachment {
            control: owned(control),
            data: owned(data),
            store: Arc::new(store),
            reattach,
            deadline: SOON,
        })
        .await
    }

    /// Takes connections on the sockets `control` and `data` in `directory`, as QEMU does.
    pub(crate) fn listen(&self, directory: &Path) {
        for (name, plug) in [("control", &self.control), ("data", &self.data)] {
            let listener = UnixListener::bind(directory.join(name)).unwrap();
            let plug = plug.downgrade();
            tokio::spawn(async move {
                while let Ok((stream, _)) = listener.accept().await {
                    let Some(plug) = plug.upgrade() else { return };
                    plug.send(stream).await.unwrap();
                }
            });
        }
    }

    pub(crate) async fn client(&self) -> Client {
        self.attach(StreamStore::memory(), false).await.unwrap()
    }
}

fn owned(stream: UnixStream) -> OwnedFd {
    stream.into_std().unwrap().into()
}

/// The guest's device, and where host connections are plugged in.
fn port() -> (OwnedFd, mpsc::Sender<UnixStream>) {
    let (device, far) = StdStream::pair().unwrap();
    far.set_nonblocking(true).unwrap();
    let (plug, hosts) = mpsc::channel(1);
    tokio::spawn(relay(UnixStream::from_std(far).unwrap(), hosts));
    (device.into(), plug)
}

async fn relay(mut device: UnixStream, mut hosts: mpsc::Receiver<UnixStream>) {
    let mut up = vec![0; 8192];
    let mut down = vec![0; 4096];
    let mut next = hosts.recv().await;
    while let Some(mut host) = next.take() {
        loop {
            tokio::select! {
                plugged = hosts.recv() => {
                    // The machine ends, or somebody else connects after this host went away.
                    next = plugged;
                    break;
                }
                count = device.read(&mut up) => match count {
                    Ok(count) if count > 0 => {
                        if host.write_all(&up[..count]).await.is_err() {
                            break;
                        }
                    }
                    _ => return,
                },
                count = host.read(&mut down) => match count {
                    Ok(count) if count > 0 => {
                        if device.write_all(&down[..count]).await.is_err() {
                            return;
                        }
                    }
                    _ => break,
                },
            }
        }
        // In flight from the guest: gone.
        while matches!(device.try_read(&mut up), Ok(count) if count > 0) {}
        drop(host);
        if next.is_none() {
            next = hosts.recv().await;
        }
    }
}

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    rustix::pipe::pipe_with(rustix::pipe::PipeFlags::CLOEXEC).unwrap()
}

/// Runs blocking work off the runtime's threads, with a deadline.
pub(crate) async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::time::timeout(SOON, tokio::task::spawn_blocking(work))
        .await
        .expect("deadline")
        .unwrap()
}

/// Bytes that differ at every place and are cheap to make.
pub(crate) fn numbered(from: u64, count: usize) -> Vec<u8> {
    (from..from + count as u64)
        .flat_map(|n| format!("{n:09}\n").into_bytes())
        .collect()
}
