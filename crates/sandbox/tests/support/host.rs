//! A host in memory.

use super::*;
use bulkhead_sandbox::template::{self, Found, TemplateKey, TemplateStore};

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

pub struct FakeDaemon {
    pub process: HostProcess,
    pub ledger: Arc<Ledger>,
    pub end: watch::Receiver<bool>,
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
    /// The network namespace of every sandbox.
    pub space: Arc<FakeSpace>,
    /// Nanoseconds since the epoch.
    pub clock: std::sync::atomic::AtomicU64,
    /// Ends the VM.
    pub vm_end: Arc<watch::Sender<bool>>,
    /// The VM is killed while the next guest is waited for; the connection's end is seen first.
    pub kill_vm: std::sync::atomic::AtomicBool,
    /// How far the clock moves each time it is read.
    pub tick: std::sync::atomic::AtomicU64,
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
        let tick = self.tick.load(Ordering::SeqCst);
        self.clock.fetch_add(tick, Ordering::SeqCst)
    }
    fn entropy(&self) -> io::Result<Vec<u8>> {
        self.faults.step("entropy")?;
        let mut seed = vec![7; 64];
        if self.ledger.seeds_differ.load(Ordering::SeqCst) {
            let number = self.ledger.next_seed.fetch_add(1, Ordering::SeqCst);
            seed[..4].copy_from_slice(&number.to_le_bytes());
        }
        Ok(seed)
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
    fn mount_root(&self, target: &Path, mounts: &[bulkhead_model::plan::RootMount]) -> io::Result<()> {
        for one in mounts {
            let target = target.join(one.target.trim_start_matches('/'));
            self.ledger.mounts.lock().unwrap().insert(target);
            self.faults.step("mount_root")?;
        }
        Ok(())
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
    fn check_network(&self, _: &SandboxPlan) -> io::Result<()> {
        self.faults.step("check_network")
    }
    fn open_network(&self, source: &NetworkSource) -> io::Result<Arc<dyn NetworkSpace>> {
        self.faults.step("open_network")?;
        self.ledger.note(format!("open {source:?}"));
        Ok(Arc::clone(&self.space) as Arc<dyn NetworkSpace>)
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
        if self.kill_vm.swap(false, Ordering::SeqCst) {
            let end = Arc::clone(&self.vm_end);
            tokio::spawn(async move { end.send_replace(true) });
            return Err(GuestError::Gone { call: "hello" });
        }
        Ok(Arc::clone(&self.guest) as Arc<dyn Guest>)
    }
    fn find_template(&self, plan: &SandboxPlan, vmm: &dyn Vmm) -> Found {
        template::find(plan, vmm, self.accelerator())
    }
    fn find_waiting(&self, plan: &SandboxPlan, key: &TemplateKey) -> Vec<template::Waiting> {
        TemplateStore::of(&plan.factory)
            .pool(key)
            .waiting(|process| self.runs(process))
    }
    fn open_mount_namespace(&self) -> io::Result<OwnedFd> {
        self.faults.step("open_mount_namespace")?;
        Ok(std::fs::File::open("/dev/null")?.into())
    }
    fn pool_cgroup(&self) -> io::Result<Vec<PathBuf>> {
        self.faults.step("pool_cgroup")?;
        Ok(Vec::new())
    }
    fn end_marked(&self, marker: &str) -> io::Result<()> {
        self.ledger.end_marked(marker);
        Ok(())
    }
    fn reject_template(&self, plan: &SandboxPlan, key: &TemplateKey) {
        TemplateStore::of(&plan.factory).destroy(key);
    }
    fn order_template(&self, _: &SandboxPlan) -> io::Result<()> {
        self.ledger.orders.fetch_add(1, Ordering::SeqCst);
        self.faults.step("order_template")
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
            Resource::Claim { place, marker } => {
                if place.is_dir() {
                    self.ledger.end_marked(marker);
                    std::fs::remove_dir_all(place)?;
                }
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
            Resource::Mount { path, .. } | Resource::RootMount { path, .. } => {
                let name = path.file_name().unwrap_or_default().to_string_lossy();
                self.ledger.note(format!("unmount {name}"));
                if sticky.as_ref() == Some(path) {
                    return Err(io::Error::other("busy"));
                }
                self.ledger.mounts.lock().unwrap().remove(path);
            }
            Resource::Link { .. } | Resource::Redirect { .. } => self.space.release(resource),
        }
        Ok(())
    }
}
