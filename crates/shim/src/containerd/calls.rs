//! What containerd's calls do with a container that is there.
//!
//! Owns: order and tolerance of each, and the events they bring about. Never: the records (see `tasks`), a create (see `create`)
//! or an exec (see `exec`). Called by the task service.

use super::task::{Body, End, Process, Stage, Task};
use super::tasks::{Entry, Tasks, in_runc_words, now_ns, precondition, timestamp, unexpected};
use crate::hooks::{self, HookKind};
use bulkhead_host::clock::boottime_ns;
use bulkhead_model::timeline::{Lane, Span};
use bulkhead_model::{ContainerId, Failure, FailureKind, State};
use bulkhead_protocol::GuestProcess;
use bulkhead_sandbox::{Command, Reply};
use containerd_shim_protos::events::task::{TaskDelete, TaskPaused, TaskResumed, TaskStart};
use containerd_shim_protos::topics;
use std::sync::Arc;
use std::time::Duration;

/// How long a delete waits for output that nobody reads; runc's shim waits as long.
pub(super) const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

impl Tasks {
    /// Lets a created container run.
    ///
    /// # Errors
    /// A container that was started or has ended; what the guest reports.
    pub(super) async fn start(&self, task: &Arc<Task>) -> Result<u32, Failure> {
        let process = &task.init;
        let _turn = process.turn.lock().await;
        startable(process)?;
        if task.is_pause() {
            self.booted().await?;
        } else {
            self.call(Command::Start { id: task.id.clone() })
                .await
                .map_err(in_runc_words)?;
        }
        process.started();
        self.publisher.publish(
            topics::TASK_START_EVENT_TOPIC,
            &TaskStart {
                container_id: task.id.to_string(),
                pid: process.pid(),
                ..TaskStart::default()
            },
        );
        if !task.is_pause() {
            self.run_hooks(HookKind::Poststart, task).await;
        }
        Ok(process.pid())
    }

    /// Runs hooks whose failures are logged.
    async fn run_hooks(&self, kind: HookKind, task: &Task) {
        let Some(container) = self.handle.snapshot().containers.get(&task.id).cloned() else {
            return;
        };
        self.run_hooks_of(kind, container).await;
    }

    async fn run_hooks_of(&self, kind: HookKind, container: bulkhead_model::ContainerSnapshot) {
        let (began, id) = (boottime_ns(), container.id.clone());
        let run = tokio::task::spawn_blocking(move || hooks::run_each(kind, &container));
        let ran = run.await.unwrap_or_default();
        if ran.any && kind == HookKind::Poststart {
            let span = Span::new(Lane::Hooks, kind.name(), began, boottime_ns());
            self.tell("start", &id, vec![span], true).await;
        }
        for line in ran.failed {
            tracing::warn!("{line}");
        }
    }

    /// Sends a signal.
    ///
    /// # Errors
    /// `NotFound` for a process that has ended, as runc's shim answers.
    pub(super) async fn kill(&self, task: &Task, exec: &str, signal: u32, all: bool) -> Result<(), Failure> {
        let process = task.process(exec)?;
        let finished = || Failure::new(FailureKind::NotFound, "process already finished");
        if process.end().is_some() {
            return Err(finished());
        }
        let number = i32::try_from(signal).unwrap_or(i32::MAX);
        if let Body::Pause(pause) = &task.body {
            return pause
                .signal(number)
                .map_err(|e| Failure::new(FailureKind::InvalidArgument, format!("signal {number}: {e}")));
        }
        if process.key.exec.is_some() && process.stage() == Stage::Added {
            return Err(precondition(format!("process {exec:?} was not started")));
        }
        let result = self
            .call(Command::Signal {
                key: process.key.clone(),
                signal: number,
                all,
            })
            .await;
        match result {
            Err(failure) if failure.kind == FailureKind::FailedPrecondition => Err(finished()),
            other => other.map(drop),
        }
    }

    /// Removes a container that is not running.
    ///
    /// # Errors
    /// A running one.
    pub(super) async fn delete(&self, task: &Arc<Task>) -> Result<(u32, End), Failure> {
        let process = &task.init;
        let end = match (process.end(), process.stage()) {
            (Some(end), _) => end,
            (None, Stage::Added) => End {
                status: 0,
                at_ns: now_ns(),
            },
            (None, Stage::Started) => {
                return Err(precondition(format!(
                    "cannot delete a running process: container {}",
                    task.id
                )));
            }
        };
        match &task.body {
            Body::Pause(pause) => {
                // A pod that was never started has one that runs.
                let _ = pause.signal(nix::libc::SIGKILL);
                self.shut_down().await?;
            }
            Body::Guest(_) => {
                if process.end().is_some() {
                    let _ = tokio::time::timeout(DRAIN_DEADLINE, process.wait_drained()).await;
                }
                let before = self.handle.snapshot().containers.get(&task.id).cloned();
                let command = Command::Delete {
                    id: task.id.clone(),
                    force: true,
                };
                gone_is_done(self.call(command).await)?;
                if let Some(mut container) = before {
                    container.state = State::Stopped;
                    self.run_hooks_of(HookKind::Poststop, container).await;
                }
            }
        }
        self.forget(&task.id);
        self.publisher.publish(
            topics::TASK_DELETE_EVENT_TOPIC,
            &TaskDelete {
                container_id: task.id.to_string(),
                pid: process.pid(),
                exit_status: end.status,
                exited_at: timestamp(end.at_ns),
                ..TaskDelete::default()
            },
        );
        Ok((process.pid(), end))
    }

