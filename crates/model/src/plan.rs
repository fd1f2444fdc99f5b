//! Plans: what a sandbox and a container are to be, after OCI spec, annotations and options were resolved.
//!
//! Owns the hand-over from `config` to the engine. Never: I/O or defaults.

mod agent;
mod command;
mod device;
mod factory;
mod kind;
mod monitor;
mod mount;
mod root_mount;
mod share;
mod volume;

pub use agent::AgentPlan;
pub use command::{CommandPlan, EnvVar};
pub use device::{DeviceKind, DevicePlan};
pub use factory::FactoryPlan;
pub use kind::ContainerKind;
pub use monitor::NetworkMonitor;
pub use mount::MountPlan;
pub use root_mount::RootMount;
pub use share::Share;
pub use volume::{NydusImage, OverlayLayer, Verity, VirtualVolume, VolumeContent};

use crate::{ContainerId, SandboxId, VmPlan, oci};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;

/// Key under which a container's kind is recorded (O-20).
pub const CONTAINER_TYPE_ANNOTATION: &str = "io.katacontainers.pkg.oci.container_type";

/// Key under which a container's bundle is recorded (O-02).
pub const BUNDLE_PATH_ANNOTATION: &str = "io.katacontainers.pkg.oci.bundle_path";

/// Where the sandbox's network comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum NetworkPlan {
    /// The caller's network namespace.
    Existing {
        /// Its path.
        path: PathBuf,
    },
    /// A namespace of our own, empty but for loopback.
    New,
    /// The spec names no network namespace at all, or `disable_new_netns` is set and it names no path.
    None,
}

/// Everything that is known about a sandbox before it exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct SandboxPlan {
    /// Id of the sandbox; equals that of its first container.
    pub id: SandboxId,
    /// Guest host name.
    pub hostname: Option<String>,
    /// Guest NIS domain name.
    pub domainname: Option<String>,
    /// The VM.
    pub vm: VmPlan,
    /// Its network.
    pub network: NetworkPlan,
    /// `tcfilter`, `macvtap` or `none`.
    pub network_model: String,
    /// Size of the guest's shared `/dev/shm` in bytes; 0 means none is asked for (O-06).
    pub shm_bytes: u64,
    /// Cgroup path of the spec for the sandbox's host processes (K-03); `None` means no cgroup.
    pub cgroups_path: Option<String>,
    /// Whether several containers are expected (a CRI or CRI-O pod sandbox).
    pub pod: bool,
    /// Kernel modules to load, each with its parameters (O-15).
    pub kernel_modules: Vec<String>,
    /// Apply the spec's seccomp filters in the guest.
    pub guest_seccomp: bool,
    /// Annotations of the sandbox's spec.
    pub annotations: BTreeMap<String, String>,
    /// What was recorded about the sandbox beside the spec's annotations: its bundle (O-02).
    #[serde(default)]
    pub recorded: BTreeMap<String, String>,
    /// Watching of the network namespace (O-05).
    #[serde(default)]
    pub network_monitor: NetworkMonitor,
    /// Host processes only in the sandbox's cgroup, none beside it (O-14).
    #[serde(default)]
    pub sandbox_cgroup_only: bool,
    /// `cgroups_path` is a systemd `slice:prefix:name` (`--systemd-cgroup`).
    #[serde(default)]
    pub systemd_cgroup: bool,
    /// Kubernetes empty-dir volumes are shared with the host, not made in the guest (C-35).
    #[serde(default)]
    pub share_empty_dirs: bool,
    /// Experimental features that are switched on (O-14).
    #[serde(default)]
    pub experimental: Vec<String>,
    /// The guest agent.
    #[serde(default)]
    pub agent: AgentPlan,
    /// Templates and waiting VMs (O-21).
    #[serde(default)]
    pub factory: FactoryPlan,
    /// It stays without containers, until it is told to shut down: something outside the guest stands for the pod.
    #[serde(default)]
    pub kept: bool,
    /// More log output of the supervisor (O-22).
    #[serde(default)]
    pub debug: bool,
    /// Record trace spans of the supervisor (O-22).
    #[serde(default)]
    pub trace: bool,
}

/// Where a container's root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Absolute directory on the host.
    pub path: PathBuf,
    /// Mounted read-only in the guest.
    pub readonly: bool,
}

/// Everything that is known about a container before it exists.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ContainerPlan {
    /// Id of the container.
    pub id: ContainerId,
    /// The bundle: absolute, symlinks resolved.
    pub bundle: PathBuf,
    /// Its root file system.
    pub rootfs: RootfsPlan,
    /// The vanilla OCI spec, as read (C-07).
    pub spec: oci::Spec,
    /// True for the container that makes the sandbox.
    pub creates_sandbox: bool,
    /// Do not use `pivot_root` in the guest (`--no-pivot`).
    #[serde(default)]
    pub no_pivot: bool,
    /// Do not make a new session keyring (`--no-new-keyring`).
    #[serde(default)]
    pub no_new_keyring: bool,
    /// Whether it makes the sandbox or joins one (O-01).
    #[serde(default)]
    pub kind: ContainerKind,
    /// What it runs (O-02).
    #[serde(default)]
    pub command: CommandPlan,
    /// Its mounts, in order (O-04).
    #[serde(default)]
    pub mounts: Vec<MountPlan>,
    /// Its devices (O-04).
    #[serde(default)]
    pub devices: Vec<DevicePlan>,
    /// What it adds to the size of the VM (C-24).
    #[serde(default)]
    pub share: Share,
    /// Memory resources of container-resource annotations are in here (C-08); otherwise as in the spec.
    #[serde(default)]
    pub resources: oci::LinuxResources,
    /// What was recorded about it beside the spec's annotations: kind and bundle (O-02, O-20).
    #[serde(default)]
    pub recorded: BTreeMap<String, String>,
}

impl ContainerPlan {
    /// Whether the container's own process has a terminal.
    #[must_use]
    pub fn terminal(&self) -> bool {
        self.spec
            .process()
            .as_ref()
            .and_then(|p| p.terminal())
            .unwrap_or(false)
    }

    /// The spec's annotations.
    #[must_use]
    pub fn annotations(&self) -> BTreeMap<String, String> {
        self.spec
            .annotations()
            .as_ref()
            .map(|all| all.iter().map(|(k, v)| (k.clone(), v.clone())).collect())
            .unwrap_or_default()
    }
}
