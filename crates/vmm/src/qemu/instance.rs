//! A QEMU that runs.
//!
//! ```text
//!  stopped (never ran) ──resume──► running ──► ended
//!  loaded (ran elsewhere) ──resume──┘  └──save──► stopped for good
//! ```
//!
//! Owns: the process, its QMP connection, the table of root ports. Never: outlives as a guard: dropping it
//! leaves QEMU alone. Called by the engine as `Vm`; hot-plug, resize and snapshot are in their own files.

use super::process::VmmProcess;
use super::slots::Slots;
use crate::qmp::{QmpClient, QmpError};
use crate::{Hotplug, Resize, Snapshot, Vm, VmExit, VmmError};
use async_trait::async_trait;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use serde_json::Value;
use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// QEMU answers in microseconds; this is for a machine that swaps.
const COMMAND: Duration = Duration::from_secs(30);
/// A process whose QMP connection ended is expected to end within this.
const FOLLOWS: Duration = Duration::from_secs(5);

/// One QEMU process and what is known of it.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) process: VmmProcess,
    pub(super) qmp: QmpClient,
    pub(super) plan: VmPlan,
    pub(super) accelerator: Accelerator,
    /// Whether the guest ever executed anything.
    pub(super) ran: AtomicBool,
    slots: Mutex<Slots>,
    /// A plug or unplug was given up halfway: ask QEMU before the table is used again.
    pub(super) stale: AtomicBool,
    /// Read by every plug and unplug, written while the table is rebuilt.
    pub(super) plugging: tokio::sync::RwLock<()>,
    /// Changes of size one after the other.
    pub(super) sizing: tokio::sync::Mutex<()>,
}

impl Instance {
    pub(super) fn started(
        process: VmmProcess,
        qmp: QmpClient,
        plan: VmPlan,
        accelerator: Accelerator,
    ) -> Self {
        let slots = Mutex::new(Slots::new(plan.root_ports));
        Self {
            process,
            qmp,
            plan,
            accelerator,
            ran: AtomicBool::new(false),
            slots,
            stale: AtomicBool::new(false),
            plugging: tokio::sync::RwLock::new(()),
            sizing: tokio::sync::Mutex::new(()),
        }
    }

    pub(super) fn on(self, accelerator: Accelerator) -> Self {
        Self { accelerator, ..self }
    }

    /// Learns from QEMU what a predecessor did.
    pub(super) async fn recall(&self) -> Result<(), VmmError> {
        let status = self.command("query-status", Value::Null).await?;
        self.ran
            .store(status["status"].as_str() != Some("prelaunch"), Ordering::Relaxed);
        self.reload_slots().await
    }

    pub(super) fn slots(&self) -> MutexGuard<'_, Slots> {
        self.slots.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Runs a QMP command; the end of the process ends the wait.
    pub(super) async fn command(&self, command: &'static str, arguments: Value) -> Result<Value, VmmError> {
        self.command_with(command, arguments, Vec::new()).await
    }

    pub(super) async fn command_with(
        &self,
        command: &'static str,
        arguments: Value,
        fds: Vec<OwnedFd>,
    ) -> Result<Value, VmmError> {
        match self.qmp.execute(command, arguments, fds, COMMAND).await {
            Ok(value) => Ok(value),
            Err(error) => Err(vmm_error(&self.process, command, error).await),
        }
    }
}

/// The engine's view of a QMP failure. A connection that ended is the end of the process, whose cause is in
/// its exit and last words.
pub(super) async fn vmm_error(process: &VmmProcess, step: &'static str, error: QmpError) -> VmmError {
    match error {
        QmpError::Refused { command, refusal } => VmmError::Qmp {
            command: command.into(),
            class: refusal.class,
            description: refusal.description,
        },
        QmpError::Deadline { deadline, .. } => VmmError::Deadline { step, deadline },
        QmpError::Socket(source) => VmmError::Io { step, source },
        closed @ QmpError::Closed { .. } => match tokio::time::timeout(FOLLOWS, process.exited()).await {
            Ok(exit) => process.ended(step, exit),
            Err(_) => VmmError::Io {
                step,
                source: io::Error::new(io::ErrorKind::BrokenPipe, closed),
            },
        },
    }
}

#[async_trait]
impl Vm for Instance {
    fn process(&self) -> HostProcess {
        self.process.identity()
    }

    fn round_trips(&self) -> u64 {
        self.qmp.answered()
    }

    async fn resume(&self) -> Result<(), VmmError> {
        // Set first: from here on nobody may reset the machine, whatever becomes of the answer.
        self.ran.store(true, Ordering::Relaxed);
        self.command("cont", Value::Null).await.map(drop)
    }

    async fn halt(&self) -> Result<(), VmmError> {
        self.command("stop", Value::Null).await.map(drop)
    }

    async fn hold(&self, name: &'static str, fd: OwnedFd) -> Result<(), VmmError> {
        // Kept beyond the end of this connection, getfd of the QMP reference.
        self.command_with("getfd", serde_json::json!({ "fdname": name }), vec![fd])
            .await
            .map(drop)
    }

    async fn exited(&self) -> VmExit {
        self.process.exited().await
    }

    async fn kill(&self, deadline: Duration) -> Result<(), VmmError> {
        self.process.kill(deadline).await
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
