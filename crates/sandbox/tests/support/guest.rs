//! A guest in memory.

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
use bulkhead_vmm::{DeviceRequest, Hotplug, Launch, Plugged, Resize, Vm, VmExit, Vmm, VmmError};
use std::collections::{BTreeMap, BTreeSet};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::{mpsc, watch};

/// A guest in memory.
pub struct FakeGuest {
    pub faults: Arc<Faults>,
    pub ledger: Arc<Ledger>,
    pub exits: watch::Sender<BTreeMap<ProcessKey, ExitStatus>>,
    pub off: watch::Sender<bool>,
    pub hello: GuestHello,
    pub signals: Mutex<Vec<(ProcessKey, i32, bool)>>,
    pub disconnected: Mutex<Vec<StreamId>>,
    /// Resources as they came with each update.
    pub updates: Mutex<Vec<serde_json::Value>>,
    /// Specs as they came with each create.
    pub specs: Mutex<Vec<serde_json::Value>>,
    /// What the guest tells of itself, numbered from 1.
    pub events: watch::Sender<Vec<GuestEvent>>,
    /// Whether a process's end leaves nothing to flush.
    pub settled: Mutex<bool>,
    /// Kills for want of memory that a process's end reports.
    pub kills: Mutex<u64>,
}

impl FakeGuest {
    pub fn new(faults: Arc<Faults>, ledger: Arc<Ledger>) -> Self {
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
            events: watch::channel(Vec::new()).0,
            settled: Mutex::default(),
            kills: Mutex::default(),
        }
    }

    /// A process ends.
    pub fn exit(&self, key: ProcessKey, status: ExitStatus) {
        self.exits.send_modify(|all| {
            all.insert(key, status);
        });
    }

    pub fn power_off(&self) {
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
    async fn configure(&self, identity: GuestIdentity) -> Result<(), GuestError> {
        if identity.keep_share {
            return self.faults.guest("keep_share");
        }
        self.ledger.identities.lock().unwrap().push(identity);
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
            out_of_memory_kills: *self.kills.lock().unwrap(),
            stdout_offset: 0,
            stderr_offset: 0,
            settled: *self.settled.lock().unwrap(),
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
    async fn next_events(&self, after: u64) -> Result<Vec<(u64, GuestEvent)>, GuestError> {
        let mut events = self.events.subscribe();
        let mut off = self.off.subscribe();
        let seen = usize::try_from(after).unwrap();
        tokio::select! {
            told = events.wait_for(|all| all.len() > seen) => {
                let told = told.map_err(|_| GuestError::Gone { call: "next_events" })?;
                Ok((after + 1..).zip(told[seen..].iter().cloned()).collect())
            }
            _ = off.wait_for(|off| *off) => Err(GuestError::Gone { call: "next_events" }),
        }
    }
    async fn update_network(&self, network: bulkhead_protocol::GuestNetwork) -> Result<(), GuestError> {
        self.faults
            .slow_step("update_network")
            .await
            .map_err(|error| GuestError::Refused {
                kind: FailureKind::InvalidArgument,
                message: error.to_string(),
            })?;
        self.ledger.networks.lock().unwrap().push(network);
        Ok(())
    }
    async fn rehearse(&self) -> Result<(), GuestError> {
        self.ledger.note("rehearse");
        self.faults.guest("rehearse")
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
