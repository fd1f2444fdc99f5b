//! What is counted, failed and held.

use super::*;

use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{
    ContainerId, ContainerPlan, ExitStatus, FailureKind, HostProcess, ProcessKey, RootfsPlan, SandboxId,
    SandboxPlan, oci, stats::ContainerStats,
};
use bulkhead_protocol::GuestNetwork;
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

/// Counts steps and fails one.
#[derive(Default)]
pub struct Faults {
    pub steps: Mutex<Vec<&'static str>>,
    pub fail_at: Mutex<Option<usize>>,
    pub fail_name: Mutex<Option<&'static str>>,
    pub fail_names: Mutex<Vec<&'static str>>,
    pub hang_at: Mutex<Option<&'static str>>,
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

    /// Fails the next step of each of these names, once.
    pub fn fail_each(&self, names: &[&'static str]) {
        *self.fail_names.lock().unwrap() = names.to_vec();
    }

    /// Steps so far.
    pub fn count(&self) -> usize {
        self.steps.lock().unwrap().len()
    }

    /// The name of a step.
    pub fn name(&self, k: usize) -> &'static str {
        self.steps.lock().unwrap()[k]
    }

    /// Whether a step of this name was taken.
    pub fn reached(&self, name: &'static str) -> bool {
        self.steps.lock().unwrap().contains(&name)
    }

    /// Makes the step of this name wait for ever.
    pub fn hang_at(&self, name: Option<&'static str>) {
        *self.hang_at.lock().unwrap() = name;
    }

    pub fn step(&self, name: &'static str) -> io::Result<()> {
        let mut steps = self.steps.lock().unwrap();
        steps.push(name);
        let mut fail_at = self.fail_at.lock().unwrap();
        if *fail_at == Some(steps.len() - 1) {
            *fail_at = None;
            return Err(io::Error::other(format!("injected into {name}")));
        }
        let mut fail_names = self.fail_names.lock().unwrap();
        if let Some(at) = fail_names.iter().position(|one| *one == name) {
            fail_names.remove(at);
            return Err(io::Error::other(format!("injected into {name}")));
        }
        let mut fail_name = self.fail_name.lock().unwrap();
        if *fail_name == Some(name) {
            *fail_name = None;
            return Err(io::Error::other(format!("injected into {name}")));
        }
        Ok(())
    }

    pub async fn slow_step(&self, name: &'static str) -> io::Result<()> {
        let result = self.step(name);
        let hangs = *self.hang_at.lock().unwrap() == Some(name);
        if hangs {
            std::future::pending::<()>().await;
        }
        result
    }

    pub fn guest(&self, name: &'static str) -> Result<(), GuestError> {
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
    /// Taps and redirections, by name of the tap.
    pub links: Mutex<BTreeSet<String>>,
    /// Network cards in the VM.
    pub cards: Mutex<BTreeSet<String>>,
    /// What the guest was asked to make its network.
    pub networks: Mutex<Vec<GuestNetwork>>,
    /// What was done in which order, of what tests ask about.
    pub order: Mutex<Vec<String>>,
    /// vCPUs the VM has, memory in MiB, vCPUs online.
    pub size: Mutex<(u32, u32, u32)>,
    /// What the agent was asked to make.
    pub containers_made: Mutex<Vec<GuestContainer>>,
    /// What guests were told they are.
    pub identities: Mutex<Vec<GuestIdentity>>,
    /// What stands in the environment of VMMs.
    pub markers: Mutex<BTreeMap<i32, String>>,
    /// Every seed is another one.
    pub seeds_differ: std::sync::atomic::AtomicBool,
    pub next_seed: AtomicI32,
    pub next_pid: AtomicI32,
    pub next_vmm: AtomicI32,
    /// Templates that were ordered.
    pub orders: AtomicI32,
}

impl Ledger {
    /// Notes something done.
    pub fn note(&self, what: impl Into<String>) {
        self.order.lock().unwrap().push(what.into());
    }

    /// Templates that were ordered since the last time.
    pub fn take_orders(&self) -> i32 {
        self.orders.swap(0, Ordering::SeqCst)
    }

    /// What was noted since the last time.
    pub fn take_order(&self) -> Vec<String> {
        std::mem::take(&mut *self.order.lock().unwrap())
    }

    pub fn spawn(&self, role: &'static str) -> HostProcess {
        // VMM and daemon start at the same time: which is first must not show.
        let pid = match role {
            "vmm" => 1001 + 2 * self.next_vmm.fetch_add(1, Ordering::SeqCst),
            _ => 1000 + 2 * self.next_pid.fetch_add(1, Ordering::SeqCst),
        };
        self.processes.lock().unwrap().insert(pid, role);
        HostProcess { pid, start_time: 1 }
    }

    /// Ends the VMMs with this marker.
    pub fn end_marked(&self, marker: &str) {
        let markers = self.markers.lock().unwrap();
        self.processes
            .lock()
            .unwrap()
            .retain(|pid, _| markers.get(pid).and_then(|value| value.split('/').next()) != Some(marker));
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
            self.links.lock().unwrap().is_empty(),
            "{context}: links {:?}",
            self.links
        );
        assert!(
            self.processes.lock().unwrap().is_empty(),
            "{context}: processes {:?}",
            self.processes
        );
    }
}
