//! update (C-20).
//!
//! ```text
//!  merge into the stored resources ─► size of the VM ─► agent ─► save
//!         └── a failure of either puts the stored resources and the size back
//! ```

use crate::error::SandboxError;
use crate::size::Surplus;
use crate::world::{Live, World};
use bulkhead_model::{ContainerId, Share, State, oci};

impl World {
    /// Changes a container's limits: what is given is merged into the stored resources, the VM is given the
    /// size they ask for, then the agent applies what was given. CPU and node numbers of the host are kept from
    /// the guest. The vanilla spec stays as it is (C-07).
    ///
    /// # Errors
    /// State errors, a memory limit below what is in use, the VMM's, the agent's; nothing has changed then.
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
        let before = container.plan.share;
        let stored = merged(&container.plan.resources, resources);
        let share = share_of(&stored);
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
        let limit = resources.memory().as_ref().and_then(oci::LinuxMemory::limit);
        check_use(&live, id, limit).await?;
        let surplus = if share.memory_bytes < before.memory_bytes {
            Surplus::Return
        } else {
            Surplus::Keep
        };
        self.fit(Some((id, share)), surplus).await?;
        if let Err(error) = live.guest.update(id, json).await {
            if let Err(back) = self.fit(None, Surplus::Return).await {
                tracing::warn!(error = %back, "giving the VM its former size");
            }
            return Err(error.into());
        }
        let container = self.container_mut(id)?;
        container.plan.resources = stored;
        container.plan.share = share;
        self.save()?;
        self.publish();
        Ok(())
    }
}

/// Below what is in use, and cannot be taken back from caches, the kernel would kill to make it fit.
async fn check_use(live: &Live, id: &ContainerId, limit: Option<i64>) -> Result<(), SandboxError> {
    let Some(limit) = limit
        .and_then(|limit| u64::try_from(limit).ok())
        .filter(|limit| *limit > 0)
    else {
        return Ok(());
    };
    let memory = live.guest.stats(id).await?.cgroup_stats.memory_stats;
    let held = memory.usage.usage.saturating_sub(memory.cache);
    if held <= limit {
        return Ok(());
    }
    Err(SandboxError::BelowUse {
        limit_bytes: limit,
        held_bytes: held,
    })
}

fn share_of(resources: &oci::LinuxResources) -> Share {
    let cpu = resources.cpu().as_ref();
    Share::of(
        cpu.and_then(oci::LinuxCpu::quota),
        cpu.and_then(oci::LinuxCpu::period),
        resources.memory().as_ref().and_then(oci::LinuxMemory::limit),
    )
}

/// Non-zero period and quota, non-empty cpus and mems, and a given memory limit (0 and −1 too).
fn merged(stored: &oci::LinuxResources, new: &oci::LinuxResources) -> oci::LinuxResources {
    let mut stored = stored.clone();
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
    stored
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn resources(json: serde_json::Value) -> oci::LinuxResources {
        serde_json::from_value(json).unwrap()
    }

    /// C-20: what is merged, and what is left as it was.
    #[test]
    fn c20_merging() {
        let stored = resources(json!({
            "cpu": {"quota": 100, "period": 1000, "cpus": "0", "mems": "0", "shares": 5},
            "memory": {"limit": 7, "swap": 9},
            "pids": {"limit": 3}
        }));
        let new = resources(json!({
            "cpu": {"quota": 0, "period": 2000, "cpus": "", "mems": "1", "shares": 6},
            "memory": {"limit": -1, "swap": 11},
            "pids": {"limit": 4}
        }));
        let expected = resources(json!({
            "cpu": {"quota": 100, "period": 2000, "cpus": "0", "mems": "1", "shares": 5},
            "memory": {"limit": -1, "swap": 9},
            "pids": {"limit": 3}
        }));
        assert_eq!(merged(&stored, &new), expected);
        let zero = resources(json!({"memory": {"limit": 0}}));
        assert_eq!(merged(&stored, &zero).memory().unwrap().limit(), Some(0));
        assert_eq!(merged(&stored, &resources(json!({}))), stored);
    }

    /// C-24: the share of merged resources.
    #[test]
    fn c24_share_of_resources() {
        let share = share_of(&resources(json!({
            "cpu": {"quota": 150_000, "period": 100_000}, "memory": {"limit": 1 << 20}
        })));
        assert_eq!((share.vcpus, share.memory_bytes), (2, 1 << 20));
    }
}
