//! The create of a container.
//!
//! ```text
//!  plan ─► streams ─► rootfs mounted ─► stub ─► hooks ─► Create ─► record, event, follow
//!     └─ the pod's own: a process on the host, nothing else
//!  a failure or a call-off: what was made is taken down before it is answered
//! ```
//!
//! Owns: that order. Never: what a sandbox does for it. Called by the task service.

use super::logger::Owner;
use super::pause::Pause;
use super::start;
use super::streams::{self, Uris};
use super::task::{Body, Process, Task};
use super::tasks::{Tasks, blocking, in_runc_words, own};
use crate::hooks::{self, HookKind};
use crate::oci_state::OciState;
use crate::stub::{self, Stdio, Stub, StubRequest};
use bulkhead_config::PlanKind;
use bulkhead_host::clock::boottime_ns;
use bulkhead_model::plan::RootMount;
use bulkhead_model::timeline::{Lane, Span};
use bulkhead_model::{ContainerId, ContainerPlan, Failure, FailureKind, SandboxId};
use bulkhead_sandbox::Command;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use tokio_util::sync::CancellationToken;

/// What containerd asks for.
#[derive(Debug)]
pub(super) struct Creation {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) mounts: Vec<RootMount>,
    pub(super) uris: Uris,
}

impl Tasks {
    /// Makes a container; `gone` is cancelled when its client is.
    ///
    /// # Errors
    /// The first failure; nothing of it is left then. `AlreadyExists`, `Cancelled`.
    pub(super) async fn create(
        self: &Arc<Self>,
        creation: Creation,
        gone: CancellationToken,
    ) -> Result<Arc<Task>, Failure> {
        let id = ContainerId::new(creation.id.as_str())
            .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let called_off = self.reserve(&id)?;
        let result = tokio::select! {
            result = self.make(&id, creation) => result,
            () = called_off.cancelled() => Err(cancelled(&id)),
            () = gone.cancelled() => Err(cancelled(&id)),
        };
        match result {
            Ok(task) => {
                self.put(&task);
                Ok(task)
            }
            Err(failure) => {
                let failure = self.because_of_the_boot(failure);
                self.take_down(&id).await;
                self.forget(&id);
                Err(failure)
            }
        }
    }

    async fn make(self: &Arc<Self>, id: &ContainerId, creation: Creation) -> Result<Arc<Task>, Failure> {
        let Creation {
            bundle, mounts, uris, ..
        } = creation;
        let plan = self.planned(id, &bundle).await?;
        let process = Arc::new(Process::new(own(id), uris.clone(), None));
        let body = if plan.creates_sandbox && self.settings.pod {
            let pause = Pause::start(&self.plan.network, &self.paths.marker)?;
            process.set_pid(pause.pid());
            Body::Pause(Arc::new(pause))
        } else {
            let stub = self.make_in_guest(plan, mounts, &process).await?;
            process.set_pid(stub.process().pid);
            Body::Guest(std::sync::Mutex::new(Some(stub)))
        };
        Ok(Arc::new(Task::new(id.clone(), bundle, body, process)))
    }

    async fn planned(&self, id: &ContainerId, bundle: &Path) -> Result<ContainerPlan, Failure> {
        let (config, own_id) = (self.settings.config.clone(), id.clone());
        let bundle = bundle.to_owned();
        let plans = blocking(move || {
            let bundle = bundle.canonicalize().map_err(|e| {
                Failure::new(
                    FailureKind::InvalidArgument,
                    format!("bundle {}: {e}", bundle.display()),
                )
            })?;
            start::plan(&bundle, &own_id, config.as_deref())
        });
        let plans = plans.await?;
        for warning in &plans.warnings {
            tracing::warn!(container = %id, "{warning}");
        }
        let (sandbox, plan) = match plans.kind {
            // In a sandbox that its client made by the Sandbox service, no annotation says where a container belongs.
            PlanKind::Sandbox { mut container, .. } if self.kept() => {
                container.creates_sandbox = false;
                (self.plan.id.clone(), container)
            }
            PlanKind::Sandbox { container, .. } => (SandboxId::from(id), container),
            PlanKind::Container { sandbox, container } => (sandbox, container),
        };
        if sandbox != self.plan.id {
            return Err(Failure::new(
                FailureKind::InvalidArgument,
                format!(
                    "container {id} belongs to sandbox {sandbox}: this is sandbox {}",
                    self.plan.id
                ),
            ));
        }
        Ok(*plan)
    }

