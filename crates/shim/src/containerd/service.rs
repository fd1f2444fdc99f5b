//! The Task service.
//!
//! Each method unpacks its message, asks [`Tasks`], and packs the answer. Work that changes something runs in a task of
//! its own: a client that gives up does not leave it half done.
//!
//! Owns: the messages. Never: what they cause. Called by the ttrpc server.

use super::calls::in_guest;
use super::create::Creation;
use super::desk::Desk;
use super::metrics;
use super::status;
use super::streams::Uris;
use super::task::{End, Process, Stage, Task as Record};
use super::tasks::{Tasks, timestamp, unexpected};
use async_trait::async_trait;
use bulkhead_model::failure::chain;
use bulkhead_model::plan::RootMount;
use bulkhead_model::{Failure, FailureKind, State};
use bulkhead_sandbox::{Command, Reply};
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest, Mount,
    PauseRequest, PidsRequest, PidsResponse, ProcessInfo, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse, Status,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message, MessageFull};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::shim_async::Task;
use containerd_shim_protos::topics;
use containerd_shim_protos::ttrpc;
use containerd_shim_protos::ttrpc::r#async::TtrpcContext;
use std::sync::Arc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

/// The service of one sandbox.
#[derive(Clone)]
pub(super) struct TaskService {
    pub(super) desk: Arc<Desk>,
}

/// Runs `work` to its end even if the caller is gone.
async fn whole<T: Send + 'static>(
    operation: &'static str,
    container: &str,
    work: impl Future<Output = Result<T, Failure>> + Send + 'static,
) -> ttrpc::Result<T> {
    let span = tracing::info_span!("task", operation, container);
    let done = tokio::spawn(
        async move {
            let result = work.await;
            if let Err(failure) = &result {
                tracing::info!(error = %failure.message, "refused or failed");
            }
            result
        }
        .instrument(span),
    );
    done.await
        .unwrap_or_else(|error| Err(Failure::new(FailureKind::Internal, chain(&error))))
        .map_err(|failure| status::error(&failure))
}

fn mounts(mounts: &[Mount]) -> Vec<RootMount> {
    let one = |mount: &Mount| RootMount {
        fs_type: mount.type_.clone(),
        source: mount.source.clone(),
        target: mount.target.clone(),
        options: mount.options.clone(),
    };
    mounts.iter().map(one).collect()
}

fn task_io(uris: &Uris) -> TaskIO {
    TaskIO {
        stdin: uris.stdin.clone(),
        stdout: uris.stdout.clone(),
        stderr: uris.stderr.clone(),
        terminal: uris.terminal,
        ..TaskIO::default()
    }
}

fn deleted((pid, end): (u32, End)) -> DeleteResponse {
    DeleteResponse {
        pid,
        exit_status: end.status,
        exited_at: timestamp(end.at_ns),
        ..DeleteResponse::default()
    }
}

impl TaskService {
    fn tasks(&self) -> ttrpc::Result<&Arc<Tasks>> {
        self.desk.tasks().map_err(|failure| status::error(&failure))
    }

    fn task(&self, id: &str) -> ttrpc::Result<Arc<Record>> {
        self.tasks()?.task(id).map_err(|failure| status::error(&failure))
    }

    fn process(&self, id: &str, exec: &str) -> ttrpc::Result<(Arc<Record>, Arc<Process>)> {
        let task = self.task(id)?;
        let process = task.process(exec).map_err(|failure| status::error(&failure))?;
        Ok((task, process))
    }

    fn status_of(&self, task: &Record, process: &Process) -> Status {
        let paused = || {
            let snapshot = self.desk.tasks().map(|tasks| tasks.handle.snapshot());
            snapshot.is_ok_and(|snapshot| {
                let container = snapshot.containers.get(&task.id);
                container.is_some_and(|container| container.state == State::Paused)
            })
        };
        match (process.end(), process.stage()) {
            (Some(_), _) => Status::STOPPED,
            (None, Stage::Added) => Status::CREATED,
            (None, Stage::Started) if paused() => Status::PAUSED,
            (None, Stage::Started) => Status::RUNNING,
        }
    }
}

