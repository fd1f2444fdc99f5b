//! The traits the engine drives a VM through.
//!
//! ```text
//!  Vmm::launch ─► Vm (stopped CPUs) ─► Hotplug::plug … ─► resume ─► exited
//!       ▲ Origin::Saved                                     └─► Snapshot::save ─► kill
//!       └───────────────────── state and memory files ◄────────────┘
//! ```
//!
//! Owns: the contract between engine and driver. Never: a VMM's arguments.

use async_trait::async_trait;
use bulkhead_model::{HostProcess, VmPlan, vm::Accelerator};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

/// What a driver needs to start a VM. The listening sockets are bound by the engine, which connects
/// before the VMM runs: nothing waits for a socket file to appear.
#[derive(Debug)]
pub struct Launch {
    /// The VM's shape.
    pub plan: VmPlan,
    /// How guest code runs.
    pub accelerator: Accelerator,
    /// Listening unix socket for the machine protocol.
    pub qmp_listener: OwnedFd,
    /// Client end already connected to `qmp_listener`.
    pub qmp: OwnedFd,
    /// Listening unix socket behind the `control` virtio-serial port.
    pub control_listener: OwnedFd,
    /// Listening unix socket behind the `data` virtio-serial port.
    pub data_listener: OwnedFd,
    /// Listening unix socket behind the guest's serial console. Its client must be read all the time: QEMU
    /// writes byte by byte, 280 of which fill a unix socket, and then the guest's kernel waits for each.
    pub console_listener: OwnedFd,
    /// Where the VMM's standard error goes. The driver copies it there, at most what fits without waiting,
    /// and keeps the end of it for [`VmmError::Ended`].
    pub stderr: OwnedFd,
    /// Value of the environment variable `BULKHEAD_SANDBOX` by which a process with no memory finds it.
    pub marker: String,
    /// `cgroup.procs` files the VMM is put into before it runs anything.
    pub cgroup_procs: Vec<PathBuf>,
    /// Directory the VMM itself shares with the guest, and its mount tag there: virtio-9p cannot be plugged later.
    pub share: Option<(PathBuf, String)>,
    /// How the machine comes to life.
    pub origin: Origin,
}

/// How a machine comes to life.
#[derive(Debug, Default)]
pub enum Origin {
    /// Its kernel boots.
    #[default]
    Boot,
    /// Its kernel boots with this file as memory, so that it can be saved. The file is opened for writing, as
    /// long as the memory, and all holes.
    BootInto(OwnedFd),
    /// A saved machine goes on where it was stopped.
    Saved(SavedMachine),
}

/// What [`Snapshot::save`] left, opened for one start.
#[derive(Debug)]
pub struct SavedMachine {
    /// The state of its devices, to be read from the beginning.
    pub state: OwnedFd,
    /// The file that was its memory.
    pub memory: OwnedFd,
    /// How the memory is used.
    pub reuse: MemoryReuse,
}

/// How a machine gets the memory of the one it was saved from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum MemoryReuse {
    /// A copy of its own, which devices in other processes (vhost-user) can map.
    Copy,
    /// The file itself, mapped copy-on-write: pages nobody writes are there once for all machines. Devices in
    /// other processes would not see what is written.
    CopyOnWrite,
}

/// How a VMM process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum VmExit {
    /// Exit status.
    Code(i32),
    /// Signal.
    Signal(i32),
    /// It was not our child, so only the end is known.
    Unknown,
}

