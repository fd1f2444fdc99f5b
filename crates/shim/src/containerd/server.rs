//! The shim's ttrpc server in a supervisor.
//!
//! ```text
//!  listen: socket ─► Task v2 and v3, Sandbox ─┬─────────────► open ─► … ─► finish: containerd is done, or has nothing here
//!                                             └─► ordered ─┘
//! ```
//! Messages of Task v2 and v3 are the same on the wire; only the service's name differs.
//!
//! Owns: the listening socket and how long the shim outlives its sandbox. Called by the supervisor.

use super::desk::Desk;
use super::sandbox_service::SandboxService;
use super::service::TaskService;
use super::settings::Settings;
use super::tasks::Tasks;
use bulkhead_model::{SandboxId, SandboxPlan};
use bulkhead_sandbox::{Handle, SandboxPaths};
use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use containerd_shim_protos::ttrpc;
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::UnixListener;
use tokio::sync::oneshot;

/// How long a shim without containers waits for one: containerd's next call after `start` is a create.
const FIRST_DEADLINE: Duration = Duration::from_secs(60);

/// How long a shim without sandbox and containers waits to be told to shut down.
const LAST_DEADLINE: Duration = Duration::from_secs(10);

/// How long it answers about the containers of a sandbox that is gone.
const LINGER_DEADLINE: Duration = Duration::from_secs(60);

/// How long the last events may take to reach containerd.
const FLUSH_DEADLINE: Duration = Duration::from_secs(5);

/// The services of a sandbox.
pub struct Server {
    desk: Arc<Desk>,
    settings: Settings,
    ordered: oneshot::Receiver<SandboxPlan>,
    server: ttrpc::r#async::Server,
}

impl Server {
    /// Serves on the sandbox's task socket. Needs a tokio runtime.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub async fn listen(id: &SandboxId, paths: &SandboxPaths, settings: Settings) -> io::Result<Self> {
        let listener = bulkhead_host::fdpass::listen(&paths.task_socket()).map_err(io::Error::other)?;
        listener.set_nonblocking(true)?;
        let listener = UnixListener::from_std(listener)?;
        let (desk, ordered) = Desk::new(id.clone());
        let mut server = ttrpc::r#async::Server::new().add_listener(listener.into());
        for version in ["v2", "v3"] {
            let service = TaskService {
                desk: Arc::clone(&desk),
            };
            let methods = create_task(Arc::new(service));
            let named = methods
                .into_values()
                .map(|service| (format!("containerd.task.{version}.Task"), service));
            server = server.register_service(named.collect());
        }
        let sandbox = SandboxService::new(Arc::clone(&desk), settings.clone());
        server = server.register_service(create_sandbox(Arc::new(sandbox)));
        server.start().await.map_err(io::Error::other)?;
        Ok(Self {
            desk,
            settings,
            ordered,
            server,
        })
    }

    /// What is ordered over the Sandbox service; `None` when containerd is done without an order, or sends none in time.
    pub async fn ordered(&mut self) -> Option<SandboxPlan> {
        tokio::select! {
            plan = &mut self.ordered => plan.ok(),
            () = self.desk.over.cancelled() => None,
            () = tokio::time::sleep(FIRST_DEADLINE) => None,
        }
    }

    /// The sandbox is there: answers for it from now on.
    pub fn open(&self, handle: Handle, paths: SandboxPaths, plan: SandboxPlan) {
        let tasks = Tasks::new(handle, paths, plan, self.settings.clone());
        tokio::spawn(Arc::clone(&tasks).follow_memory());
        tokio::spawn(give_up(Arc::clone(&tasks)));
        self.desk.open(tasks);
    }

    /// Closes the socket of a server whose sandbox was never ordered.
    pub async fn close(mut self) {
        if let Err(error) = self.server.shutdown().await {
            tracing::debug!(%error, "ending the task server");
        }
    }

    /// The sandbox is gone: answers until containerd is done.
    pub async fn finish(self) {
        if let Ok(tasks) = self.desk.tasks() {
            if let Some(pause) = tasks.pause()
                && let super::task::Body::Pause(process) = &pause.body
            {
                // Without its sandbox it stands for nothing.
                let _ = process.signal(nix::libc::SIGKILL);
            }
            let linger = async {
                tokio::select! {
                    () = tasks.idle(LAST_DEADLINE) => {}
                    () = tokio::time::sleep(LINGER_DEADLINE) => {}
                }
            };
            tokio::select! {
                () = self.desk.over.cancelled() => {}
                () = linger => {}
            }
            let _ = tokio::time::timeout(FLUSH_DEADLINE, tasks.publisher.flush()).await;
        }
        self.close().await;
    }
}

/// A sandbox that containerd has nothing in, and did not shut down, is taken down.
async fn give_up(tasks: Arc<Tasks>) {
    tasks.idle(FIRST_DEADLINE).await;
    if tasks.kept() {
        return;
    }
    tracing::warn!("containerd has no container here: taking the sandbox down");
    if let Err(failure) = tasks.shut_down().await {
        tracing::error!(error = %failure, "taking the sandbox down");
    }
}
