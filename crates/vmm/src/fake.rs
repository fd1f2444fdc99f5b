//! A VMM without a VM, for fault injection: does as scripted, remembers what was asked.
//!
//! ```text
//!  FakeVmm ──launch──► alive ──resume──► running ──end / kill──► ended
//!     │ fault(step, nth, Fail | Hang), fault_at(n)        └─ devices plugged, asked for by leftovers()
//! ```
//!
//! Owns: the script and the record. Never: a process, a descriptor beyond those it was given. Called by
//! tests of the engine; part of the library so that other crates' tests can use it.

use crate::{
    DeviceRequest, Hotplug, Launch, Origin, Plugged, Resize, SavedMachine, Snapshot, Vm, VmExit, Vmm,
    VmmError,
};
use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;
use tokio::sync::watch;

/// What can be asked of a VMM or VM, and so what can go wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Step {
    /// [`Vmm::launch`] of a machine that boots.
    Launch,
    /// [`Vmm::launch`] of a saved machine.
    Restore,
    /// [`Snapshot::save`].
    Save,
    /// [`Vmm::adopt`].
    Adopt,
    /// [`Vm::resume`].
    Resume,
    /// [`Vm::halt`].
    Halt,
    /// [`Vm::hold`].
    Hold,
    /// [`Vm::kill`].
    Kill,
    /// [`Hotplug::plug`].
    Plug,
    /// [`Hotplug::unplug`].
    Unplug,
    /// [`Resize::set_vcpus`].
    Vcpus,
    /// [`Resize::set_memory`].
    Memory,
}

/// How it goes wrong.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// An error; nothing was done.
    Fail,
    /// No answer, ever: only a deadline of the caller or the end of the VM helps. A `Kill` that hangs
    /// honours its own deadline.
    Hang,
    /// The VM ends during the step.
    End,
}

/// A call that was made: the step and the device id or number it was about.
pub type Call = (Step, String);

/// A scriptable [`Vmm`]. Clones share script and record.
#[derive(Debug, Clone, Default)]
pub struct FakeVmm(Arc<Mutex<State>>);

#[derive(Debug, Default)]
struct State {
    calls: Vec<Call>,
    counts: BTreeMap<Step, u32>,
    faults: BTreeMap<(Step, u32), Fault>,
    faults_at: BTreeMap<usize, Fault>,
    machines: Vec<Machine>,
}

#[derive(Debug)]
struct Machine {
    process: HostProcess,
    plan: VmPlan,
    exit: watch::Sender<Option<VmExit>>,
    plugged: BTreeMap<u32, String>,
    vcpus: u32,
    // Held like QEMU holds them: peers see the end when the VM ends.
    sockets: Vec<OwnedFd>,
    savable: bool,
}

impl FakeVmm {
    /// One that does everything it is asked.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// The `nth` call (from 1) of `step` goes wrong.
    pub fn fault(&self, step: Step, nth: u32, fault: Fault) {
        self.state().faults.insert((step, nth), fault);
    }

    /// The `n`th call of any kind (from 1) goes wrong.
    pub fn fault_at(&self, n: usize, fault: Fault) {
        self.state().faults_at.insert(n, fault);
    }

    /// Takes all faults back.
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.faults_at.clear();
    }

    /// Every VM that is alive ends like this, by itself.
    pub fn end(&self, exit: VmExit) {
        for machine in &mut self.state().machines {
            machine.end(exit);
        }
    }

    /// Calls made so far, failed ones included, in order.
    #[must_use]
    pub fn calls(&self) -> Vec<Call> {
        self.state().calls.clone()
    }

    /// What is still there, in words: VMs alive and devices plugged into them. Empty after a clean stop.
    #[must_use]
    pub fn leftovers(&self) -> Vec<String> {
        let state = self.state();
        let alive = state.machines.iter().filter(|m| m.alive());
        alive
            .flat_map(|machine| {
                let pid = machine.process.pid;
                let devices = machine
                    .plugged
                    .values()
                    .map(move |id| format!("device {id} plugged into VM {pid}"));
                std::iter::once(format!("VM {pid} alive")).chain(devices)
            })
            .collect()
    }

    /// Ids of the devices plugged into VMs that are alive.
    #[must_use]
    pub fn plugged(&self) -> Vec<String> {
        let state = self.state();
        state
            .machines
            .iter()
            .filter(|m| m.alive())
            .flat_map(|m| m.plugged.values().cloned())
            .collect()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call and tells what is scripted for it.
    fn call(&self, step: Step, about: impl ToString) -> Option<Fault> {
        let mut state = self.state();
        state.calls.push((step, about.to_string()));
        let count = state.counts.entry(step).or_default();
        *count += 1;
        let nth = *count;
        let all = state.calls.len();
        state
            .faults
            .get(&(step, nth))
            .or_else(|| state.faults_at.get(&all))
            .copied()
    }

    fn vm(&self, index: usize, process: HostProcess, exit: watch::Receiver<Option<VmExit>>) -> Box<dyn Vm> {
        Box::new(FakeVm {
            vmm: self.clone(),
            index,
            process,
            exit,
        })
    }
}

