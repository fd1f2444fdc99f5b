//! update (C-20).

use crate::error::SandboxError;
use crate::world::World;
use bulkhead_model::{ContainerId, State, oci};

impl World {
    /// Changes a container's limits: what is given is merged into the stored resources, then the agent
    /// applies it. CPU and node numbers of the host are kept from the guest.
    ///
    /// # Errors
    /// State errors, the agent's.
    pub async fn update(
        &mut self,
        id: &ContainerId,
        resources: &oci::LinuxResources,
    ) -> Result<(), SandboxError> {
        self.must_run("update")?;
        let live = self.live()?;
        let container = self.container(id)?;
        if !matches!(container.state(), State::Ready | State::Running) {
            return Err(SandboxError::ContainerState {
                operation: "update",
                state: container.state(),
                expected: "created or running",
            });
        }
        let mut sent = resources.clone();
        if let Some(cpu) = sent.cpu_mut() {
            cpu.set_cpus(None);
            cpu.set_mems(None);
        }
        let json = serde_json::to_vec(&sent).map_err(|e| SandboxError::Host {
            step: "encoding the resources",
            path: None,
            source: e.into(),
        })?;
        live.guest.update(id, json).await?;
        merge(self.container_mut(id)?, resources);
        self.save()?;
        self.publish();
        Ok(())
    }
}

/// Non-zero period and quota, non-empty cpus and mems, and a given memory limit (0 and −1 too).
fn merge(container: &mut crate::container::Container, new: &oci::LinuxResources) {
    let Some(linux) = container.plan.spec.linux_mut() else {
        return;
    };
    let mut stored = linux.resources().clone().unwrap_or_default();
    if let Some(cpu) = new.cpu() {
        let mut merged = stored.cpu().clone().unwrap_or_default();
        if let Some(period) = cpu.period().filter(|p| *p != 0) {
            merged.set_period(Some(period));
        }
        if let Some(quota) = cpu.quota().filter(|q| *q != 0) {
            merged.set_quota(Some(quota));
        }
        if let Some(cpus) = cpu.cpus().as_ref().filter(|c| !c.is_empty()) {
            merged.set_cpus(Some(cpus.clone()));
        }
        if let Some(mems) = cpu.mems().as_ref().filter(|m| !m.is_empty()) {
            merged.set_mems(Some(mems.clone()));
        }
        stored.set_cpu(Some(merged));
    }
    if let Some(limit) = new.memory().as_ref().and_then(oci::LinuxMemory::limit) {
        let mut merged = (*stored.memory()).unwrap_or_default();
        merged.set_limit(Some(limit));
        stored.set_memory(Some(merged));
    }
    linux.set_resources(Some(stored));
}
