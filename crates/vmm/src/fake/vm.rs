//! A VM of the fake.
//!
//! Owns: what each step does to its machine when nothing is scripted. Never: the script. Called by the engine through the
//! traits of `machine`.

use super::machine::{Machine, ended, injected};
use super::script::{Fault, Step};
use super::vmm::FakeVmm;
use crate::{DeviceRequest, Hotplug, Plugged, Resize, Snapshot, Vm, VmExit, VmmError};
use async_trait::async_trait;
use bulkhead_model::HostProcess;
use std::os::fd::OwnedFd;
use std::time::Duration;
use tokio::sync::watch;

/// A VM of a [`FakeVmm`].
#[derive(Debug)]
pub struct FakeVm {
    pub(super) vmm: FakeVmm,
    pub(super) index: usize,
    pub(super) process: HostProcess,
    pub(super) exit: watch::Receiver<Option<VmExit>>,
}

impl FakeVm {
    /// Goes through a step: as scripted, or `act` on the machine if it is alive.
    async fn go<T>(
        &self,
        step: Step,
        name: &'static str,
        about: impl ToString + Send,
        act: impl FnOnce(&mut Machine) -> Result<T, VmmError> + Send,
    ) -> Result<T, VmmError> {
        match self.vmm.call(step, about) {
            None => {}
            Some(Fault::Fail) => return Err(injected()),
            Some(Fault::End) => self.with(|machine| machine.end(VmExit::Signal(9))),
            Some(Fault::Hang) => return Err(ended(name, self.exited().await)),
        }
        self.with(|machine| {
            let exit = *machine.exit.borrow();
            match exit {
                Some(exit) => Err(ended(name, exit)),
                None => act(machine),
            }
        })
    }

    fn with<T>(&self, act: impl FnOnce(&mut Machine) -> T) -> T {
        act(&mut self.vmm.state().machines[self.index])
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn process(&self) -> HostProcess {
        self.process
    }

    fn round_trips(&self) -> u64 {
        self.vmm.state().calls.len() as u64
    }

    async fn resume(&self) -> Result<(), VmmError> {
        self.go(Step::Resume, "cont", self.process.pid, |_| Ok(())).await
    }

    async fn halt(&self) -> Result<(), VmmError> {
        self.go(Step::Halt, "stop", self.process.pid, |_| Ok(())).await
    }

    async fn hold(&self, name: &'static str, fd: OwnedFd) -> Result<(), VmmError> {
        self.go(Step::Hold, "getfd", name, |machine| {
            machine.sockets.push(fd);
            Ok(())
        })
        .await
    }

    async fn exited(&self) -> VmExit {
        match self.exit.clone().wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(VmExit::Unknown),
            Err(_) => VmExit::Unknown,
        }
    }

    async fn kill(&self, deadline: Duration) -> Result<(), VmmError> {
        match self.vmm.call(Step::Kill, self.process.pid) {
            None | Some(Fault::End) => {}
            Some(Fault::Fail) => return Err(injected()),
            Some(Fault::Hang) => {
                tokio::time::sleep(deadline).await;
                return Err(VmmError::Deadline {
                    step: "killing the VMM",
                    deadline,
                });
            }
        }
        self.with(|machine| machine.end(VmExit::Signal(9)));
        Ok(())
    }

    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }

    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }

    fn snapshot(&self) -> Option<&dyn Snapshot> {
        Some(self)
    }
}

#[async_trait]
impl Snapshot for FakeVm {
    async fn save(&self, state: OwnedFd, deadline: Duration) -> Result<(), VmmError> {
        let step = "saving the machine";
        let saved = self.go(Step::Save, step, self.process.pid, |machine| {
            if !machine.savable {
                return Err(VmmError::Device {
                    id: "mem0".into(),
                    what: "its memory is in no file",
                });
            }
            std::io::Write::write_all(&mut std::fs::File::from(state), b"fake state")
                .map_err(|source| VmmError::Io { step, source })
        });
        tokio::time::timeout(deadline, saved)
            .await
            .unwrap_or(Err(VmmError::Deadline { step, deadline }))
    }
}

#[async_trait]
impl Hotplug for FakeVm {
    async fn plug(&self, device: DeviceRequest, _: Vec<OwnedFd>) -> Result<Plugged, VmmError> {
        let id = match device {
            DeviceRequest::SharedFs { id, .. }
            | DeviceRequest::Block { id, .. }
            | DeviceRequest::Net { id, .. } => id,
        };
        self.go(Step::Plug, "device_add", id.clone(), |machine| {
            if machine.plugged.values().any(|there| *there == id) {
                return Err(VmmError::Device {
                    id,
                    what: "the id is in use",
                });
            }
            let free = (0..machine.plan.root_ports).find(|slot| !machine.plugged.contains_key(slot));
            let Some(slot) = free else {
                return Err(VmmError::Device {
                    id,
                    what: "no free root port: raise pcie_root_port",
                });
            };
            machine.plugged.insert(slot, id.clone());
            Ok(Plugged {
                id,
                pci_path: format!("{:02x}.0/00.0", 4 + slot),
            })
        })
        .await
    }

    async fn unplug(&self, id: &str, deadline: Duration) -> Result<(), VmmError> {
        let step = "unplugging a device";
        let unplugged = self.go(Step::Unplug, step, id, |machine| {
            let slot = machine
                .plugged
                .iter()
                .find(|(_, there)| *there == id)
                .map(|(slot, _)| *slot);
            match slot {
                Some(slot) => {
                    machine.plugged.remove(&slot);
                    Ok(())
                }
                None => Err(VmmError::Device {
                    id: id.to_owned(),
                    what: "is not plugged",
                }),
            }
        });
        tokio::time::timeout(deadline, unplugged)
            .await
            .unwrap_or(Err(VmmError::Deadline { step, deadline }))
    }
}

#[async_trait]
impl Resize for FakeVm {
    async fn vcpus(&self) -> Result<u32, VmmError> {
        Ok(self.with(|machine| machine.vcpus))
    }

    async fn set_vcpus(&self, count: u32) -> Result<u32, VmmError> {
        self.go(Step::Vcpus, "device_add", count, |machine| {
            if count > machine.plan.max_vcpus {
                return Err(VmmError::Unsupported {
                    option: "vcpus",
                    value: count.to_string(),
                    expected: "at most the maximum number of vCPUs the VM was started with",
                });
            }
            machine.vcpus = machine.vcpus.max(count);
            Ok(machine.vcpus)
        })
        .await
    }

    async fn set_memory(&self, mib: u32) -> Result<u32, VmmError> {
        self.go(Step::Memory, "device_add", mib, |machine| {
            let plan = &machine.plan;
            if mib > plan.max_memory_mib {
                return Err(VmmError::Unsupported {
                    option: "memory",
                    value: format!("{mib} MiB"),
                    expected: "at most the maximum size the VM was started with",
                });
            }
            let added = mib.saturating_sub(plan.memory_mib).div_ceil(128) * 128;
            Ok(plan.memory_mib + added)
        })
        .await
    }
}