#[async_trait]
impl Task for TaskService {
    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        let (task, process) = self.process(&request.id, &request.exec_id)?;
        let end = process.end();
        Ok(StateResponse {
            id: if request.exec_id.is_empty() {
                request.id
            } else {
                request.exec_id.clone()
            },
            bundle: task.bundle.display().to_string(),
            pid: process.pid(),
            status: EnumOrUnknown::new(self.status_of(&task, &process)),
            stdin: process.uris.stdin.clone(),
            stdout: process.uris.stdout.clone(),
            stderr: process.uris.stderr.clone(),
            terminal: process.uris.terminal,
            exit_status: end.map_or(0, |end| end.status),
            exited_at: end.map_or_else(Default::default, |end| timestamp(end.at_ns)),
            exec_id: request.exec_id,
            ..StateResponse::default()
        })
    }

    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        if !request.checkpoint.is_empty() || !request.parent_checkpoint.is_empty() {
            return Err(no_checkpoints());
        }
        // Dropped with this future, which is when the client has gone.
        let gone = CancellationToken::new();
        let _guard = gone.clone().drop_guard();
        let tasks = Arc::clone(self.tasks()?);
        let id = request.id.clone();
        let pid = whole("create", &id, async move {
            let uris = Uris {
                stdin: request.stdin,
                stdout: request.stdout,
                stderr: request.stderr,
                terminal: request.terminal,
            };
            let event = TaskCreate {
                container_id: request.id.clone(),
                bundle: request.bundle.clone(),
                rootfs: request.rootfs.clone(),
                io: Some(task_io(&uris)).into(),
                ..TaskCreate::default()
            };
            let creation = Creation {
                id: request.id,
                bundle: request.bundle.into(),
                mounts: mounts(&request.rootfs),
                uris,
            };
            let task = tasks.create(creation, gone).await?;
            let pid = task.init.pid();
            tasks
                .publisher
                .publish(topics::TASK_CREATE_EVENT_TOPIC, &TaskCreate { pid, ..event });
            tokio::spawn(Arc::clone(&tasks).follow(task));
            Ok(pid)
        })
        .await?;
        Ok(CreateTaskResponse {
            pid,
            ..CreateTaskResponse::default()
        })
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let (task, process) = self.process(&request.id, &request.exec_id)?;
        let tasks = Arc::clone(self.tasks()?);
        let pid = whole("start", &request.id, async move {
            if process.key.exec.is_some() {
                tasks.start_exec(&process).await
            } else {
                tasks.start(&task).await
            }
        })
        .await?;
        Ok(StartResponse {
            pid,
            ..StartResponse::default()
        })
    }

    async fn delete(&self, _: &TtrpcContext, request: DeleteRequest) -> ttrpc::Result<DeleteResponse> {
        let tasks = Arc::clone(self.tasks()?);
        let id = request.id.clone();
        whole("delete", &id, async move {
            if request.exec_id.is_empty() {
                // What is being made is called off; then it is unknown.
                tasks.call_off(&request.id).await;
            }
            let task = tasks.task(&request.id)?;
            let process = task.process(&request.exec_id)?;
            if process.key.exec.is_some() {
                tasks.delete_exec(&task, &process).await.map(deleted)
            } else {
                tasks.delete(&task).await.map(deleted)
            }
        })
        .await
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        let task = self.task(&request.id)?;
        let processes = self.tasks()?.processes(&task).await;
        let processes = processes.map_err(|failure| status::error(&failure))?;
        let info = |exec: Option<String>| {
            let details = ProcessDetails {
                exec_id: exec?,
                ..ProcessDetails::default()
            };
            let value = details.write_to_bytes().ok()?;
            Some(Any {
                type_url: ProcessDetails::descriptor().full_name().to_owned(),
                value,
                ..Any::default()
            })
        };
        Ok(PidsResponse {
            processes: processes
                .into_iter()
                .map(|process| ProcessInfo {
                    pid: u32::try_from(process.pid).unwrap_or(0),
                    info: info(process.exec).into(),
                    ..ProcessInfo::default()
                })
                .collect(),
            ..PidsResponse::default()
        })
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let (task, tasks) = (self.task(&request.id)?, Arc::clone(self.tasks()?));
        whole("pause", &request.id, async move { tasks.pause_task(&task).await }).await?;
        Ok(Empty::new())
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let (task, tasks) = (self.task(&request.id)?, Arc::clone(self.tasks()?));
        whole(
            "resume",
            &request.id,
            async move { tasks.resume_task(&task).await },
        )
        .await?;
        Ok(Empty::new())
    }

    async fn checkpoint(&self, _: &TtrpcContext, request: CheckpointTaskRequest) -> ttrpc::Result<Empty> {
        self.task(&request.id)?;
        Err(no_checkpoints())
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let (task, tasks) = (self.task(&request.id)?, Arc::clone(self.tasks()?));
        let id = request.id.clone();
        whole("kill", &id, async move {
            tasks
                .kill(&task, &request.exec_id, request.signal, request.all)
                .await
        })
        .await?;
        Ok(Empty::new())
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&request.id)?;
        let uris = Uris {
            stdin: request.stdin,
            stdout: request.stdout,
            stderr: request.stderr,
            terminal: request.terminal,
        };
        let spec = &request.spec.value;
        let added = self.tasks()?.add_exec(&task, &request.exec_id, spec, uris);
        added.map_err(|failure| status::error(&failure))?;
        Ok(Empty::new())
    }

    async fn resize_pty(&self, _: &TtrpcContext, request: ResizePtyRequest) -> ttrpc::Result<Empty> {
        let task = self.task(&request.id)?;
        let resized = self
            .tasks()?
            .resize(&task, &request.exec_id, request.width, request.height)
            .await;
        resized.map_err(|failure| status::error(&failure))?;
        Ok(Empty::new())
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        if request.stdin {
            process.close_stdin();
        }
        Ok(Empty::new())
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let (task, tasks) = (self.task(&request.id)?, Arc::clone(self.tasks()?));
        let id = request.id.clone();
        whole("update", &id, async move {
            in_guest(&task, "update")?;
            let resources = serde_json::from_slice(&request.resources.value).map_err(|e| {
                Failure::new(
                    FailureKind::InvalidArgument,
                    format!("the resources of an update: {e}"),
                )
            })?;
            let command = Command::Update {
                id: task.id.clone(),
                resources: Box::new(resources),
            };
            tasks.call(command).await.map(drop)
        })
        .await?;
        Ok(Empty::new())
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        let (_, process) = self.process(&request.id, &request.exec_id)?;
        let end = process.wait().await;
        Ok(WaitResponse {
            exit_status: end.status,
            exited_at: timestamp(end.at_ns),
            ..WaitResponse::default()
        })
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        let task = self.task(&request.id)?;
        let stats = if task.is_pause() {
            self.tasks()?.overhead().await
        } else {
            self.tasks()?.stats(&task).await
        };
        let message = stats.and_then(|stats| {
            metrics::message(&stats).map_err(|e| Failure::from_chain(FailureKind::Internal, &e))
        });
        Ok(StatsResponse {
            stats: Some(message.map_err(|failure| status::error(&failure))?).into(),
            ..StatsResponse::default()
        })
    }

    async fn connect(&self, _: &TtrpcContext, request: ConnectRequest) -> ttrpc::Result<ConnectResponse> {
        Ok(ConnectResponse {
            shim_pid: std::process::id(),
            task_pid: self.task(&request.id).map_or(0, |task| task.init.pid()),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..ConnectResponse::default()
        })
    }

    async fn shutdown(&self, _: &TtrpcContext, _: ShutdownRequest) -> ttrpc::Result<Empty> {
        let Ok(tasks) = self.desk.tasks().cloned() else {
            self.desk.over.cancel();
            return Ok(Empty::new());
        };
        // Others of the pod may still be here.
        if tasks.is_empty() {
            let over = self.desk.over.clone();
            whole("shutdown", "", async move {
                let result = tasks.shut_down().await;
                over.cancel();
                result
            })
            .await?;
        }
        Ok(Empty::new())
    }
}

