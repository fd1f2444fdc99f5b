//! Saved state: own versioned types, add-only, written to a temporary file, renamed.
//!
//! Who needs it is a process that takes over a VM: it finds what any process wrote, synced or not. A host that crashed has
//! no VM left; what it has left is in the journal, which is synced.
//!
//! Owns: the file format. Never: live objects. Written by the engine after every change, read by a fresh
//! supervisor and by offline readers. Every field added after version 1 has a serde default.

use crate::container::{Container, Process};
use crate::network::{Network, SavedNetwork};
use crate::share::Share;
use crate::size::Size;
use crate::world::World;
use bulkhead_model::snapshot::{Phase, Provenance};
use bulkhead_model::{
    ContainerId, ContainerPlan, ContainerSnapshot, ExecId, ExitStatus, HostProcess, ProcessSnapshot,
    SandboxId, SandboxSnapshot, State, oci,
};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;

/// The version this build writes; it reads all up to it.
pub const VERSION: u32 = 1;

/// A saved process (C-04).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedProcess {
    /// Its stub.
    pub host: Option<HostProcess>,
    /// Stream ids: stdin, stdout, stderr.
    pub streams: (u32, u32, u32),
    /// It has a terminal.
    pub terminal: bool,
    /// Pid in the guest.
    pub guest_pid: Option<i32>,
    /// How it ended.
    pub exit: Option<ExitStatus>,
    /// Its output was delivered.
    pub delivered: bool,
    /// Start, ns since the epoch.
    pub started_ns: Option<u64>,
    /// End, ns since the epoch.
    pub exited_ns: Option<u64>,
}

/// A saved container.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedContainer {
    /// Its plan.
    pub plan: ContainerPlan,
    /// Its state.
    pub state: State,
    /// Creation, ns since the epoch.
    pub created_ns: u64,
    /// Its shares.
    pub shares: Vec<Share>,
    /// The spec the agent got (C-07).
    #[serde(default)]
    pub patched: Option<Arc<oci::Spec>>,
    /// Sources that are not shared (C-30).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub ignored: Vec<std::path::PathBuf>,
    /// Processes killed for want of memory.
    #[serde(default)]
    pub out_of_memory: u64,
    /// Its own process.
    pub init: SavedProcess,
    /// Further processes.
    pub execs: BTreeMap<ExecId, SavedProcess>,
}

/// A saved sandbox.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SavedSandbox {
    /// Format version.
    pub version: u32,
    /// Its id.
    pub id: SandboxId,
    /// Its state.
    pub state: State,
    /// Where its boot stood.
    pub phase: Phase,
    /// Next stream id.
    pub next_stream: u32,
    /// Size of the VM; absent means as it booted.
    #[serde(default)]
    pub size: Option<Size>,
    /// Size the VM was started with; absent means the plan's.
    #[serde(default)]
    pub boot_size: Option<Size>,
    /// How the VM came to life.
    #[serde(default)]
    pub provenance: Provenance,
    /// `cgroup.procs` files its stubs join.
    #[serde(default)]
    pub cgroup_procs: Vec<std::path::PathBuf>,
    /// Its network; absent without one.
    #[serde(default)]
    pub network: Option<SavedNetwork>,
    /// Host processes by role.
    pub processes: BTreeMap<String, HostProcess>,
    /// Its containers.
    pub containers: BTreeMap<ContainerId, SavedContainer>,
}