/// Why a VM could not do something.
#[derive(Debug, thiserror::Error)]
pub enum VmmError {
    /// The binary is missing or cannot be executed.
    #[error(
        "cannot execute the VMM {path}: expected qemu-system-x86_64 (Debian: apt-get install qemu-system-x86)"
    )]
    Binary {
        /// The path tried.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file the guest is made of cannot be opened.
    #[error(
        "cannot open the guest's {what} {path}: expected what `bulkhead guest build` makes, or another file in the configuration"
    )]
    Asset {
        /// `kernel` or `initrd`.
        what: &'static str,
        /// The path tried.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The process ended while it was needed.
    #[error("the VMM ended during {step}: {exit:?}{}", if stderr.is_empty() { String::new() } else { format!(": {stderr}") })]
    Ended {
        /// What was being done.
        step: &'static str,
        /// How it ended.
        exit: VmExit,
        /// Its last error lines, joined.
        stderr: String,
    },
    /// A file the VM is made of cannot be read to verify it (O-16).
    #[error("{}: cannot read it to verify {option}", path.display())]
    Verify {
        /// The file.
        path: PathBuf,
        /// The option with the digest.
        option: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A file the VM is made of is another than was meant (O-16).
    #[error("{}: its SHA-512 is {found}: expected {expected}, as {option} says", path.display())]
    Digest {
        /// The file.
        path: PathBuf,
        /// The option with the digest.
        option: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
    /// A machine-protocol command was refused.
    #[error("QMP {command} failed: {class}: {description}")]
    Qmp {
        /// The command.
        command: String,
        /// QMP error class.
        class: String,
        /// The VMM's words, for the reader only.
        description: String,
    },
    /// No answer in time.
    #[error("{step} took longer than {} s", deadline.as_secs())]
    Deadline {
        /// What was waited for.
        step: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// The plan asks for something this VMM cannot do.
    #[error("{option}: {value} is not possible with this VMM: expected {expected}")]
    Unsupported {
        /// Option name.
        option: &'static str,
        /// Its value.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// No free slot, unknown device and the like.
    #[error("device {id}: {what}")]
    Device {
        /// Device id.
        id: String,
        /// What is wrong.
        what: &'static str,
    },
    /// Host I/O.
    #[error("{step}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: std::io::Error,
    },
}

/// A device to be plugged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum DeviceRequest {
    /// A vhost-user file system.
    SharedFs {
        /// Device id, unique in the VM.
        id: String,
        /// Mount tag in the guest.
        tag: String,
        /// The daemon's socket.
        socket: PathBuf,
        /// DAX window in MiB, 0 for none.
        cache_size_mib: u32,
    },
    /// A disk.
    Block {
        /// Device id.
        id: String,
        /// Host file or block device.
        path: PathBuf,
        /// Read-only.
        readonly: bool,
        /// Raw or other format.
        format: String,
    },
    /// A network card on a tap.
    Net {
        /// Device id.
        id: String,
        /// Its MAC address.
        mac: String,
        /// Number of queue pairs.
        queues: u16,
    },
}

/// Where a plugged device is found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plugged {
    /// Device id.
    pub id: String,
    /// PCI path as the guest sees it: `<root-port device>.<function>/<device>.<function>`, hexadecimal.
    pub pci_path: String,
}

/// Starts VMs.
#[async_trait]
pub trait Vmm: Send + Sync {
    /// Starts the VMM with CPUs stopped. On error nothing of it is left.
    async fn launch(&self, launch: Launch) -> Result<Box<dyn Vm>, VmmError>;
    /// All that makes the machine of a plan what it is, but for the content of the files it names and the VMM
    /// itself: a saved machine goes on only in one of an equal signature.
    ///
    /// # Errors
    /// [`VmmError::Unsupported`] when such a machine cannot be saved, or not be made at all.
    fn signature(&self, plan: &VmPlan, accelerator: Accelerator) -> Result<String, VmmError>;
    /// Takes over a running VM: `qmp` is a fresh connection to its machine-protocol socket.
    async fn adopt(&self, process: HostProcess, plan: VmPlan, qmp: OwnedFd) -> Result<Box<dyn Vm>, VmmError>;
}

/// A VM that was started. Dropping it does not end the VMM process: the journal and `kill` do.
#[async_trait]
pub trait Vm: Send + Sync {
    /// The VMM process.
    fn process(&self) -> HostProcess;
    /// QMP commands answered so far.
    fn round_trips(&self) -> u64;
    /// Lets the CPUs run.
    async fn resume(&self) -> Result<(), VmmError>;
    /// Stops the CPUs; [`Self::resume`] lets them go on where they were.
    async fn halt(&self) -> Result<(), VmmError>;
    /// Has the VMM keep `fd` open, under a name, for as long as it lives: what it refers to stays as long.
    async fn hold(&self, name: &'static str, fd: OwnedFd) -> Result<(), VmmError>;
    /// Waits for the end of the VMM process; any number of callers, any time.
    async fn exited(&self) -> VmExit;
    /// Ends the VMM at once and waits until it is reaped, at most `deadline`.
    async fn kill(&self, deadline: Duration) -> Result<(), VmmError>;
    /// Plugging devices.
    fn hotplug(&self) -> Option<&dyn Hotplug> {
        None
    }
    /// Changing size.
    fn resize(&self) -> Option<&dyn Resize> {
        None
    }
    /// Saving.
    fn snapshot(&self) -> Option<&dyn Snapshot> {
        None
    }
}

/// Saves a machine that was started by [`Origin::BootInto`].
#[async_trait]
pub trait Snapshot: Send + Sync {
    /// Stops the CPUs and writes the state of the devices to `state`, an empty file. The memory is complete in
    /// its file then. The machine stays stopped; what is left to do with it is to end it.
    ///
    /// A shared file system's device is no part of what is saved: it is taken away first, without the guest being told. A guest
    /// that knows of one must have been told beforehand what to do about that.
    async fn save(&self, state: OwnedFd, deadline: Duration) -> Result<(), VmmError>;
}

/// Plugs and unplugs devices.
#[async_trait]
pub trait Hotplug: Send + Sync {
    /// Adds a device; `fds` are the descriptors it needs (tap, vhost).
    async fn plug(&self, device: DeviceRequest, fds: Vec<OwnedFd>) -> Result<Plugged, VmmError>;
    /// Removes it and waits until the guest let go.
    async fn unplug(&self, id: &str, deadline: Duration) -> Result<(), VmmError>;
}

/// Changes vCPUs and memory.
#[async_trait]
pub trait Resize: Send + Sync {
    /// vCPUs the VM now has, whether or not the guest uses them.
    async fn vcpus(&self) -> Result<u32, VmmError>;
    /// Makes at least `count` vCPUs available; returns how many there are.
    async fn set_vcpus(&self, count: u32) -> Result<u32, VmmError>;
    /// Makes the memory `mib` MiB, or as close above as its blocks allow; returns what it is.
    async fn set_memory(&self, mib: u32) -> Result<u32, VmmError>;
}