    async fn make_in_guest(
        &self,
        plan: ContainerPlan,
        mounts: Vec<RootMount>,
        process: &Arc<Process>,
    ) -> Result<Stub, Failure> {
        let id = plan.id.clone();
        if !mounts.is_empty() {
            let target = plan.rootfs.path.clone();
            self.call(Command::MountRoot {
                id: id.clone(),
                target,
                mounts,
            })
            .await?;
        }
        self.map()
            .add(&id, &self.plan.id)
            .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))?;
        let (stub, spans) = self.stub(&plan, process).await?;
        self.tell("create", &id, spans, false).await;
        self.call(Command::Create { plan: Box::new(plan) })
            .await
            .map_err(in_runc_words)?;
        Ok(stub)
    }

    /// The stub, attached, its hooks run, and how long that took.
    async fn stub(&self, plan: &ContainerPlan, process: &Arc<Process>) -> Result<(Stub, Vec<Span>), Failure> {
        let (plan, paths) = (plan.clone(), self.paths.clone());
        let (uris, namespace) = (process.uris.clone(), self.settings.namespace.clone());
        let made = blocking(move || {
            let owner = Owner {
                namespace: &namespace,
                id: plan.id.as_str(),
                marker: &paths.marker,
            };
            let streams = streams::open(&uris, &owner).map_err(|e| e.failure())?;
            let none = Stdio::Streams {
                stdin: None,
                stdout: None,
                stderr: None,
            };
            let mut request = StubRequest::for_container(&plan, paths.control_socket(), &paths.marker, none);
            request.handover = Some(streams.handover);
            request.log_to(&paths.log());
            let began = boottime_ns();
            let stub = stub::spawn(request).map_err(|e| e.to_failure())?;
            let mut spans = vec![Span::new(Lane::Stub, "start the stub", began, boottime_ns())];
            run_hooks(&plan, &stub, &mut spans)?;
            Ok((stub, spans, streams.keeper, streams.logger))
        });
        let (stub, spans, keeper, logger) = made.await?;
        for refusal in &stub.refusals {
            tracing::debug!("{refusal}");
        }
        process.keep(keeper, logger);
        Ok((stub, spans))
    }

    /// A failure that only says that there is no sandbox is the boot's.
    fn because_of_the_boot(&self, failure: Failure) -> Failure {
        match &*self.boot.borrow() {
            Some(Err(boot)) if failure.kind == FailureKind::NotFound => {
                for line in &boot.console {
                    tracing::error!("console: {line}");
                }
                boot.clone()
            }
            _ => failure,
        }
    }

    /// Removes what a create that failed has made.
    async fn take_down(&self, id: &ContainerId) {
        let command = if self.plan.kept && *id != ContainerId::from(&self.plan.id) {
            Command::Delete {
                id: id.clone(),
                force: true,
            }
        } else {
            Command::Shutdown
        };
        match self.call(command).await {
            Err(failure) if failure.kind != FailureKind::NotFound => {
                tracing::error!(error = %failure, container = %id, "taking down a container that was not made");
            }
            _ => {}
        }
        if let Err(error) = self.map().remove(id) {
            tracing::warn!(%error, container = %id, "removing its entry from the container map");
        }
    }
}

fn cancelled(id: &ContainerId) -> Failure {
    Failure::new(
        FailureKind::Cancelled,
        format!("the create of container {id} was called off"),
    )
}

fn run_hooks(plan: &ContainerPlan, stub: &Stub, spans: &mut Vec<Span>) -> Result<(), Failure> {
    let Some(hooks) = plan.spec.hooks() else {
        return Ok(());
    };
    let state = OciState {
        pid: stub.process().pid,
        rootfs: plan.rootfs.path.clone(),
        annotations: plan.annotations(),
        ..OciState::creating(&plan.id, plan.bundle.clone())
    };
    for kind in [
        HookKind::Prestart,
        HookKind::CreateRuntime,
        HookKind::CreateContainer,
    ] {
        if kind.any(hooks) {
            let began = boottime_ns();
            hooks::run(kind, hooks, &state, Some(stub.process()))?;
            spans.push(Span::new(Lane::Hooks, kind.name(), began, boottime_ns()));
        }
    }
    Ok(())
}
