//! How large the VM is to be, and bringing it there (C-20, C-24).
//!
//! ```text
//!  base + shares of the containers ─► wanted ─► VMM: plug ─► agent: online        (grow)
//!                                            └─► agent: CPUs offline, VMM: unplug memory   (shrink)
//! ```
//! vCPUs are never unplugged: the guest takes them offline, and the next add brings them back.
//!
//! Owns: the sum and the order. Never: how a VMM does it. Called by create, update, stop and delete.

use crate::error::SandboxError;
use crate::world::World;
use bulkhead_model::{ContainerId, SandboxPlan, Share, State};
use bulkhead_vmm::VmmError;
use serde::{Deserialize, Serialize};

/// Memory is plugged in blocks of this many MiB (memory-hotplug.rst, x86).
const BLOCK_MIB: u32 = 128;

/// What is to become of memory that nobody asks for any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Surplus {
    /// It stays for the next container: unplugging takes long, and the guest may refuse.
    Keep,
    /// It goes, or that is an error.
    Return,
}

/// The size of a VM as its guest uses it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Size {
    /// vCPUs that are online.
    pub vcpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
}

impl Size {
    /// What is announced for the sandbox: what its VM boots with, unless it goes on from a smaller template.
    #[must_use]
    pub const fn announced(plan: &SandboxPlan) -> Self {
        Self {
            vcpus: plan.vm.vcpus,
            memory_mib: plan.vm.memory_mib,
        }
    }

    /// What it should have for containers with these shares: the base and all of them, at most what it was
    /// started with room for (what the host does not have is not given, as without a VM). A pod keeps what was
    /// announced for it. Memory is never below what it booted with, `boot`.
    #[must_use]
    pub fn wanted(plan: &SandboxPlan, boot: Self, shares: impl Iterator<Item = Share>) -> Self {
        let vm = &plan.vm;
        let announced = Self::announced(plan);
        // State written before there was a base has none.
        let base = match (vm.base_vcpus, plan.pod) {
            (0, _) | (_, true) => announced,
            (vcpus, false) => Self {
                vcpus,
                memory_mib: vm.base_memory_mib,
            },
        };
        let of_base = Self {
            vcpus: vm.base_vcpus,
            memory_mib: vm.base_memory_mib,
        };
        let sum = shares.fold(of_base, |sum, share| Self {
            vcpus: sum.vcpus.saturating_add(share.vcpus),
            memory_mib: sum.memory_mib.saturating_add(share.memory_mib()),
        });
        let grows = vm.virtio_mem || vm.memory_slots > 0;
        let room = vm.max_memory_mib.saturating_sub(boot.memory_mib);
        let room = if grows { room - room % BLOCK_MIB } else { 0 };
        Self {
            vcpus: sum
                .vcpus
                .max(base.vcpus)
                .clamp(1, vm.max_vcpus.max(boot.vcpus).max(1)),
            memory_mib: sum
                .memory_mib
                .max(base.memory_mib)
                .clamp(boot.memory_mib, boot.memory_mib + room),
        }
    }
}

impl World {
    /// What the containers that are not stopped ask for, `extra` instead of what is recorded of one of them.
    fn wanted(&self, extra: Option<(&ContainerId, Share)>) -> Size {
        let recorded = self
            .containers
            .iter()
            .filter(|(id, container)| {
                container.state() != State::Stopped && extra.is_none_or(|(other, _)| other != *id)
            })
            .map(|(_, container)| container.plan.share);
        Size::wanted(
            &self.plan,
            self.boot_size,
            recorded.chain(extra.map(|(_, share)| share)),
        )
    }

    /// Gives the VM the size its containers ask for; `extra` counts in place of what is recorded of that
    /// container. Nothing is asked of anybody when it has that size.
    ///
    /// # Errors
    /// The VMM's and the agent's; the VM then has its former size again, as far as that could be had.
    pub(crate) async fn fit(
        &mut self,
        extra: Option<(&ContainerId, Share)>,
        surplus: Surplus,
    ) -> Result<(), SandboxError> {
        let mut wanted = self.wanted(extra);
        let before = self.size;
        if surplus == Surplus::Keep {
            wanted.memory_mib = wanted.memory_mib.max(before.memory_mib);
        }
        if wanted == before {
            return Ok(());
        }
        tracing::info!(?before, ?wanted, "resizing the VM");
        let resized = self.resize(before, wanted).await;
        if let Err(error) = resized {
            if let Err(back) = self.resize(wanted, before).await {
                tracing::warn!(error = %back, "giving the VM its former size");
            }
            return Err(error);
        }
        self.size = wanted;
        Ok(())
    }

    /// [`Self::fit`] where a failure is nobody's any more.
    pub(crate) async fn fit_logged(&mut self) {
        if self.live().is_err() {
            return;
        }
        if let Err(error) = self.fit(None, Surplus::Keep).await {
            let error = bulkhead_model::failure::chain(&error);
            tracing::warn!(error, "the VM keeps its size");
        }
    }

