//! The Sandbox service, for a containerd that makes sandboxes by it and not by a container that stands for the pod.
//!
//! Owns: the messages. Never: what they cause. Called by the ttrpc server.

use super::desk::Desk;
use super::metrics;
use super::ordered;
use super::settings::Settings;
use super::status;
use super::tasks::{Tasks, blocking, now_ns, timestamp};
use async_trait::async_trait;
use bulkhead_model::{Failure, FailureKind, State};
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, CreateSandboxResponse, PingRequest, PingResponse, PlatformRequest,
    PlatformResponse, SandboxMetricsRequest, SandboxMetricsResponse, SandboxStatusRequest,
    SandboxStatusResponse, ShutdownSandboxRequest, ShutdownSandboxResponse, StartSandboxRequest,
    StartSandboxResponse, StopSandboxRequest, StopSandboxResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use containerd_shim_protos::sandbox_async::Sandbox;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use std::sync::Arc;

/// The service of one sandbox.
#[derive(Clone)]
pub(super) struct SandboxService {
    desk: Arc<Desk>,
    settings: Arc<Settings>,
    created_ns: u64,
}

impl SandboxService {
    pub(super) fn new(desk: Arc<Desk>, settings: Settings) -> Self {
        Self {
            desk,
            settings: Arc::new(settings),
            created_ns: now_ns(),
        }
    }

    /// Of this sandbox, by whatever state it is in.
    fn check(&self, id: &str) -> ttrpc::Result<()> {
        if id == self.desk.id.as_str() {
            return Ok(());
        }
        Err(status::error(&Failure::new(
            FailureKind::NotFound,
            format!("sandbox {id} does not exist: this is {}", self.desk.id),
        )))
    }

    /// The containers of a sandbox that was created.
    fn of(&self, id: &str) -> ttrpc::Result<&Arc<Tasks>> {
        self.check(id)?;
        self.desk.tasks().map_err(|failure| status::error(&failure))
    }

    async fn stop(&self) -> ttrpc::Result<()> {
        match self.desk.tasks() {
            Ok(tasks) => tasks.shut_down().await.map_err(|failure| status::error(&failure)),
            // What was never created is stopped.
            Err(_) => Ok(()),
        }
    }

    /// A sandbox that is there was made when this shim started, from its bundle; any other is made now.
    async fn create(&self, request: CreateSandboxRequest) -> Result<(), Failure> {
        if self.desk.tasks().is_err() {
            let (id, settings) = (self.desk.id.clone(), Arc::clone(&self.settings));
            let plan = blocking(move || ordered::plan(&id, &request, &settings)).await?;
            self.desk.order(plan).await?;
        }
        // It may stay without containers from now on.
        self.desk.tasks().map(|tasks| tasks.keep())
    }
}

/// As containerd's own sandboxes call them.
const fn word(state: State) -> &'static str {
    match state {
        State::Ready | State::Running | State::Paused => "SANDBOX_READY",
        State::Stopped => "SANDBOX_NOTREADY",
    }
}

#[async_trait]
impl Sandbox for SandboxService {
    async fn create_sandbox(
        &self,
        _: &TtrpcContext,
        request: CreateSandboxRequest,
    ) -> ttrpc::Result<CreateSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.create(request)
            .await
            .map_err(|failure| status::error(&failure))?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.of(&request.sandbox_id)?
            .booted()
            .await
            .map_err(|failure| status::error(&failure))?;
        Ok(StartSandboxResponse {
            pid: std::process::id(),
            created_at: timestamp(self.created_ns),
            ..StartSandboxResponse::default()
        })
    }

    async fn platform(&self, _: &TtrpcContext, request: PlatformRequest) -> ttrpc::Result<PlatformResponse> {
        self.check(&request.sandbox_id)?;
        let mut response = PlatformResponse::default();
        let platform = response.platform.mut_or_insert_default();
        platform.os = "linux".to_owned();
        platform.architecture = "amd64".to_owned();
        Ok(response)
    }

    async fn stop_sandbox(
        &self,
        _: &TtrpcContext,
        request: StopSandboxRequest,
    ) -> ttrpc::Result<StopSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.stop().await?;
        Ok(StopSandboxResponse::default())
    }

    async fn wait_sandbox(
        &self,
        _: &TtrpcContext,
        request: WaitSandboxRequest,
    ) -> ttrpc::Result<WaitSandboxResponse> {
        let mut snapshots = self.of(&request.sandbox_id)?.handle.snapshots();
        // An error is the end of the sandbox too.
        let _ = snapshots
            .wait_for(|snapshot| snapshot.state == State::Stopped)
            .await;
        Ok(WaitSandboxResponse {
            exit_status: 0,
            exited_at: timestamp(now_ns()),
            ..WaitSandboxResponse::default()
        })
    }

    async fn sandbox_status(
        &self,
        _: &TtrpcContext,
        request: SandboxStatusRequest,
    ) -> ttrpc::Result<SandboxStatusResponse> {
        let snapshot = self.of(&request.sandbox_id)?.handle.snapshot();
        let mut response = SandboxStatusResponse {
            sandbox_id: request.sandbox_id,
            pid: std::process::id(),
            state: word(snapshot.state).to_owned(),
            created_at: timestamp(self.created_ns),
            ..SandboxStatusResponse::default()
        };
        if request.verbose {
            for (role, process) in &snapshot.processes {
                response
                    .info
                    .insert(format!("{role}.pid"), process.pid.to_string());
            }
        }
        Ok(response)
    }

    async fn ping_sandbox(&self, _: &TtrpcContext, request: PingRequest) -> ttrpc::Result<PingResponse> {
        self.check(&request.sandbox_id)?;
        Ok(PingResponse::default())
    }

    async fn shutdown_sandbox(
        &self,
        _: &TtrpcContext,
        request: ShutdownSandboxRequest,
    ) -> ttrpc::Result<ShutdownSandboxResponse> {
        self.check(&request.sandbox_id)?;
        let stopped = self.stop().await;
        self.desk.over.cancel();
        stopped?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        let stats = self.of(&request.sandbox_id)?.overhead().await;
        let data = stats.and_then(|stats| {
            metrics::message(&stats).map_err(|e| Failure::from_chain(FailureKind::Internal, &e))
        });
        let mut response = SandboxMetricsResponse::default();
        let metric = response.metrics.mut_or_insert_default();
        metric.timestamp = timestamp(now_ns());
        metric.id = request.sandbox_id;
        metric.data = Some(data.map_err(|failure| status::error(&failure))?).into();
        Ok(response)
    }
}
