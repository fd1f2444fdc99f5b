//! A VMM in memory.

use super::*;

use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{
    ContainerId, ContainerPlan, ExitStatus, FailureKind, HostProcess, ProcessKey, RootfsPlan, SandboxId,
    SandboxPlan, oci, stats::ContainerStats,
};
use bulkhead_protocol::{
    Guest, GuestContainer, GuestError, GuestEvent, GuestExit, GuestHello, GuestIdentity, GuestProcess,
    GuestStdio, StreamId,
};
use bulkhead_sandbox::network::{NetworkSource, NetworkSpace, TapRequest};
use bulkhead_sandbox::platform::{Bind, CgroupMade, Daemon, FsdLaunch, GuestPorts};
use bulkhead_sandbox::{
    Beginning, Command, Engine, Handle, Journal, Layout, Luggage, Platform, Reply, Resource, SandboxPaths,
    StdioSet, World,
};
use bulkhead_vmm::{
    DeviceRequest, Hotplug, Launch, Origin, Plugged, Resize, Snapshot, Vm, VmExit, Vmm, VmmError,
};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

pub struct FakeVmm {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub end: Arc<watch::Sender<bool>>,
    pub guest: Arc<FakeGuest>,
    pub killed: std::sync::atomic::AtomicBool,
}

impl FakeVmm {
    /// The next saved machine is killed while it is loaded.
    pub fn kill_next_restore(&self) {
        self.killed.store(true, Ordering::SeqCst);
    }
}

pub struct FakeVm {
    pub process: HostProcess,
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub end: Arc<watch::Sender<bool>>,
    pub guest: Arc<FakeGuest>,
    pub savable: bool,
}

pub fn vmm_error(error: &io::Error) -> VmmError {
    VmmError::Ended {
        step: "a fake step",
        exit: VmExit::Code(1),
        stderr: error.to_string(),
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn launch(&self, launch: Launch) -> Result<Box<dyn Vm>, VmmError> {
        let (step, savable) = match launch.origin {
            Origin::Boot => ("launch", false),
            Origin::BootInto(_) => ("launch", true),
            Origin::Saved(saved) => {
                let mut state = String::new();
                io::Read::read_to_string(&mut std::fs::File::from(saved.state), &mut state).unwrap();
                assert_eq!(state, "saved");
                if self.killed.swap(false, Ordering::SeqCst) {
                    return Err(VmmError::Ended {
                        step: "loading the saved machine",
                        exit: VmExit::Signal(9),
                        stderr: String::new(),
                    });
                }
                ("restore", false)
            }
        };
        self.faults.slow_step(step).await.map_err(|e| vmm_error(&e))?;
        self.end.send_replace(false);
        *self.ledger.size.lock().unwrap() = (launch.plan.vcpus, launch.plan.memory_mib, launch.plan.vcpus);
        let process = self.ledger.spawn("vmm");
        self.ledger
            .markers
            .lock()
            .unwrap()
            .insert(process.pid, launch.marker);
        Ok(Box::new(FakeVm {
            process,
            faults: Arc::clone(&self.faults),
            ledger: Arc::clone(&self.ledger),
            end: Arc::clone(&self.end),
            guest: Arc::clone(&self.guest),
            savable,
        }))
    }
    fn signature(&self, plan: &bulkhead_model::VmPlan, accelerator: Accelerator) -> Result<String, VmmError> {
        Ok(format!("{accelerator:?} {} {}", plan.vcpus, plan.memory_mib))
    }
    async fn adopt(
        &self,
        process: HostProcess,
        _: bulkhead_model::VmPlan,
        _: OwnedFd,
    ) -> Result<Box<dyn Vm>, VmmError> {
        self.faults.slow_step("adopt").await.map_err(|e| vmm_error(&e))?;
        // All VMs have one end, and this one lives.
        self.end.send_replace(false);
        Ok(Box::new(FakeVm {
            savable: false,
            process,
            faults: Arc::clone(&self.faults),
            ledger: Arc::clone(&self.ledger),
            end: Arc::clone(&self.end),
            guest: Arc::clone(&self.guest),
        }))
    }
}

#[async_trait]
impl Vm for FakeVm {
    fn process(&self) -> HostProcess {
        self.process
    }
    fn round_trips(&self) -> u64 {
        3
    }
    async fn resume(&self) -> Result<(), VmmError> {
        self.faults.slow_step("resume").await.map_err(|e| vmm_error(&e))
    }
    async fn halt(&self) -> Result<(), VmmError> {
        self.faults.slow_step("halt").await.map_err(|e| vmm_error(&e))
    }
    async fn hold(&self, _: &'static str, _: OwnedFd) -> Result<(), VmmError> {
        self.faults.slow_step("hold").await.map_err(|e| vmm_error(&e))
    }
    async fn exited(&self) -> VmExit {
        let _ = self.end.subscribe().wait_for(|ended| *ended).await;
        VmExit::Signal(9)
    }
    async fn kill(&self, _: Duration) -> Result<(), VmmError> {
        self.end.send_replace(true);
        self.guest.power_off();
        self.ledger.processes.lock().unwrap().remove(&self.process.pid);
        self.faults.step("kill").map_err(|e| vmm_error(&e))
    }
    fn hotplug(&self) -> Option<&dyn Hotplug> {
        Some(self)
    }
    fn resize(&self) -> Option<&dyn Resize> {
        Some(self)
    }
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        self.savable.then_some(self)
    }
}