    async fn resize(&self, before: Size, wanted: Size) -> Result<(), SandboxError> {
        let live = self.live()?;
        let resize = live.vm.resize().ok_or_else(|| VmmError::Unsupported {
            option: "vcpus",
            value: format!("{} (memory {} MiB)", wanted.vcpus, wanted.memory_mib),
            expected: "a VMM that can change the size of a VM",
        })?;
        if wanted.vcpus > before.vcpus {
            resize.set_vcpus(wanted.vcpus).await?;
        }
        let mut grown = false;
        if wanted.memory_mib != before.memory_mib {
            let there = resize.set_memory(wanted.memory_mib).await?;
            grown = wanted.memory_mib > before.memory_mib;
            if grown && there < wanted.memory_mib {
                return Err(SandboxError::Invalid {
                    what: "memory",
                    value: format!("{} MiB", wanted.memory_mib),
                    expected: "at most what the VM can grow to: see hypervisor.memory_slots",
                });
            }
        }
        if wanted.vcpus == before.vcpus && !grown {
            return Ok(());
        }
        let cpus = if wanted.vcpus == before.vcpus {
            0
        } else {
            wanted.vcpus
        };
        let (online, _) = live.guest.online(cpus, grown).await?;
        if cpus != 0 && online != cpus {
            return Err(SandboxError::Invalid {
                what: "vCPUs online in the guest",
                value: online.to_string(),
                expected: "as many as were asked for",
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(pod: bool, boot: (u32, u32)) -> SandboxPlan {
        serde_json::from_value(serde_json::json!({
            "id": "s", "hostname": null, "domainname": null,
            "vm": {
                "hypervisor": "/q", "kernel": "/k", "initrd": "/i", "kernel_params": [],
                "machine_type": "q35", "machine_options": [], "cpu_features": [],
                "vcpus": boot.0, "max_vcpus": 8, "memory_mib": boot.1, "max_memory_mib": 4096,
                "memory_slots": 4, "memory_prealloc": false, "hugepages": false, "memory_backend": null,
                "mlock": false, "virtio_mem": false, "root_ports": 4, "entropy_source": "/dev/urandom",
                "shared_fs": {"kind": "none"}, "boot_timeout_s": 5, "debug": false,
                "base_vcpus": 1, "base_memory_mib": 256
            },
            "network": {"kind": "none"}, "network_model": "none", "shm_bytes": 0, "cgroups_path": null,
            "pod": pod, "kernel_modules": [], "guest_seccomp": true, "annotations": {}
        }))
        .unwrap()
    }

    fn share(vcpus: u32, mib: u64) -> Share {
        Share {
            vcpus,
            memory_bytes: mib << 20,
        }
    }

    fn wanted(pod: bool, boot: (u32, u32), shares: &[Share]) -> (u32, u32) {
        let plan = plan(pod, boot);
        let size = Size::wanted(&plan, Size::announced(&plan), shares.iter().copied());
        (size.vcpus, size.memory_mib)
    }

    /// C-24: the first container's share is in the boot size already; others come on top and go again.
    #[test]
    fn c24_base_and_shares() {
        let boot = (3, 512);
        let first = share(2, 256);
        assert_eq!(wanted(false, boot, &[first]), boot, "nothing to do for the first");
        assert_eq!(wanted(false, boot, &[first, share(1, 128)]), (4, 640));
        assert_eq!(wanted(false, boot, &[first, share(0, 0)]), boot);
        // CPUs are taken offline; memory is not taken from what it booted with.
        assert_eq!(wanted(false, boot, &[share(1, 0)]), (2, 512));
        assert_eq!(wanted(false, boot, &[]), (1, 512));
    }

    /// C-24: what a pod announced is there for all of its containers.
    #[test]
    fn c24_a_pods_announced_size_is_kept() {
        let boot = (4, 1024);
        assert_eq!(wanted(true, boot, &[]), boot);
        assert_eq!(wanted(true, boot, &[share(1, 128), share(2, 128)]), boot);
        assert_eq!(wanted(true, boot, &[share(3, 512), share(2, 512)]), (6, 1280));
    }

    /// C-24: what the host does not have is not given.
    #[test]
    fn c24_the_most_there_is() {
        let huge = share(u32::MAX, u64::MAX >> 21);
        assert_eq!(wanted(false, (1, 256), &[huge, huge]), (8, 4096));
        assert_eq!(
            wanted(false, (1, 300), &[huge]),
            (8, 300 + 29 * 128),
            "whole blocks"
        );
        let mut fixed = plan(false, (1, 256));
        fixed.vm.memory_slots = 0;
        let boot = Size::announced(&fixed);
        assert_eq!(Size::wanted(&fixed, boot, [huge].into_iter()).memory_mib, 256);
    }

    /// C-24: from a template that is smaller, a sandbox grows to what is announced for it.
    #[test]
    fn c24_a_template_is_grown_from() {
        let template = Size {
            vcpus: 1,
            memory_mib: 256,
        };
        let grown = |pod, shares: &[Share]| {
            let size = Size::wanted(&plan(pod, (3, 512)), template, shares.iter().copied());
            (size.vcpus, size.memory_mib)
        };
        assert_eq!(grown(false, &[share(2, 256)]), (3, 512));
        assert_eq!(grown(false, &[]), (1, 256));
        assert_eq!(grown(true, &[]), (3, 512));
    }
}