    /// Calls off the create of an id; true when there was one.
    pub(super) async fn call_off(&self, id: &str) -> bool {
        let Ok(id) = ContainerId::new(id) else {
            return false;
        };
        let token = match self.records().get(&id) {
            Some(Entry::Creating(token)) => token.clone(),
            _ => return false,
        };
        token.cancel();
        loop {
            let changed = self.changed.notified();
            if !matches!(self.records().get(&id), Some(Entry::Creating(_))) {
                return true;
            }
            changed.await;
        }
    }

    /// Takes the sandbox down.
    ///
    /// # Errors
    /// What could not be undone.
    pub(super) async fn shut_down(&self) -> Result<(), Failure> {
        gone_is_done(self.call(Command::Shutdown).await)
    }

    /// Freezes a container.
    ///
    /// # Errors
    /// A container that does not run.
    pub(super) async fn pause_task(&self, task: &Task) -> Result<(), Failure> {
        in_guest(task, "pause")?;
        self.call(Command::Pause { id: task.id.clone() }).await?;
        let event = TaskPaused {
            container_id: task.id.to_string(),
            ..TaskPaused::default()
        };
        self.publisher.publish(topics::TASK_PAUSED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Thaws it.
    ///
    /// # Errors
    /// A container that is not paused.
    pub(super) async fn resume_task(&self, task: &Task) -> Result<(), Failure> {
        in_guest(task, "resume")?;
        self.call(Command::Resume { id: task.id.clone() }).await?;
        let event = TaskResumed {
            container_id: task.id.to_string(),
            ..TaskResumed::default()
        };
        self.publisher.publish(topics::TASK_RESUMED_EVENT_TOPIC, &event);
        Ok(())
    }

    /// Sets the window size, now or when the process starts.
    ///
    /// # Errors
    /// A process that has ended.
    pub(super) async fn resize(
        &self,
        task: &Task,
        exec: &str,
        width: u32,
        height: u32,
    ) -> Result<(), Failure> {
        let process = task.process(exec)?;
        let limit = |size: u32| u16::try_from(size).unwrap_or(u16::MAX);
        let (columns, rows) = (limit(width), limit(height));
        if !process.uris.terminal || task.is_pause() {
            return Ok(());
        }
        if process.key.exec.is_some() && process.stage() == Stage::Added {
            process.set_size((columns, rows));
            return Ok(());
        }
        let key = process.key.clone();
        self.call(Command::Resize { key, columns, rows }).await.map(drop)
    }

    /// The processes of a container, by their pids in the guest.
    ///
    /// # Errors
    /// A container that has ended.
    pub(super) async fn processes(&self, task: &Task) -> Result<Vec<GuestProcess>, Failure> {
        if task.is_pause() {
            return Ok(vec![GuestProcess {
                pid: i32::try_from(task.init.pid()).unwrap_or(0),
                ..GuestProcess::default()
            }]);
        }
        match self.call(Command::Processes { id: task.id.clone() }).await? {
            Reply::Processes { processes } => Ok(processes),
            other => Err(unexpected(&other)),
        }
    }
}

/// A process is started once, and before it has ended.
pub(super) fn startable(process: &Process) -> Result<(), Failure> {
    let why = match (process.end(), process.stage()) {
        (None, Stage::Added) => return Ok(()),
        (None, Stage::Started) => "cannot start a running process",
        (Some(_), _) => "cannot start a stopped process",
    };
    Err(precondition(format!("{why}: {}", process.key)))
}

/// What only a container in the guest can do.
pub(super) fn in_guest(task: &Task, operation: &str) -> Result<(), Failure> {
    if task.is_pause() {
        return Err(Failure::new(
            FailureKind::Unsupported,
            format!(
                "cannot {operation} container {}: it only stands for its pod",
                task.id
            ),
        ));
    }
    Ok(())
}

/// What is gone already is what was asked for.
fn gone_is_done(result: Result<Reply, Failure>) -> Result<(), Failure> {
    match result {
        Err(failure) if failure.kind == FailureKind::NotFound => Ok(()),
        other => other.map(drop),
    }
}