/// Why saved state cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SavedError {
    /// No file.
    #[error("no saved state at {path}")]
    Absent {
        /// Where it was looked for.
        path: std::path::PathBuf,
    },
    /// I/O.
    #[error("reading {path}")]
    Io {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Not what was written.
    #[error("saved state {path}")]
    Format {
        /// The file.
        path: std::path::PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// From a newer build.
    #[error("saved state {path} has version {version}: expected at most {VERSION}")]
    Version {
        /// The file.
        path: std::path::PathBuf,
        /// Its version.
        version: u32,
    },
}

impl SavedSandbox {
    /// The present of `world`.
    #[must_use]
    pub fn of(world: &World) -> Self {
        let mut processes = BTreeMap::new();
        if let Ok(live) = world.live() {
            processes.insert("vmm".to_owned(), live.vm.process());
            if let Some(fsd) = &live.fsd {
                processes.insert("fsd".to_owned(), fsd.process());
            }
        }
        Self {
            version: VERSION,
            id: world.plan.id.clone(),
            state: world.state,
            phase: world.phase,
            next_stream: world.next_stream,
            size: Some(world.size),
            boot_size: Some(world.boot_size),
            provenance: world.provenance.clone(),
            cgroup_procs: world.cgroup_procs.clone(),
            network: world.network.as_ref().map(Network::saved),
            processes,
            containers: world
                .containers
                .iter()
                .map(|(id, c)| (id.clone(), save_container(c)))
                .collect(),
        }
    }

    /// Writes atomically: whenever this process ends, the file is the previous or the new one.
    ///
    /// # Errors
    /// I/O; the previous file is untouched then.
    pub fn write(&self, path: &Path) -> io::Result<()> {
        let temporary = path.with_extension("new");
        let mut file = OpenOptions::new()
            .create(true)
            .truncate(true)
            .write(true)
            .mode(0o600)
            .open(&temporary)?;
        file.write_all(&serde_json::to_vec(self)?)?;
        std::fs::rename(&temporary, path)
    }

    /// Reads what was written.
    ///
    /// # Errors
    /// [`SavedError`]; only `Absent` means that there is nothing (C-09).
    pub fn read(path: &Path) -> Result<Self, SavedError> {
        let bytes = std::fs::read(path).map_err(|source| match source.kind() {
            io::ErrorKind::NotFound => SavedError::Absent {
                path: path.to_owned(),
            },
            _ => SavedError::Io {
                path: path.to_owned(),
                source,
            },
        })?;
        Self::parse(path, &bytes)
    }

    /// Reads the content of the file `path`.
    ///
    /// # Errors
    /// [`SavedError::Format`], [`SavedError::Version`].
    pub fn parse(path: &Path, bytes: &[u8]) -> Result<Self, SavedError> {
        let format = |source| SavedError::Format {
            path: path.to_owned(),
            source,
        };
        let version: Version = serde_json::from_slice(bytes).map_err(format)?;
        if version.version > VERSION {
            return Err(SavedError::Version {
                path: path.to_owned(),
                version: version.version,
            });
        }
        serde_json::from_slice(bytes).map_err(format)
    }

    /// As readers see it when nothing of it runs any more.
    #[must_use]
    pub fn dead_snapshot(&self) -> SandboxSnapshot {
        let containers = self
            .containers
            .iter()
            .map(|(id, saved)| {
                let mut snapshot = ContainerSnapshot {
                    id: id.clone(),
                    state: State::Stopped,
                    bundle: saved.plan.bundle.clone(),
                    rootfs: saved.plan.rootfs.path.clone(),
                    created_ns: saved.created_ns,
                    annotations: saved.plan.annotations(),
                    init: saved.init.snapshot(None),
                    execs: saved
                        .execs
                        .iter()
                        .map(|(id, p)| p.snapshot(Some(id.clone())))
                        .collect(),
                    spec: saved.patched.clone(),
                    ignored: saved.ignored.clone(),
                    out_of_memory: saved.out_of_memory,
                };
                for process in snapshot.execs.iter_mut().chain([&mut snapshot.init]) {
                    process.exit.get_or_insert(ExitStatus::Signal(9));
                }
                (id.clone(), snapshot)
            })
            .collect();
        SandboxSnapshot {
            id: self.id.clone(),
            state: State::Stopped,
            phase: Phase::Gone,
            containers,
            processes: self.processes.clone(),
            counters: bulkhead_model::snapshot::Counters::default(),
            provenance: self.provenance.clone(),
        }
    }
}

#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl SavedProcess {
    fn snapshot(&self, exec: Option<ExecId>) -> ProcessSnapshot {
        ProcessSnapshot {
            exec,
            host: self.host,
            guest_pid: self.guest_pid,
            exit: self.exit,
            delivered: self.delivered,
            stdio: self.streams,
            started_ns: self.started_ns,
            exited_ns: self.exited_ns,
        }
    }

    /// The live record again, without a stub's ear.
    #[must_use]
    pub fn restore(&self) -> Process {
        let (stdin, stdout, stderr) = self.streams;
        Process {
            host: self.host,
            stdio: bulkhead_protocol::GuestStdio {
                stdin,
                stdout,
                stderr,
                terminal: self.terminal,
                columns: 0,
                rows: 0,
            },
            notices: None,
            guest_pid: self.guest_pid,
            exit: self.exit,
            delivered: self.delivered,
            started_ns: self.started_ns,
            exited_ns: self.exited_ns,
        }
    }
}

fn save_process(process: &Process) -> SavedProcess {
    SavedProcess {
        host: process.host,
        streams: (process.stdio.stdin, process.stdio.stdout, process.stdio.stderr),
        terminal: process.stdio.terminal,
        guest_pid: process.guest_pid,
        exit: process.exit,
        delivered: process.delivered,
        started_ns: process.started_ns,
        exited_ns: process.exited_ns,
    }
}

fn save_container(container: &Container) -> SavedContainer {
    SavedContainer {
        plan: container.plan.clone(),
        state: container.state(),
        created_ns: container.created_ns,
        shares: container.shares.clone(),
        patched: container.patched.clone(),
        ignored: container.ignored.clone(),
        out_of_memory: container.out_of_memory,
        init: save_process(&container.init),
        execs: container
            .execs
            .iter()
            .map(|(id, p)| (id.clone(), save_process(p)))
            .collect(),
    }
}
