//! A host, a VMM and a guest that only exist in memory, and that fail at the step they are told to.
//!
//! Every fallible call is one step of [`Faults`]; a run without faults counts them, then each is failed in
//! turn. What is acquired is kept in a ledger that must be empty in the end.

#![allow(dead_code, unreachable_pub, missing_docs)]

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
use bulkhead_sandbox::platform::{Bind, CgroupMade, Daemon, FsdLaunch, GuestPorts};
use bulkhead_sandbox::{
    Beginning, Command, Engine, Handle, Journal, Layout, Luggage, Platform, Reply, Resource, SandboxPaths,
    StdioSet, World,
};
use bulkhead_vmm::{DeviceRequest, Hotplug, Launch, Plugged, Resize, Vm, VmExit, Vmm, VmmError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// Counts steps and fails one.
#[derive(Default)]
pub struct Faults {
    steps: Mutex<Vec<&'static str>>,
    fail_at: Mutex<Option<usize>>,
    fail_name: Mutex<Option<&'static str>>,
    hang_at: Mutex<Option<&'static str>>,
}

impl Faults {
    /// Fails the `k`th step from now on, once.
    pub fn fail_at(&self, k: usize) {
        let now = self.steps.lock().unwrap().len();
        *self.fail_at.lock().unwrap() = Some(now + k);
    }

    /// Fails the next step of this name, once.
    pub fn fail_at_name(&self, name: &'static str) {
        *self.fail_name.lock().unwrap() = Some(name);
    }

    /// Steps so far.
    pub fn count(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    /// The name of a step.
    pub fn name(&self, k: usize) -> &'static str {
        self.steps.lock().unwrap()[k]
    }

    /// Makes the step of this name wait for ever.
    pub fn hang_at(&self, name: Option<&'static str>) {
        *self.hang_at.lock().unwrap() = name;
    }

    fn step(&self, name: &'static str) -> io::Result<()> {
        let mut steps = self.steps.lock().unwrap();
        steps.push(name);
        let mut fail_at = self.fail_at.lock().unwrap();
        if *fail_at == Some(steps.len() - 1) {
            *fail_at = None;
            return Err(io::Error::other(format!("injected into {name}")));
        }
        let mut fail_name = self.fail_name.lock().unwrap();
        if *fail_name == Some(name) {
            *fail_name = None;
            return Err(io::Error::other(format!("injected into {name}")));
        }
        Ok(())
    }

    async fn slow_step(&self, name: &'static str) -> io::Result<()> {
        let result = self.step(name);
        let hangs = *self.hang_at.lock().unwrap() == Some(name);
        if hangs {
            std::future::pending::<()>().await;
        }
        result
    }

    fn guest(&self, name: &'static str) -> Result<(), GuestError> {
        self.step(name).map_err(|e| GuestError::Refused {
            kind: FailureKind::Internal,
            message: e.to_string(),
        })
    }
}

/// What the fakes hold.
#[derive(Default)]
pub struct Ledger {
    pub mounts: Mutex<BTreeSet<PathBuf>>,
    pub cgroups: Mutex<BTreeSet<PathBuf>>,
    pub processes: Mutex<BTreeMap<i32, &'static str>>,
    pub guest_containers: Mutex<BTreeSet<String>>,
    /// What was done in which order, of what tests ask about.
    pub order: Mutex<Vec<String>>,
    /// vCPUs the VM has, memory in MiB, vCPUs online.
    pub size: Mutex<(u32, u32, u32)>,
    /// What the agent was asked to make.
    pub containers_made: Mutex<Vec<GuestContainer>>,
    next_pid: AtomicI32,
}

impl Ledger {
    /// Notes something done.
    pub fn note(&self, what: impl Into<String>) {
        self.order.lock().unwrap().push(what.into());
    }

    /// What was noted since the last time.
    pub fn take_order(&self) -> Vec<String> {
        std::mem::take(&mut *self.order.lock().unwrap())
    }

    fn spawn(&self, role: &'static str) -> HostProcess {
        let pid = 1000 + self.next_pid.fetch_add(1, Ordering::SeqCst);
        self.processes.lock().unwrap().insert(pid, role);
        HostProcess { pid, start_time: 1 }
    }

    /// Asserts that nothing is held.
    pub fn assert_empty(&self, context: &str) {
        assert!(
            self.mounts.lock().unwrap().is_empty(),
            "{context}: mounts {:?}",
            self.mounts
        );
        assert!(
            self.cgroups.lock().unwrap().is_empty(),
            "{context}: cgroups {:?}",
            self.cgroups
        );
        assert!(
            self.processes.lock().unwrap().is_empty(),
            "{context}: processes {:?}",
            self.processes
        );
    }
}

struct FakeDaemon {
    process: HostProcess,
    ledger: Arc<Ledger>,
    end: watch::Receiver<bool>,
}

#[async_trait]
impl Daemon for FakeDaemon {
    fn process(&self) -> HostProcess {
        self.process
    }
    async fn exited(&self) {
        let _ = self.end.clone().wait_for(|ended| *ended).await;
        self.ledger.processes.lock().unwrap().remove(&self.process.pid);
    }
}

pub struct FakeHost {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub guest: Arc<FakeGuest>,
    pub fsd_end: watch::Sender<bool>,
    /// Hardware virtualisation seems to be there.
    pub kvm: Mutex<bool>,
    /// Undo of this role or path fails.
    pub sticky: Mutex<Option<PathBuf>>,
}

#[async_trait]
impl Platform for FakeHost {
    fn accelerator(&self) -> Accelerator {
        if *self.kvm.lock().unwrap() {
            Accelerator::Kvm
        } else {
            Accelerator::Tcg
        }
    }
    fn distrust_kvm(&self) -> bool {
        std::mem::take(&mut *self.kvm.lock().unwrap())
    }
    fn now_ns(&self) -> u64 {
        42
    }
    fn entropy(&self) -> io::Result<Vec<u8>> {
        self.faults.step("entropy")?;
        Ok(vec![7; 64])
    }
    fn make_dir(&self, path: &Path) -> io::Result<()> {
        self.faults.step("make_dir")?;
        std::fs::create_dir_all(path)
    }
    fn plan_cgroup(&self, plan: &SandboxPlan) -> io::Result<Vec<PathBuf>> {
        self.faults.step("plan_cgroup")?;
        Ok(plan.cgroups_path.iter().map(PathBuf::from).collect())
    }
    fn make_cgroup(&self, _: &SandboxPlan, paths: &[PathBuf]) -> io::Result<CgroupMade> {
        self.ledger.cgroups.lock().unwrap().extend(paths.iter().cloned());
        self.faults.step("make_cgroup")?;
        Ok(CgroupMade::default())
    }
    fn join_cgroup(&self, _: &[PathBuf], _: HostProcess) -> Vec<String> {
        Vec::new()
    }
    fn listen(&self, path: &Path) -> io::Result<OwnedFd> {
        self.faults.step("listen")?;
        std::fs::write(path, "")?;
        Ok(std::fs::File::open("/dev/null")?.into())
    }
    fn log_pipe(&self, _: &'static str) -> io::Result<OwnedFd> {
        self.faults.step("log_pipe")?;
        Ok(std::fs::File::open("/dev/null")?.into())
    }
    fn follow_console(&self, _: OwnedFd) -> io::Result<()> {
        self.faults.step("follow_console")
    }
    fn console_tail(&self) -> Vec<String> {
        vec!["last console line".into()]
    }
    fn mount_namespace(&self) -> io::Result<(u64, u64)> {
        self.faults.step("mount_namespace")?;
        Ok((4, 4))
    }
    fn share_root(&self, share: &Path) -> io::Result<()> {
        self.ledger.mounts.lock().unwrap().insert(share.to_owned());
        self.faults.step("share_root")
    }
    fn make_guest_dir(&self, path: &Path) -> io::Result<()> {
        self.faults.step("make_guest_dir")?;
        std::fs::create_dir_all(path)
    }
    fn bind(&self, bind: Bind<'_>) -> io::Result<()> {
        self.ledger.mounts.lock().unwrap().insert(bind.target.to_owned());
        self.faults.step("bind")
    }
    async fn spawn_fsd(&self, launch: FsdLaunch) -> io::Result<Box<dyn Daemon>> {
        assert!(!launch.marker.is_empty());
        self.faults.slow_step("spawn_fsd").await?;
        let process = self.ledger.spawn("fsd");
        Ok(Box::new(FakeDaemon {
            process,
            ledger: Arc::clone(&self.ledger),
            end: self.fsd_end.subscribe(),
        }))
    }
    fn open_netns(&self, _: &SandboxPlan) -> io::Result<Option<OwnedFd>> {
        self.faults.step("open_netns")?;
        Ok(None)
    }
    fn connect(&self, _: &Path) -> io::Result<OwnedFd> {
        self.faults.step("connect")?;
        Ok(std::fs::File::open("/dev/null")?.into())
    }
    fn runs(&self, process: HostProcess) -> bool {
        self.ledger.processes.lock().unwrap().contains_key(&process.pid)
    }
    async fn ended(&self, process: HostProcess, _: Duration) -> bool {
        !self.runs(process)
    }
    fn adopt_daemon(&self, process: HostProcess) -> io::Result<Box<dyn Daemon>> {
        self.faults.step("adopt_daemon")?;
        Ok(Box::new(FakeDaemon {
            process,
            ledger: Arc::clone(&self.ledger),
            end: self.fsd_end.subscribe(),
        }))
    }
    async fn connect_guest(&self, _: GuestPorts<'_>) -> Result<Arc<dyn Guest>, GuestError> {
        self.faults
            .slow_step("connect_guest")
            .await
            .map_err(|_| GuestError::Deadline {
                call: "hello",
                seconds: 1,
            })?;
        Ok(Arc::clone(&self.guest) as Arc<dyn Guest>)
    }
    fn undo(&self, resource: &Resource) -> io::Result<()> {
        let sticky = self.sticky.lock().unwrap().clone();
        match resource {
            Resource::Directory { path } => {
                if sticky.as_ref() == Some(path) {
                    return Err(io::Error::other("stuck"));
                }
                match std::fs::remove_dir_all(path) {
                    Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
                    _ => {}
                }
            }
            Resource::Cgroup { paths } => {
                self.ledger.cgroups.lock().unwrap().retain(|p| !paths.contains(p));
            }
            Resource::Process { role, process } => {
                let mut processes = self.ledger.processes.lock().unwrap();
                match process {
                    Some(process) => {
                        processes.remove(&process.pid);
                    }
                    None => processes.retain(|_, r| r != role),
                }
            }
            Resource::Mount { path, .. } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.ledger.note(format!("unmount {name}"));
                if sticky.as_ref() == Some(path) {
                    return Err(io::Error::other("busy"));
                }
                self.ledger.mounts.lock().unwrap().remove(path);
            }
            Resource::Link { .. } => {}
        }
        Ok(())
    }
}

