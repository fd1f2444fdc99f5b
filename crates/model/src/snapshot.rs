//! What readers see of a sandbox: a value the engine publishes after every change.
//!
//! Owns: its shape on the wire and in `inspect`. Never: changes. Made by the engine, read by verbs and the shim.

use crate::{ContainerId, ExecId, ExitStatus, HostProcess, SandboxId, State, oci};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Arc;

/// One process of a container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ProcessSnapshot {
    /// Exec id; `None` for the container's own process.
    pub exec: Option<ExecId>,
    /// The process standing for it on the host (C-04).
    pub host: Option<HostProcess>,
    /// Its pid in the guest.
    pub guest_pid: Option<i32>,
    /// Set once it ended.
    pub exit: Option<ExitStatus>,
    /// Set once all of its output reached the sinks.
    #[serde(default)]
    pub delivered: bool,
    /// Stream ids of stdin, stdout and stderr; 0 means not connected.
    #[serde(default)]
    pub stdio: (u32, u32, u32),
    /// When it was started: nanoseconds since the Unix epoch.
    pub started_ns: Option<u64>,
    /// When it ended: nanoseconds since the Unix epoch.
    pub exited_ns: Option<u64>,
}

/// One container (C-05).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerSnapshot {
    /// Its id.
    pub id: ContainerId,
    /// Its state.
    pub state: State,
    /// The bundle directory.
    pub bundle: PathBuf,
    /// Root file system on the host.
    pub rootfs: PathBuf,
    /// When it was created: nanoseconds since the Unix epoch.
    pub created_ns: u64,
    /// Its annotations.
    pub annotations: BTreeMap<String, String>,
    /// Its own process.
    pub init: ProcessSnapshot,
    /// Further processes.
    pub execs: Vec<ProcessSnapshot>,
    /// The spec as the agent got it (C-07). It is large: what is sent to clients leaves it out, but for `inspect`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub spec: Option<Arc<oci::Spec>>,
    /// Sources of mounts that could not be shared and are left out (C-30).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<PathBuf>,
    /// How many processes of it the guest's kernel killed for want of memory.
    #[serde(default)]
    pub out_of_memory: u64,
}

/// A status was asked for a spec that it does not have (C-05).
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the status of container {id} has no spec: expected one that was taken with it")]
pub struct NoSpec {
    /// The container.
    pub id: ContainerId,
}

impl ContainerSnapshot {
    /// The spec as the agent got it.
    ///
    /// # Errors
    /// [`NoSpec`].
    pub fn spec(&self) -> Result<&oci::Spec, NoSpec> {
        self.spec.as_deref().ok_or_else(|| NoSpec { id: self.id.clone() })
    }
}

/// Where a boot stands.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// It is on its way, or has not begun.
    Planned,
    /// The agent answers.
    Ready,
    /// Taken down.
    Gone,
}

/// How a sandbox's VM came to life.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// Key of the template it goes on from; absent after a cold boot.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub template: Option<String>,
    /// It had gone on already, and waited in the pool.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub pool: bool,
    /// Why it booted cold, for readers; empty with a template.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub why_cold: String,
    /// Made by its agent at boot and kept in guest memory only: equal for all that go on from one template.
    #[serde(default)]
    pub boot_nonce: String,
}

/// A sandbox and all in it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxSnapshot {
    /// Its id.
    pub id: SandboxId,
    /// Its state.
    pub state: State,
    /// Where its boot stands.
    pub phase: Phase,
    /// Its containers, by id.
    pub containers: BTreeMap<ContainerId, ContainerSnapshot>,
    /// Host processes by role: `supervisor`, `vmm`, `fsd`.
    pub processes: BTreeMap<String, HostProcess>,
    /// Round trips so far.
    pub counters: Counters,
    /// How its VM came to life.
    #[serde(default)]
    pub provenance: Provenance,
}

/// How much talking a sandbox did; the bench prints these.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Counters {
    /// QMP commands answered.
    pub qmp: u64,
    /// Agent calls answered.
    pub agent: u64,
    /// Processes spawned by the supervisor.
    pub spawned: u64,
}
