//! Further processes: added, started, deleted.
//!
//! Owns: their records. Never: a process on the host: an exec has none, its pid is the guest's. Called by the task
//! service.

use super::calls::{in_guest, startable};
use super::logger::Owner;
use super::streams::{self, Uris};
use super::task::{End, Process, Stage, Task};
use super::tasks::{Tasks, blocking, in_runc_words, now_ns, precondition};
use bulkhead_model::{ExecId, ExitStatus, Failure, FailureKind, ProcessKey, oci};
use bulkhead_sandbox::{Attachment, Command, Luggage, Notice};
use containerd_shim_protos::events::task::{TaskExecAdded, TaskExecStarted};
use containerd_shim_protos::topics;
use std::sync::Arc;
use tokio::sync::mpsc;

impl Tasks {
    /// Notes a process to be started.
    ///
    /// # Errors
    /// A taken id, a container that has ended, a specification that is none.
    pub(super) fn add_exec(&self, task: &Task, id: &str, spec: &[u8], uris: Uris) -> Result<(), Failure> {
        in_guest(task, "exec in")?;
        if task.init.end().is_some() {
            return Err(precondition(format!(
                "cannot exec in container {} that has stopped",
                task.id
            )));
        }
        let id = ExecId::new(id).map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let mut spec: oci::Process = serde_json::from_slice(spec).map_err(|e| {
            Failure::new(
                FailureKind::InvalidArgument,
                format!("the specification of process {id}: {e}"),
            )
        })?;
        spec.set_terminal(Some(uris.terminal));
        let key = ProcessKey {
            container: task.id.clone(),
            exec: Some(id.clone()),
        };
        task.add_exec(id.clone(), Arc::new(Process::new(key, uris, Some(spec))))?;
        self.publisher.publish(
            topics::TASK_EXEC_ADDED_EVENT_TOPIC,
            &TaskExecAdded {
                container_id: task.id.to_string(),
                exec_id: id.to_string(),
                ..TaskExecAdded::default()
            },
        );
        Ok(())
    }

    /// Starts it.
    ///
    /// # Errors
    /// A process that was started, streams that cannot be opened, what the guest reports.
    pub(super) async fn start_exec(self: &Arc<Self>, process: &Arc<Process>) -> Result<u32, Failure> {
        let _turn = process.turn.lock().await;
        startable(process)?;
        let (Some(spec), Some(exec)) = (&process.spec, &process.key.exec) else {
            return Err(precondition(format!("{} is no exec", process.key)));
        };
        let (uris, namespace) = (process.uris.clone(), self.settings.namespace.clone());
        let (marker, id) = (self.paths.marker.clone(), exec.clone());
        let streams = blocking(move || {
            let owner = Owner {
                namespace: &namespace,
                id: id.as_str(),
                marker: &marker,
            };
            streams::open(&uris, &owner).map_err(|e| e.failure())
        });
        let streams = streams.await?;
        let (notices, told) = mpsc::unbounded_channel();
        let attachment = Attachment {
            stub: None,
            set: streams.handover.set,
            fds: streams.handover.fds,
            size: process.size(),
            notices,
        };
        let command = Command::Exec {
            key: process.key.clone(),
            process: Box::new(spec.clone()),
        };
        let luggage = Luggage {
            attachment: Some(attachment),
            ..Luggage::default()
        };
        let started = self.handle.call(command, luggage).await;
        if let Err(failure) = started {
            let failure = in_runc_words(failure);
            // It can be deleted, and not started again.
            process.ended(End {
                status: 255,
                at_ns: now_ns(),
            });
            process.drained();
            return Err(failure);
        }
        process.keep(streams.keeper, streams.logger);
        process.set_pid(self.guest_pid(&process.key).unwrap_or(1));
        process.started();
        self.publisher.publish(
            topics::TASK_EXEC_STARTED_EVENT_TOPIC,
            &TaskExecStarted {
                container_id: process.key.container.to_string(),
                exec_id: exec.to_string(),
                pid: process.pid(),
                ..TaskExecStarted::default()
            },
        );
        tokio::spawn(Arc::clone(self).follow_exec(Arc::clone(process), told));
        Ok(process.pid())
    }

    /// One that has ended and been forgotten already has none.
    fn guest_pid(&self, key: &ProcessKey) -> Option<i32> {
        let snapshot = self.handle.snapshot();
        let container = snapshot.containers.get(&key.container)?;
        let process = container.execs.iter().find(|process| process.exec == key.exec)?;
        process.guest_pid.filter(|pid| *pid > 0)
    }

    async fn follow_exec(self: Arc<Self>, process: Arc<Process>, mut told: mpsc::UnboundedReceiver<Notice>) {
        while let Some(notice) = told.recv().await {
            match notice {
                Notice::Ended { status, at_ns } => self.tell_end(&process, End::new(status, at_ns)).await,
                Notice::Exited { status } => {
                    self.tell_end(&process, End::new(status, now_ns())).await;
                    break;
                }
                Notice::StreamEnded { .. } => {}
            }
        }
        // Its container is gone, and it with it.
        self.tell_end(&process, End::new(ExitStatus::Signal(9), now_ns()))
            .await;
        process.drained();
    }

    /// Forgets a process that has ended, or was never started.
    ///
    /// # Errors
    /// A running one.
    pub(super) async fn delete_exec(&self, task: &Task, process: &Process) -> Result<(u32, End), Failure> {
        let Some(exec) = &process.key.exec else {
            return Err(precondition(format!("{} is no exec", process.key)));
        };
        let end = match (process.end(), process.stage()) {
            (Some(end), _) => {
                let drained = process.wait_drained();
                let _ = tokio::time::timeout(super::calls::DRAIN_DEADLINE, drained).await;
                end
            }
            (None, Stage::Added) => End {
                status: 0,
                at_ns: now_ns(),
            },
            (None, Stage::Started) => {
                return Err(precondition(format!(
                    "cannot delete a running process: {}",
                    process.key
                )));
            }
        };
        task.forget_exec(exec);
        Ok((process.pid(), end))
    }
}
