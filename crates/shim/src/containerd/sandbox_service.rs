//! The Sandbox service, for a containerd that makes sandboxes by it and not by a container that stands for the pod.
//!
//! Owns: the messages. Never: what they cause. Called by the ttrpc server.

use super::metrics;
use super::status;
use super::tasks::{Tasks, now_ns, timestamp};
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
    pub(super) tasks: Arc<Tasks>,
    created_ns: u64,
}

impl SandboxService {
    pub(super) fn new(tasks: Arc<Tasks>) -> Self {
        Self {
            tasks,
            created_ns: now_ns(),
        }
    }

    fn check(&self, id: &str) -> ttrpc::Result<()> {
        if id == self.tasks.plan.id.as_str() {
            return Ok(());
        }
        Err(status::error(&Failure::new(
            FailureKind::NotFound,
            format!("sandbox {id} does not exist: this is {}", self.tasks.plan.id),
        )))
    }

    async fn stop(&self) -> ttrpc::Result<()> {
        self.tasks
            .shut_down()
            .await
            .map_err(|failure| status::error(&failure))
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
        // It was made when this shim started: its plan came from the bundle.
        self.check(&request.sandbox_id)?;
        Ok(CreateSandboxResponse::default())
    }

    async fn start_sandbox(
        &self,
        _: &TtrpcContext,
        request: StartSandboxRequest,
    ) -> ttrpc::Result<StartSandboxResponse> {
        self.check(&request.sandbox_id)?;
        self.tasks
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
        self.check(&request.sandbox_id)?;
        let mut snapshots = self.tasks.handle.snapshots();
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
        self.check(&request.sandbox_id)?;
        let snapshot = self.tasks.handle.snapshot();
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
        self.tasks.over.cancel();
        stopped?;
        Ok(ShutdownSandboxResponse::default())
    }

    async fn sandbox_metrics(
        &self,
        _: &TtrpcContext,
        request: SandboxMetricsRequest,
    ) -> ttrpc::Result<SandboxMetricsResponse> {
        self.check(&request.sandbox_id)?;
        let stats = self.tasks.overhead().await;
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