fn no_checkpoints() -> ttrpc::Error {
    status::error(&Failure::new(
        FailureKind::Unsupported,
        "checkpoints are not supported: the processes run in a virtual machine",
    ))
}

impl Tasks {
    /// The figures of a container.
    ///
    /// # Errors
    /// A container that has ended.
    pub(super) async fn stats(
        &self,
        task: &Record,
    ) -> Result<bulkhead_model::stats::ContainerStats, Failure> {
        match self.call(Command::Stats { id: task.id.clone() }).await? {
            Reply::Stats { stats } => Ok(*stats),
            other => Err(unexpected(&other)),
        }
    }

    /// What the sandbox's processes on the host use beyond its containers.
    ///
    /// # Errors
    /// None but those of the runtime.
    pub(super) async fn overhead(&self) -> Result<bulkhead_model::stats::ContainerStats, Failure> {
        let snapshot = self.handle.snapshot();
        let stubs = snapshot.containers.values().filter_map(|one| one.init.host);
        let processes: Vec<_> = snapshot.processes.values().copied().chain(stubs).collect();
        let mut parts = Vec::new();
        for id in snapshot.containers.keys() {
            // One that has ended uses nothing.
            if let Ok(Reply::Stats { stats }) = self.call(Command::Stats { id: id.clone() }).await {
                parts.push(*stats);
            }
        }
        super::tasks::blocking(move || Ok(metrics::beyond(metrics::of_processes(processes), &parts))).await
    }
}
