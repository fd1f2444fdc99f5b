//! A VMM of which each step can be scripted.
//!
//! Owns: the script, the record, the machines. Never: what a step does to a VM (see `vm`). Called by the engine through
//! the trait, and by its tests.

use super::machine::{Machine, ended, injected};
use super::script::{Call, Fault, Step};
use super::vm::FakeVm;
use crate::{Launch, Origin, SavedMachine, Vm, VmExit, Vmm, VmmError};
use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::watch;

/// A scriptable [`Vmm`]. Clones share script and record.
#[derive(Debug, Clone, Default)]
pub struct FakeVmm(Arc<Mutex<State>>);

#[derive(Debug, Default)]
pub(super) struct State {
    pub(super) calls: Vec<Call>,
    counts: BTreeMap<Step, u32>,
    faults: BTreeMap<(Step, u32), Fault>,
    faults_at: BTreeMap<usize, Fault>,
    pub(super) machines: Vec<Machine>,
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

    pub(super) fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records a call and tells what is scripted for it.
    pub(super) fn call(&self, step: Step, about: impl ToString) -> Option<Fault> {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::DeviceRequest;
    use crate::qemu::testing::plan;
    use std::fs::File;
    use std::time::Duration;

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
