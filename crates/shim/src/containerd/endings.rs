//! What the tasks of a sandbox do without being asked for: they end, and run out of memory.
//!
//! Owns: waiting for that, and telling containerd. Never: a call of containerd's. Started by the services.

use super::task::{Body, End, Process, Task};
use super::tasks::{Tasks, now_ns, timestamp};
use bulkhead_model::{ContainerId, ExitStatus};
use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use containerd_shim_protos::topics;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// For reaping a stub that was told to exit.
const STUB_DEADLINE: Duration = Duration::from_secs(10);

/// A process that nobody saw end: its VM is gone.
fn lost() -> End {
    End::new(ExitStatus::Signal(9), now_ns())
}

impl Tasks {
    /// Follows a container's own process to its end.
    pub(super) async fn follow(self: Arc<Self>, task: Arc<Task>) {
        let process = Arc::clone(&task.init);
        match &task.body {
            Body::Pause(pause) => {
                let end = match pause.ended().await {
                    Ok(status) => End::new(status, now_ns()),
                    Err(error) => {
                        tracing::error!(%error, "watching the pod's own process");
                        lost()
                    }
                };
                self.tell_end(&process, end).await;
            }
            Body::Guest(_) => {
                let end = self.guest_ended(&task.id, |container| {
                    let exit = container.init.exit?;
                    Some(End::new(exit, container.init.exited_ns.unwrap_or_else(now_ns)))
                });
                let end = end.await.unwrap_or_else(lost);
                self.tell_end(&process, end).await;
                self.guest_ended(&task.id, |container| container.init.delivered.then_some(()))
                    .await;
            }
        }
        process.drained();
        if let Some(stub) = task.take_stub() {
            // Told by the engine; as its parent this process takes its status.
            tokio::task::spawn_blocking(move || {
                if !matches!(stub.wait(STUB_DEADLINE), Ok(Some(_))) {
                    tracing::warn!("a stub does not exit: it is killed");
                }
            });
        }
    }

    /// Waits until a container shows something; `None` when it is gone, or the sandbox.
    async fn guest_ended<T>(
        &self,
        id: &ContainerId,
        seen: impl Fn(&bulkhead_model::ContainerSnapshot) -> Option<T>,
    ) -> Option<T> {
        let mut snapshots = self.handle.snapshots();
        loop {
            {
                let snapshot = snapshots.borrow_and_update();
                if let Some(found) = seen(snapshot.containers.get(id)?) {
                    return Some(found);
                }
            }
            snapshots.changed().await.ok()?;
        }
    }

    /// Records an end and tells it, after the start was told.
    pub(super) async fn tell_end(&self, process: &Process, end: End) {
        let _turn = process.turn.lock().await;
        if !process.ended(end) {
            return;
        }
        let key = &process.key;
        self.publisher.publish(
            topics::TASK_EXIT_EVENT_TOPIC,
            &TaskExit {
                container_id: key.container.to_string(),
                id: key
                    .exec
                    .as_ref()
                    .map_or_else(|| key.container.to_string(), ToString::to_string),
                pid: process.pid(),
                exit_status: end.status,
                exited_at: timestamp(end.at_ns),
                ..TaskExit::default()
            },
        );
    }

    /// Tells every container the guest killed something of for want of memory.
    pub(super) async fn follow_memory(self: Arc<Self>) {
        let mut snapshots = self.handle.snapshots();
        let mut told: BTreeMap<ContainerId, u64> = BTreeMap::new();
        loop {
            let counts: Vec<(ContainerId, u64)> = snapshots
                .borrow_and_update()
                .containers
                .iter()
                .map(|(id, container)| (id.clone(), container.out_of_memory))
                .collect();
            for (id, count) in counts {
                if count > told.get(&id).copied().unwrap_or(0) {
                    let event = TaskOOM {
                        container_id: id.to_string(),
                        ..TaskOOM::default()
                    };
                    self.publisher.publish(topics::TASK_OOM_EVENT_TOPIC, &event);
                    told.insert(id, count);
                }
            }
            if snapshots.changed().await.is_err() {
                return;
            }
        }
    }
}