pub struct FakeVmm {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub end: Arc<watch::Sender<bool>>,
    pub guest: Arc<FakeGuest>,
}

struct FakeVm {
    process: HostProcess,
    faults: Arc<Faults>,
    ledger: Arc<Ledger>,
    end: Arc<watch::Sender<bool>>,
    guest: Arc<FakeGuest>,
}

fn vmm_error(error: &io::Error) -> VmmError {
    VmmError::Ended {
        step: "a fake step",
        exit: VmExit::Code(1),
        stderr: error.to_string(),
    }
}

#[async_trait]
impl Vmm for FakeVmm {
    async fn launch(&self, _: Launch) -> Result<Box<dyn Vm>, VmmError> {
        self.faults.slow_step("launch").await.map_err(|e| vmm_error(&e))?;
        self.end.send_replace(false);
        Ok(Box::new(FakeVm {
            process: self.ledger.spawn("vmm"),
            faults: Arc::clone(&self.faults),
            ledger: Arc::clone(&self.ledger),
            end: Arc::clone(&self.end),
            guest: Arc::clone(&self.guest),
        }))
    }
    async fn adopt(
        &self,
        process: HostProcess,
        _: bulkhead_model::VmPlan,
        _: OwnedFd,
    ) -> Result<Box<dyn Vm>, VmmError> {
        self.faults.slow_step("adopt").await.map_err(|e| vmm_error(&e))?;
        Ok(Box::new(FakeVm {
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
        let DeviceRequest::SharedFs { id, .. } = device else {
            panic!("only a share is expected")
        };
        Ok(Plugged {
            id,
            pci_path: "02/00".into(),
        })
    }
    async fn unplug(&self, _: &str, _: Duration) -> Result<(), VmmError> {
        self.faults.step("unplug").map_err(|e| vmm_error(&e))
    }
}

/// A guest in memory.
pub struct FakeGuest {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    exits: watch::Sender<BTreeMap<ProcessKey, ExitStatus>>,
    off: watch::Sender<bool>,
    hello: GuestHello,
    pub signals: Mutex<Vec<(ProcessKey, i32, bool)>>,
    pub disconnected: Mutex<Vec<StreamId>>,
    /// Resources as they came with each update.
    pub updates: Mutex<Vec<serde_json::Value>>,
    /// Specs as they came with each create.
    pub specs: Mutex<Vec<serde_json::Value>>,
}

impl FakeGuest {
    fn new(faults: Arc<Faults>, ledger: Arc<Ledger>) -> Self {
        Self {
            faults,
            ledger,
            exits: watch::channel(BTreeMap::new()).0,
            off: watch::channel(false).0,
            hello: GuestHello::default(),
            signals: Mutex::default(),
            disconnected: Mutex::default(),
            updates: Mutex::default(),
            specs: Mutex::default(),
        }
    }

    /// A process ends.
    pub fn exit(&self, key: ProcessKey, status: ExitStatus) {
        self.exits.send_modify(|all| {
            all.insert(key, status);
        });
    }

    fn power_off(&self) {
        self.off.send_replace(true);
        self.ledger.guest_containers.lock().unwrap().clear();
    }
}

#[async_trait]
impl Guest for FakeGuest {
    fn hello(&self) -> &GuestHello {
        &self.hello
    }
    fn calls(&self) -> u64 {
        1
    }
    async fn configure(&self, _: GuestIdentity) -> Result<(), GuestError> {
        self.off.send_replace(false);
        self.exits.send_replace(BTreeMap::new());
        self.faults.guest("configure")
    }
    async fn create_container(&self, container: GuestContainer) -> Result<i32, GuestError> {
        self.faults
            .slow_step("create_container")
            .await
            .map_err(|e| GuestError::Refused {
                kind: FailureKind::ProgramNotFound,
                message: e.to_string(),
            })?;
        self.ledger.note("create_container");
        self.ledger
            .guest_containers
            .lock()
            .unwrap()
            .insert(container.id.to_string());
        self.ledger
            .containers_made
            .lock()
            .unwrap()
            .push(container.clone());
        let spec = serde_json::from_slice(&container.spec).unwrap();
        self.specs.lock().unwrap().push(spec);
        self.exits
            .send_modify(|all| all.retain(|key, _| key.container != container.id));
        Ok(17)
    }
    async fn start_container(&self, _: &ContainerId) -> Result<(), GuestError> {
        self.faults.guest("start_container")
    }
    async fn remove_container(&self, id: &ContainerId) -> Result<(), GuestError> {
        self.ledger.note("remove_container");
        self.ledger.guest_containers.lock().unwrap().remove(id.as_str());
        self.faults.guest("remove_container")
    }
    async fn exec(&self, key: &ProcessKey, _: Vec<u8>, _: GuestStdio) -> Result<i32, GuestError> {
        self.exits.send_modify(|all| {
            all.remove(key);
        });
        self.faults.guest("exec")?;
        Ok(18)
    }
    async fn signal(&self, key: &ProcessKey, signal: i32, all: bool) -> Result<(), GuestError> {
        self.ledger.note(format!("signal {signal} all={all}"));
        self.signals.lock().unwrap().push((key.clone(), signal, all));
        if signal == 9 {
            self.exit(key.clone(), ExitStatus::Signal(9));
        }
        self.faults.guest("signal")
    }
    async fn wait(&self, key: &ProcessKey) -> Result<GuestExit, GuestError> {
        let mut exits = self.exits.subscribe();
        let mut off = self.off.subscribe();
        let status = tokio::select! {
            all = exits.wait_for(|all| all.contains_key(key)) => {
                all.ok().and_then(|all| all.get(key).copied())
            }
            _ = off.wait_for(|off| *off) => None,
        };
        let status = status.ok_or(GuestError::Gone { call: "wait" })?;
        Ok(GuestExit {
            status,
            out_of_memory: false,
            stdout_offset: 0,
            stderr_offset: 0,
        })
    }
    async fn delivered(&self, _: StreamId, _: u64) -> Result<(), GuestError> {
        Ok(())
    }
    async fn forget(&self, _: &ProcessKey) -> Result<(), GuestError> {
        Ok(())
    }
    async fn resize(&self, _: &ProcessKey, _: u16, _: u16) -> Result<(), GuestError> {
        self.faults.guest("resize")
    }
    async fn processes(&self, _: &ContainerId) -> Result<Vec<GuestProcess>, GuestError> {
        self.faults.guest("processes").map(|()| Vec::new())
    }
    async fn pause(&self, _: &ContainerId) -> Result<(), GuestError> {
        self.faults.guest("pause")
    }
    async fn resume(&self, _: &ContainerId) -> Result<(), GuestError> {
        self.faults.guest("resume")
    }
    async fn update(&self, _: &ContainerId, resources: Vec<u8>) -> Result<(), GuestError> {
        self.ledger.note("update");
        let resources = serde_json::from_slice(&resources).unwrap();
        self.updates.lock().unwrap().push(resources);
        self.faults.guest("update")
    }
    async fn stats(&self, _: &ContainerId) -> Result<ContainerStats, GuestError> {
        self.faults.guest("stats")?;
        let mut stats = ContainerStats::default();
        stats.cgroup_stats.memory_stats.usage.usage = 90 << 20;
        stats.cgroup_stats.memory_stats.cache = 50 << 20;
        Ok(stats)
    }
    async fn online(&self, cpus: u32, memory: bool) -> Result<(u32, u64), GuestError> {
        self.ledger.note(format!("online {cpus} memory={memory}"));
        self.faults.guest("online")?;
        if cpus > 0 {
            self.ledger.size.lock().unwrap().2 = cpus;
        }
        Ok((cpus, 0))
    }
    async fn next_events(&self, _: u64) -> Result<Vec<(u64, GuestEvent)>, GuestError> {
        let _ = self.off.subscribe().wait_for(|off| *off).await;
        Err(GuestError::Gone { call: "next_events" })
    }
    async fn sync(&self) -> Result<(), GuestError> {
        self.faults.guest("sync")
    }
    fn connect_output(&self, _: StreamId, _: OwnedFd) -> Result<(), GuestError> {
        self.faults.guest("connect_output")
    }
    fn connect_input(&self, _: StreamId, _: OwnedFd) -> Result<(), GuestError> {
        self.faults.guest("connect_input")
    }
    fn close_input(&self, _: StreamId) {}
    fn disconnect(&self, stream: StreamId) {
        self.disconnected.lock().unwrap().push(stream);
    }
    async fn stream_ended(&self, _: StreamId) {
        let _ = self.off.subscribe().wait_for(|off| *off).await;
    }
}

/// A host with nothing on it, and all that is needed to run sandboxes on it.
pub struct Bench {
    pub dir: tempfile::TempDir,
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub host: Arc<FakeHost>,
    pub vmm: Arc<FakeVmm>,
    pub guest: Arc<FakeGuest>,
    pub vm_end: Arc<watch::Sender<bool>>,
}

impl Bench {
    pub fn new() -> Self {
        let faults = Arc::new(Faults::default());
        let ledger = Arc::new(Ledger::default());
        let guest = Arc::new(FakeGuest::new(Arc::clone(&faults), Arc::clone(&ledger)));
        let vm_end = Arc::new(watch::channel(false).0);
        let host = Arc::new(FakeHost {
            faults: Arc::clone(&faults),
            ledger: Arc::clone(&ledger),
            guest: Arc::clone(&guest),
            fsd_end: watch::channel(false).0,
            kvm: Mutex::new(false),
            sticky: Mutex::default(),
        });
        let vmm = Arc::new(FakeVmm {
            faults: Arc::clone(&faults),
            ledger: Arc::clone(&ledger),
            end: Arc::clone(&vm_end),
            guest: Arc::clone(&guest),
        });
        Self {
            dir: tempfile::tempdir().unwrap(),
            faults,
            ledger,
            host,
            vmm,
            guest,
            vm_end,
        }
    }

    pub fn paths(&self, id: &str) -> SandboxPaths {
        let mut paths = Layout::new(self.dir.path()).sandbox(&SandboxId::new(id).unwrap());
        paths.sockets = self.dir.path().join("s").join(&paths.marker);
        paths
    }

    /// Starts a sandbox's engine as the supervisor does.
    pub fn sandbox(&self, id: &str) -> (Handle, tokio::task::JoinHandle<Vec<String>>) {
        let paths = self.paths(id);
        std::fs::create_dir_all(&paths.dir).unwrap();
        let mut journal = Journal::open(&paths.journal()).unwrap();
        journal
            .intend(Resource::Directory {
                path: paths.sockets.clone(),
            })
            .unwrap();
        std::fs::create_dir_all(&paths.sockets).unwrap();
        let (world, published, events) = World::new(
            sandbox_plan(id),
            paths,
            Arc::clone(&self.host) as Arc<dyn Platform>,
            Arc::clone(&self.vmm) as Arc<dyn Vmm>,
            journal,
            HostProcess {
                pid: 1,
                start_time: 1,
            },
        );
        let (engine, handle) = Engine::new(world, published, events);
        (handle, tokio::spawn(engine.run(Beginning::Boot)))
    }

    /// Puts a fresh supervisor in the place of one that was killed.
    pub async fn successor(&self, id: &str) -> (Handle, tokio::task::JoinHandle<Vec<String>>) {
        let paths = self.paths(id);
        let journal = Journal::open(&paths.journal()).unwrap();
        let (mut world, published, events) = World::new(
            sandbox_plan(id),
            paths,
            Arc::clone(&self.host) as Arc<dyn Platform>,
            Arc::clone(&self.vmm) as Arc<dyn Vmm>,
            journal,
            HostProcess {
                pid: 2,
                start_time: 1,
            },
        );
        world.recover().await.unwrap();
        let (engine, handle) = Engine::new(world, published, events);
        (handle, tokio::spawn(engine.run(Beginning::Restored)))
    }

    /// A sandbox that has booted by `plan`, in the hands of the test; its events are not heard.
    pub async fn booted(&self, plan: SandboxPlan) -> World {
        let paths = self.paths(plan.id.as_str());
        std::fs::create_dir_all(&paths.dir).unwrap();
        std::fs::create_dir_all(&paths.sockets).unwrap();
        let journal = Journal::open(&paths.journal()).unwrap();
        *self.ledger.size.lock().unwrap() = (plan.vm.vcpus, plan.vm.memory_mib, plan.vm.vcpus);
        let supervisor = HostProcess {
            pid: 1,
            start_time: 1,
        };
        let (mut world, _, _) = World::new(
            plan,
            paths,
            Arc::clone(&self.host) as Arc<dyn Platform>,
            Arc::clone(&self.vmm) as Arc<dyn Vmm>,
            journal,
            supervisor,
        );
        world.boot().await.unwrap();
        world
    }

    /// Asserts that neither fakes nor files are left of sandbox `id`.
    pub fn assert_nothing_left(&self, id: &str, context: &str) {
        self.ledger.assert_empty(context);
        let paths = self.paths(id);
        assert!(!paths.dir.exists(), "{context}: {} is left", paths.dir.display());
        assert!(
            !paths.sockets.exists(),
            "{context}: {} is left",
            paths.sockets.display()
        );
    }
}

pub fn id(text: &str) -> ContainerId {
    ContainerId::new(text).unwrap()
}

pub fn key(text: &str) -> ProcessKey {
    ProcessKey {
        container: id(text),
        exec: None,
    }
}

pub fn exec_key(text: &str, exec: &str) -> ProcessKey {
    ProcessKey {
        container: id(text),
        exec: Some(bulkhead_model::ExecId::new(exec).unwrap()),
    }
}

pub fn sandbox_plan(id: &str) -> SandboxPlan {
    let json = serde_json::json!({
        "id": id, "hostname": null, "domainname": null,
        "vm": {
            "hypervisor": "/q", "kernel": "/k", "initrd": "/i", "kernel_params": [],
            "machine_type": "q35", "machine_options": [], "cpu_features": [],
            "vcpus": 1, "max_vcpus": 1, "memory_mib": 256, "max_memory_mib": 256, "memory_slots": 0,
            "memory_prealloc": false, "hugepages": false, "memory_backend": null, "mlock": false,
            "virtio_mem": false, "root_ports": 4, "entropy_source": "/dev/urandom",
            "shared_fs": {"kind": "virtio-fs", "daemon": null, "cache": "auto", "cache_size_mib": 0},
            "boot_timeout_s": 5, "debug": false
        },
        "network": {"kind": "none"}, "network_model": "none", "shm_bytes": 0,
        "cgroups_path": "/cg", "pod": false, "kernel_modules": [], "guest_seccomp": true,
        "annotations": {}
    });
    serde_json::from_value(json).unwrap()
}

pub fn container_plan(text: &str, creates_sandbox: bool) -> ContainerPlan {
    let mut mount = oci::Mount::default();
    mount
        .set_source(Some("/data".into()))
        .set_destination("/mnt".into())
        .set_typ(Some("bind".into()));
    let mut spec = oci::Spec::default();
    spec.set_mounts(Some(vec![mount]));
    serde_json::from_value(serde_json::json!({
        "id": text, "bundle": "/b", "rootfs": RootfsPlan { path: "/b/rootfs".into(), readonly: false },
        "spec": spec, "creates_sandbox": creates_sandbox,
    }))
    .unwrap()
}

/// Attaches a stub with three streams and creates the container.
pub async fn create(handle: &Handle, text: &str, first: bool) -> Result<Reply, bulkhead_model::Failure> {
    attach(handle, key(text), 500).await?;
    let plan = Box::new(container_plan(text, first));
    handle.call(Command::Create { plan }, Luggage::default()).await
}

pub async fn attach(
    handle: &Handle,
    key: ProcessKey,
    pid: i32,
) -> Result<mpsc::UnboundedReceiver<bulkhead_sandbox::Notice>, bulkhead_model::Failure> {
    let (notices, ear) = mpsc::unbounded_channel();
    let null = || OwnedFd::from(std::fs::File::open("/dev/null").unwrap());
    let command = Command::Attach {
        key,
        stub: HostProcess { pid, start_time: 1 },
        stdio: StdioSet {
            terminal: false,
            stdin: true,
            stdout: true,
            stderr: true,
        },
        size: None,
    };
    let luggage = Luggage {
        fds: vec![null(), null(), null()],
        notices: Some(notices),
    };
    handle.call(command, luggage).await?;
    Ok(ear)
}

pub async fn call(handle: &Handle, command: Command) -> Result<Reply, bulkhead_model::Failure> {
    handle.call(command, Luggage::default()).await
}