impl Machine {
    fn alive(&self) -> bool {
        self.exit.borrow().is_none()
    }

    fn end(&mut self, exit: VmExit) {
        if self.alive() {
            self.sockets.clear();
            self.exit.send_replace(Some(exit));
        }
    }
}

fn injected() -> VmmError {
    VmmError::Device {
        id: "fake".into(),
        what: "injected fault",
    }
}

fn ended(step: &'static str, exit: VmExit) -> VmmError {
    VmmError::Ended {
        step,
        exit,
        stderr: String::new(),
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn launch(&self, launch: Launch) -> Result<Box<dyn Vm>, VmmError> {
        let step = match &launch.origin {
            Origin::Boot | Origin::BootInto(_) => Step::Launch,
            Origin::Saved(_) => Step::Restore,
        };
        match self.call(step, &launch.marker) {
            None => {}
            Some(Fault::Fail) => return Err(injected()),
            Some(Fault::End) => return Err(ended("starting the VMM", VmExit::Code(1))),
            Some(Fault::Hang) => std::future::pending().await,
        }
        let mut state = self.state();
        let index = state.machines.len();
        // Above any pid_max (4,194,304): a journal's undo that looks for it finds nothing.
        let process = HostProcess {
            pid: i32::MAX - i32::try_from(index).unwrap_or(0),
            start_time: 1,
        };
        let (exit, seen) = watch::channel(None);
        let vcpus = launch.plan.vcpus;
        let savable = matches!(launch.origin, Origin::BootInto(_));
        let origin = match launch.origin {
            Origin::Boot => Vec::new(),
            Origin::BootInto(memory) => vec![memory],
            Origin::Saved(SavedMachine { state, memory, .. }) => vec![state, memory],
        };
        state.machines.push(Machine {
            process,
            plan: launch.plan,
            exit,
            plugged: BTreeMap::new(),
            vcpus,
            sockets: vec![
                launch.qmp_listener,
                launch.qmp,
                launch.control_listener,
                launch.data_listener,
                launch.console_listener,
                launch.stderr,
            ]
            .into_iter()
            .chain(origin)
            .collect(),
            savable,
        });
        drop(state);
        Ok(self.vm(index, process, seen))
    }

    fn signature(&self, plan: &VmPlan, accelerator: Accelerator) -> Result<String, VmmError> {
        let VmPlan {
            vcpus, memory_mib, ..
        } = plan;
        Ok(format!("fake {accelerator:?} {vcpus} {memory_mib}"))
    }

    async fn adopt(&self, process: HostProcess, _: VmPlan, _: OwnedFd) -> Result<Box<dyn Vm>, VmmError> {
        match self.call(Step::Adopt, process.pid) {
            None => {}
            Some(Fault::Hang) => std::future::pending().await,
            Some(Fault::Fail | Fault::End) => return Err(injected()),
        }
        let state = self.state();
        let found = state
            .machines
            .iter()
            .position(|m| m.process == process && m.alive());
        let Some(index) = found else {
            return Err(ended("taking over the VMM", VmExit::Unknown));
        };
        let exit = state.machines[index].exit.subscribe();
        drop(state);
        Ok(self.vm(index, process, exit))
    }
}

/// A VM of a [`FakeVmm`].
#[derive(Debug)]
pub struct FakeVm {
    vmm: FakeVmm,
    index: usize,
    process: HostProcess,
    exit: watch::Receiver<Option<VmExit>>,
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::qemu::testing::plan;
    use std::fs::File;

    const SOON: Duration = Duration::from_secs(20);

    fn launch() -> Launch {
        let fd = || OwnedFd::from(File::open("/dev/null").unwrap());
        Launch {
            plan: plan(),
            accelerator: Accelerator::Tcg,
            qmp_listener: fd(),
            qmp: fd(),
            control_listener: fd(),
            data_listener: fd(),
            console_listener: fd(),
            stderr: fd(),
            marker: "m".into(),
            cgroup_procs: Vec::new(),
            share: None,
            origin: Origin::Boot,
        }
    }

    fn disk(id: &str) -> DeviceRequest {
        DeviceRequest::Block {
            id: id.into(),
            path: "/d".into(),
            readonly: false,
            format: "raw".into(),
        }
    }

    #[tokio::test]
    async fn a_life_without_faults_leaves_nothing() {
        let vmm = FakeVmm::new();
        let vm = vmm.launch(launch()).await.unwrap();
        let hotplug = vm.hotplug().unwrap();
        assert_eq!(
            hotplug.plug(disk("a"), Vec::new()).await.unwrap().pci_path,
            "04.0/00.0"
        );
        vm.resume().await.unwrap();
        assert_eq!(vmm.leftovers().len(), 2);
        hotplug.unplug("a", SOON).await.unwrap();
        vm.kill(SOON).await.unwrap();
        assert_eq!(vm.exited().await, VmExit::Signal(9));
        assert!(vmm.leftovers().is_empty());
        let steps: Vec<Step> = vmm.calls().into_iter().map(|(step, _)| step).collect();
        assert_eq!(
            steps,
            [Step::Launch, Step::Plug, Step::Resume, Step::Unplug, Step::Kill]
        );
    }

    #[tokio::test]
    async fn faults_strike_where_they_were_put() {
        let vmm = FakeVmm::new();
        vmm.fault(Step::Plug, 2, Fault::Fail);
        vmm.fault_at(4, Fault::End);
        let vm = vmm.launch(launch()).await.unwrap();
        let hotplug = vm.hotplug().unwrap();
        hotplug.plug(disk("a"), Vec::new()).await.unwrap();
        assert!(hotplug.plug(disk("b"), Vec::new()).await.is_err());
        assert_eq!(vmm.plugged(), ["a"]);
        let ended = vm.resume().await;
        assert!(
            matches!(
                ended,
                Err(VmmError::Ended {
                    exit: VmExit::Signal(9),
                    ..
                })
            ),
            "{ended:?}"
        );
        assert!(vmm.leftovers().is_empty());
    }

    #[tokio::test]
    async fn a_hanging_step_ends_with_the_vm_or_its_deadline() {
        let vmm = FakeVmm::new();
        vmm.fault(Step::Resume, 1, Fault::Hang);
        vmm.fault(Step::Unplug, 1, Fault::Hang);
        let vm = vmm.launch(launch()).await.unwrap();
        let late = vm.hotplug().unwrap().unplug("a", Duration::from_millis(5)).await;
        assert!(matches!(late, Err(VmmError::Deadline { .. })), "{late:?}");
        let (resumed, ()) = tokio::join!(vm.resume(), async { vmm.end(VmExit::Code(1)) });
        assert!(
            matches!(
                resumed,
                Err(VmmError::Ended {
                    exit: VmExit::Code(1),
                    ..
                })
            ),
            "{resumed:?}"
        );
    }

    #[tokio::test]
    async fn only_a_living_vm_is_taken_over() {
        let vmm = FakeVmm::new();
        let vm = vmm.launch(launch()).await.unwrap();
        let fd = || OwnedFd::from(File::open("/dev/null").unwrap());
        let again = vmm.adopt(vm.process(), plan(), fd()).await.unwrap();
        assert_eq!(again.process(), vm.process());
        vmm.end(VmExit::Code(0));
        assert_eq!(again.exited().await, VmExit::Code(0));
        assert!(vmm.adopt(vm.process(), plan(), fd()).await.is_err());
    }

    #[tokio::test]
    async fn a_machine_is_saved_and_goes_on_elsewhere() {
        let vmm = FakeVmm::new();
        let temp = tempfile::tempdir().unwrap();
        let file = |name: &str| OwnedFd::from(File::create(temp.path().join(name)).unwrap());
        let mut first = launch();
        first.origin = Origin::BootInto(file("memory"));
        let vm = vmm.launch(first).await.unwrap();
        vm.snapshot().unwrap().save(file("state"), SOON).await.unwrap();
        let mut again = launch();
        again.origin = Origin::Saved(SavedMachine {
            state: File::open(temp.path().join("state")).unwrap().into(),
            memory: File::open(temp.path().join("memory")).unwrap().into(),
            reuse: crate::MemoryReuse::Copy,
        });
        let again = vmm.launch(again).await.unwrap();
        assert!(again.snapshot().unwrap().save(file("x"), SOON).await.is_err());
        let steps: Vec<Step> = vmm.calls().into_iter().map(|(step, _)| step).collect();
        assert_eq!(steps, [Step::Launch, Step::Save, Step::Restore, Step::Save]);
    }
}
