//! delete (C-15) and the end of the sandbox.

use crate::command::Notice;
use crate::error::SandboxError;
use crate::journal::Resource;
use crate::map::ContainerMap;
use crate::world::{World, libc_sigkill};
use bulkhead_model::snapshot::Phase;
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, ExitStatus, HostProcess, State};
use bulkhead_protocol::Guest;
use std::time::{Duration, Instant};

/// How long the guest may take to flush its file systems before the VM is ended.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

/// How long stubs may take to exit with the status they were told.
const STUB_DEADLINE: Duration = Duration::from_secs(5);

impl World {
    /// Removes a container; ready or stopped only, unless `force`. Tells whether it was the last one or the
    /// one that made the sandbox: then the caller takes the sandbox down.
    ///
    /// # Errors
    /// State errors; steps that fail are logged and done again by the sandbox's end.
    pub async fn delete(&mut self, id: &ContainerId, force: bool) -> Result<bool, SandboxError> {
        self.timeline.begin("delete", Some(id), None);
        if force && !self.containers.contains_key(id) && self.holds_for(id) {
            // Its create ended before there was a container.
            self.rollback(id).await;
            return Ok(false);
        }
        let container = self.container(id)?;
        let state = container.state();
        if !force && !matches!(state, State::Ready | State::Stopped) {
            return Err(SandboxError::ContainerState {
                operation: "delete",
                state,
                expected: "stopped, or --force",
            });
        }
        let ends_sandbox = !self.plan.kept && (container.plan.creates_sandbox || self.containers.len() == 1);
        if !ends_sandbox {
            self.stop(id, true).await?;
            if let Ok(live) = self.live()
                && let Err(error) = live.guest.remove_container(id).await
            {
                tracing::warn!(%error, container = %id, "delete: the agent");
            }
            if let Err(error) = self.unshare(id).await {
                tracing::warn!(%error, container = %id, "delete: unmounting; the sandbox's end tries again");
            }
        }
        // The end of the sandbox ends every process with its VM.
        if ends_sandbox {
            return Ok(true);
        }
        // Nobody will tell them later: what is not known has no processes.
        self.end_stubs_of(id).await;
        self.containers.remove(id);
        self.fit_logged().await;
        self.forget_mapping(id);
        self.save()?;
        self.publish();
        Ok(false)
    }

    /// Takes everything down, whatever state it is in: flush, end the VM, run the journal backwards. Every
    /// entry is tried; what could not be undone is returned as text and stays in the journal for gc.
    pub async fn tear_down(&mut self) -> Vec<String> {
        self.timeline.begin_unless_open("end");
        if let Ok(live) = self.live() {
            if !self.settled {
                self.flush(live.guest.as_ref()).await;
            }
            let _ending = self.timeline.span(Lane::Vmm, "end QEMU");
            if let Err(error) = live.vm.kill(super::KILL_DEADLINE).await {
                tracing::error!(%error, "ending the VM");
            }
        }
        self.ending = true;
        self.vm_ended();
        self.all_exited();
        self.phase = Phase::Gone;
        self.publish();
        let ending = self.timeline.span(Lane::Stub, "end the stubs");
        self.end_stubs().await;
        drop(ending);
        let detaching = self.timeline.span(Lane::Supervisor, "detach the share");
        if let Err(error) = self.detach_share().await {
            tracing::warn!(%error, "detaching the share: its mounts are undone one by one");
        }
        drop(detaching);
        let (undone, mut failures) = self.undo_each(&[]).await;
        if failures.is_empty() {
            // The journal goes with its directory.
            let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
            for id in &ids {
                self.forget_mapping(id);
            }
            // Last: from here on the id is free.
            let state = Resource::Directory {
                path: self.paths.dir.clone(),
            };
            let _undoing = self.timeline.again(Lane::Supervisor, state.undoing());
            if let Err(error) = self.undo(state).await {
                failures.push(format!("{}: {error}", self.paths.dir.display()));
            }
        } else {
            self.note_undone(&undone);
        }
        self.containers.clear();
        self.network = None;
        self.keep_timeline();
        failures
    }

    /// What the guest has not written yet would end with the VM.
    async fn flush(&self, guest: &dyn Guest) {
        let _syncing = self.timeline.span(Lane::Guest, "flush its file systems");
        match tokio::time::timeout(SYNC_DEADLINE, guest.sync()).await {
            Ok(Ok(())) => {}
            other => tracing::warn!(?other, "flushing the guest's file systems"),
        }
    }

    /// Beside this thread: readers are to be answered meanwhile.
    async fn detach_share(&self) -> std::io::Result<()> {
        let platform = std::sync::Arc::clone(&self.platform);
        let share = self.paths.share();
        tokio::task::spawn_blocking(move || platform.detach_share(&share))
            .await
            .map_err(std::io::Error::other)?
    }

    /// Waits for the stubs that were told of their process's end, then ends those that are still there: a
    /// cgroup goes only when it is empty.
    async fn end_stubs(&mut self) {
        let told: Vec<HostProcess> = self
            .containers
            .values()
            .flat_map(|container| container.execs.values().chain([&container.init]))
            .filter_map(|process| process.host)
            .collect();
        let end = Instant::now() + STUB_DEADLINE;
        for stub in std::mem::take(&mut self.stubs) {
            if told.contains(&stub)
                && self
                    .platform
                    .ended(stub, end.saturating_duration_since(Instant::now()))
                    .await
            {
                continue;
            }
            let stub = Resource::Process {
                role: "stub".into(),
                process: Some(stub),
            };
            if let Err(error) = self.undo(stub).await {
                tracing::error!(%error, "ending a stub");
            }
        }
    }

    /// Tells the stubs of a container that goes how their processes ended, and kills those that stay.
    async fn end_stubs_of(&mut self, id: &ContainerId) {
        let Some(container) = self.containers.get(id) else {
            return;
        };
        let mut stubs = Vec::new();
        for process in container.execs.values().chain([&container.init]) {
            let status = process.exit.unwrap_or(ExitStatus::Signal(libc_sigkill() as u8));
            process.tell(Notice::Exited { status });
            stubs.extend(process.host);
        }
        let end = Instant::now() + STUB_DEADLINE;
        for stub in stubs {
            let left = end.saturating_duration_since(Instant::now());
            if self.platform.ended(stub, left).await {
                continue;
            }
            let stub = Resource::Process {
                role: "stub".into(),
                process: Some(stub),
            };
            if let Err(error) = self.undo(stub).await {
                tracing::error!(%error, container = %id, "delete: ending a stub");
            }
        }
    }

    pub(crate) fn forget_mapping(&self, id: &ContainerId) {
        if let Err(error) = ContainerMap::new(&self.paths.containers).remove(id) {
            tracing::warn!(%error, container = %id, "removing its entry from the container map");
        }
    }
}