#[async_trait]
impl Snapshot for FakeVm {
    async fn save(&self, state: OwnedFd, _: Duration) -> Result<(), VmmError> {
        self.faults.slow_step("save").await.map_err(|e| vmm_error(&e))?;
        io::Write::write_all(&mut std::fs::File::from(state), b"saved").unwrap();
        Ok(())
    }
}

#[async_trait]
impl Resize for FakeVm {
    async fn vcpus(&self) -> Result<u32, VmmError> {
        Ok(self.ledger.size.lock().unwrap().0)
    }
    async fn set_vcpus(&self, count: u32) -> Result<u32, VmmError> {
        self.ledger.note(format!("set_vcpus {count}"));
        self.faults.step("set_vcpus").map_err(|e| vmm_error(&e))?;
        let mut size = self.ledger.size.lock().unwrap();
        size.0 = size.0.max(count);
        Ok(size.0)
    }
    async fn set_memory(&self, mib: u32) -> Result<u32, VmmError> {
        self.ledger.note(format!("set_memory {mib}"));
        self.faults.step("set_memory").map_err(|e| vmm_error(&e))?;
        self.ledger.size.lock().unwrap().1 = mib;
        Ok(mib)
    }
}

#[async_trait]
impl Hotplug for FakeVm {
    async fn plug(&self, device: DeviceRequest, _: Vec<OwnedFd>) -> Result<Plugged, VmmError> {
        self.faults.slow_step("plug").await.map_err(|e| vmm_error(&e))?;
        match device {
            DeviceRequest::SharedFs { id, .. } => Ok(Plugged {
                id,
                pci_path: "02/00".into(),
            }),
            DeviceRequest::Net { id, mac, queues } => {
                self.ledger.note(format!("plug {id} {mac} {queues}"));
                self.ledger.cards.lock().unwrap().insert(id.clone());
                let slot = id.trim_start_matches("net").parse::<u32>().unwrap() + 4;
                Ok(Plugged {
                    id,
                    pci_path: format!("{slot:02x}.0/00.0"),
                })
            }
            DeviceRequest::Block { .. } => panic!("no disk is expected"),
        }
    }
    async fn unplug(&self, id: &str, _: Duration) -> Result<(), VmmError> {
        self.ledger.note(format!("unplug {id}"));
        self.faults.step("unplug").map_err(|e| vmm_error(&e))?;
        // A share is not kept account of: it goes with its VM.
        if id != "fs0" && !self.ledger.cards.lock().unwrap().remove(id) {
            return Err(VmmError::Device {
                id: id.to_owned(),
                what: "is not plugged",
            });
        }
        Ok(())
    }
}
