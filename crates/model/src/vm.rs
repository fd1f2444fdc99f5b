//! What a VM is to be: the plan the engine hands to a VMM driver.
//!
//! Owns sizes, assets and device choices after all configuration was resolved. Never: a VMM argument.

mod asset;
mod block;

pub use asset::AssetHash;
pub use block::{BlockCache, BlockPlan};

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How guest code is executed; decided by the host probe, never by the user.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Accelerator {
    /// Hardware virtualisation.
    Kvm,
    /// QEMU's translator.
    Tcg,
}

/// One checked `key[=value]` pair of a kernel command line, CPU feature list or machine option list.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct KeyValue {
    /// Non-empty, no blanks, no `=`, no `,`.
    pub key: String,
    /// Absent for a bare key.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub value: Option<String>,
}

/// How files are shared with the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum SharedFs {
    /// virtio-fs through a vhost-user daemon.
    VirtioFs {
        /// An external daemon; `None` is the built-in one.
        daemon: Option<PathBuf>,
        /// Cache mode as the daemon names it: `auto`, `always`, `never`, `metadata`.
        cache: String,
        /// DAX window in MiB, 0 for none.
        cache_size_mib: u32,
    },
    /// virtio-9p.
    #[serde(rename = "virtio-9p")]
    Virtio9p {
        /// Largest message in bytes, > 0.
        msize: u32,
    },
    /// Nothing is shared; every file system is a block device.
    None,
}

/// The complete shape of a VM before any container is known.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct VmPlan {
    /// The VMM binary.
    pub hypervisor: PathBuf,
    /// Uncompressed kernel, booted by PVH.
    pub kernel: PathBuf,
    /// Initial RAM disk with the agent as `/init`.
    pub initrd: PathBuf,
    /// Added to the kernel command line, in order.
    pub kernel_params: Vec<KeyValue>,
    /// `q35` and friends.
    pub machine_type: String,
    /// Added to `-machine`.
    pub machine_options: Vec<KeyValue>,
    /// Added to `-cpu`.
    pub cpu_features: Vec<KeyValue>,
    /// vCPUs at boot, at least 1.
    pub vcpus: u32,
    /// Upper bound of vCPUs, at least `vcpus`.
    pub max_vcpus: u32,
    /// Memory at boot in MiB.
    pub memory_mib: u32,
    /// Upper bound of memory in MiB.
    pub max_memory_mib: u32,
    /// DIMM slots for memory hot-plug.
    pub memory_slots: u32,
    /// Touch all memory at boot.
    pub memory_prealloc: bool,
    /// Back memory by huge pages.
    pub hugepages: bool,
    /// Directory of the file that backs the memory; `None` is anonymous (memfd).
    pub memory_backend: Option<PathBuf>,
    /// Lock guest memory in RAM.
    pub mlock: bool,
    /// Grow and shrink by virtio-mem in place of DIMMs.
    pub virtio_mem: bool,
    /// Empty PCIe root ports kept for hot-plug.
    pub root_ports: u32,
    /// Host source of randomness.
    pub entropy_source: PathBuf,
    /// How files are shared.
    pub shared_fs: SharedFs,
    /// Seconds until a boot that has not reported in is a failure.
    pub boot_timeout_s: u32,
    /// More output from guest kernel and agent.
    pub debug: bool,
    /// vCPUs of a sandbox without containers; a container's share comes on top (C-24).
    #[serde(default)]
    pub base_vcpus: u32,
    /// Memory in MiB of a sandbox without containers; a container's share comes on top (C-24).
    #[serde(default)]
    pub base_memory_mib: u32,
    /// Digests to verify before the first use of each file (O-16).
    #[serde(default)]
    pub asset_hashes: Vec<AssetHash>,
    /// Firmware in place of the VMM's own.
    #[serde(default)]
    pub firmware: Option<PathBuf>,
    /// Disks.
    #[serde(default)]
    pub block: BlockPlan,
    /// An IOMMU in the guest.
    #[serde(default)]
    pub iommu: bool,
    /// Devices use the guest's IOMMU.
    #[serde(default)]
    pub iommu_platform: bool,
    /// Network cards never use the host kernel's vhost-net.
    #[serde(default)]
    pub disable_vhost_net: bool,
    /// VFIO devices are plugged into the root bus rather than a bridge.
    #[serde(default)]
    pub vfio_on_root_bus: bool,
    /// Memory the guest has freed goes back to the host, where it can.
    #[serde(default)]
    pub reclaim_freed_memory: bool,
}
