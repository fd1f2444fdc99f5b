//! A host, a VMM and a guest that only exist in memory, and that fail at the step they are told to.
//!
//! Every fallible call is one step of [`Faults`]; a run without faults counts them, then each is failed in
//! turn. What is acquired is kept in a ledger that must be empty in the end.

#![allow(
    dead_code,
    unreachable_pub,
    missing_docs,
    unused_imports,
    clippy::unwrap_used,
    clippy::expect_used
)]

mod faults;
mod guest;
mod host;
mod network;
mod template;
mod vmm;

pub use faults::*;
pub use guest::*;
pub use host::*;
pub use network::*;
pub use template::*;
pub use vmm::*;

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
use bulkhead_vmm::{DeviceRequest, Hotplug, Launch, Plugged, Resize, Vm, VmExit, Vmm, VmmError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

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
            space: Arc::new(FakeSpace::new(Arc::clone(&faults), Arc::clone(&ledger))),
            kvm: Mutex::new(false),
            clock: std::sync::atomic::AtomicU64::new(42),
            tick: std::sync::atomic::AtomicU64::new(0),
            vm_end: Arc::clone(&vm_end),
            kill_vm: std::sync::atomic::AtomicBool::new(false),
            sticky: Mutex::default(),
        });
        let vmm = Arc::new(FakeVmm {
            faults: Arc::clone(&faults),
            ledger: Arc::clone(&ledger),
            end: Arc::clone(&vm_end),
            guest: Arc::clone(&guest),
            killed: std::sync::atomic::AtomicBool::new(false),
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
        self.sandbox_of(sandbox_plan(id))
    }

    /// The same by a plan of the test's own.
    pub fn sandbox_of(&self, plan: SandboxPlan) -> (Handle, tokio::task::JoinHandle<Vec<String>>) {
        let paths = self.paths(plan.id.as_str());
        std::fs::create_dir_all(&paths.dir).unwrap();
        let mut journal = Journal::open(&paths.journal()).unwrap();
        journal
            .intend(Resource::Directory {
                path: paths.sockets.clone(),
            })
            .unwrap();
        std::fs::create_dir_all(&paths.sockets).unwrap();
        let (world, published, events) = World::new(
            plan,
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
        attachment: None,
    };
    handle.call(command, luggage).await?;
    Ok(ear)
}

/// Deletes a container by force.
pub async fn remove(handle: &Handle, text: &str) -> Result<Reply, bulkhead_model::Failure> {
    let id = id(text);
    call(handle, Command::Delete { id, force: true }).await
}

pub async fn call(handle: &Handle, command: Command) -> Result<Reply, bulkhead_model::Failure> {
    handle.call(command, Luggage::default()).await
}
