//! delete (C-15) and the end of the sandbox.

use crate::error::SandboxError;
use crate::journal::Resource;
use crate::map::ContainerMap;
use crate::world::World;
use bulkhead_model::snapshot::Phase;
use bulkhead_model::{ContainerId, State};
use std::time::Duration;

/// How long the guest may take to flush its file systems before the VM is ended.
const SYNC_DEADLINE: Duration = Duration::from_secs(10);

impl World {
    /// Removes a container; ready or stopped only, unless `force`. Tells whether it was the last one or the
    /// one that made the sandbox: then the caller takes the sandbox down.
    ///
    /// # Errors
    /// State errors; steps that fail are logged and done again by the sandbox's end.
    pub async fn delete(&mut self, id: &ContainerId, force: bool) -> Result<bool, SandboxError> {
        let container = self.container(id)?;
        let state = container.state();
        if !force && !matches!(state, State::Ready | State::Stopped) {
            return Err(SandboxError::ContainerState {
                operation: "delete",
                state,
                expected: "stopped, or --force",
            });
        }
        let ends_sandbox = container.plan.creates_sandbox || self.containers.len() == 1;
        if !ends_sandbox {
            self.stop(id, true).await?;
            if let Ok(live) = self.live()
                && let Err(error) = live.guest.remove_container(id).await
            {
                tracing::warn!(%error, container = %id, "delete: the agent");
            }
            self.unshare(id);
        }
        // The end of the sandbox ends every process with its VM.
        if ends_sandbox {
            return Ok(true);
        }
        self.containers.remove(id);
        self.forget_mapping(id);
        self.save()?;
        self.publish();
        Ok(false)
    }

    /// Takes everything down, whatever state it is in: flush, end the VM, run the journal backwards. Every
    /// entry is tried; what could not be undone is returned as text and stays in the journal for gc.
    pub async fn tear_down(&mut self) -> Vec<String> {
        if let Ok(live) = self.live() {
            match tokio::time::timeout(SYNC_DEADLINE, live.guest.sync()).await {
                Ok(Ok(())) => {}
                other => tracing::warn!(?other, "flushing the guest's file systems"),
            }
            if let Err(error) = live.vm.kill(super::KILL_DEADLINE).await {
                tracing::error!(%error, "ending the VM");
            }
        }
        self.vm_ended();
        self.all_exited();
        self.phase = Phase::Gone;
        self.publish();
        let mut failures = Vec::new();
        for (entry, resource) in self.journal.held() {
            match self.platform.undo(&resource) {
                Ok(()) => {
                    if let Err(error) = self.journal.release(entry) {
                        tracing::warn!(%error, "writing the journal");
                    }
                }
                Err(error) => {
                    tracing::error!(%error, ?resource, "undoing");
                    failures.push(format!("{resource:?}: {error}"));
                }
            }
        }
        if failures.is_empty() {
            let ids: Vec<ContainerId> = self.containers.keys().cloned().collect();
            for id in &ids {
                self.forget_mapping(id);
            }
            // Last: from here on the id is free.
            if let Err(error) = self.platform.undo(&Resource::Directory {
                path: self.paths.dir.clone(),
            }) {
                failures.push(format!("{}: {error}", self.paths.dir.display()));
            }
        }
        self.containers.clear();
        failures
    }

    fn forget_mapping(&self, id: &ContainerId) {
        if let Err(error) = ContainerMap::new(&self.paths.containers).remove(id) {
            tracing::warn!(%error, container = %id, "removing its entry from the container map");
        }
    }
}
