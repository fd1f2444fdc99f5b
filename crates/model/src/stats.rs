//! Statistics of a container (contract C-06): the JSON names are those of the reference.
//!
//! Always present: kernel-mode and user-mode usage, memory and hugetlb `failcnt`, memory `limit`,
//! `use_hierarchy` and nested objects. Everything else is left out when zero or empty.
//!
//! Owns: names and what is left out. Never: reads a figure. Made by the agent, handed on by the engine, printed by `events` and the shim.

use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;

fn zero(value: &u64) -> bool {
    *value == 0
}

/// CPU time in nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuUsage {
    /// All of it.
    #[serde(skip_serializing_if = "zero")]
    pub total_usage: u64,
    /// Per CPU.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub percpu_usage: Vec<u64>,
    /// In the kernel.
    pub usage_in_kernelmode: u64,
    /// In user space.
    pub usage_in_usermode: u64,
}

/// CPU throttling.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ThrottlingData {
    /// Enforcement periods so far.
    #[serde(skip_serializing_if = "zero")]
    pub periods: u64,
    /// Periods in which it was throttled.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_periods: u64,
    /// Nanoseconds it was throttled for.
    #[serde(skip_serializing_if = "zero")]
    pub throttled_time: u64,
}

/// CPU section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CpuStats {
    /// Time used.
    pub cpu_usage: CpuUsage,
    /// Throttling.
    pub throttling_data: ThrottlingData,
}

/// One memory counter set, in bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryData {
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// Highest so far.
    #[serde(skip_serializing_if = "zero")]
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
    /// The limit.
    pub limit: u64,
}

/// Memory section.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MemoryStats {
    /// Page cache in bytes.
    #[serde(skip_serializing_if = "zero")]
    pub cache: u64,
    /// User memory.
    pub usage: MemoryData,
    /// Memory and swap.
    pub swap_usage: MemoryData,
    /// Kernel memory.
    pub kernel_usage: MemoryData,
    /// Kernel TCP buffers.
    pub kernel_tcp_usage: MemoryData,
    /// Whether children are counted in.
    pub use_hierarchy: bool,
    /// `memory.stat`, raw.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub stats: BTreeMap<String, u64>,
}

/// Process count.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct PidsStats {
    /// Now.
    #[serde(skip_serializing_if = "zero")]
    pub current: u64,
    /// The limit, 0 for none.
    #[serde(skip_serializing_if = "zero")]
    pub limit: u64,
}

/// One block I/O counter.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioEntry {
    /// Device major.
    #[serde(skip_serializing_if = "zero")]
    pub major: u64,
    /// Device minor.
    #[serde(skip_serializing_if = "zero")]
    pub minor: u64,
    /// `Read`, `Write`, …
    #[serde(skip_serializing_if = "String::is_empty")]
    pub op: String,
    /// The figure.
    #[serde(skip_serializing_if = "zero")]
    pub value: u64,
}

/// Block I/O section: the eight recursive lists.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BlkioStats {
    /// Bytes.
    #[serde(rename = "io_service_bytes_recursive", skip_serializing_if = "Vec::is_empty")]
    pub service_bytes: Vec<BlkioEntry>,
    /// Operations.
    #[serde(rename = "io_serviced_recursive", skip_serializing_if = "Vec::is_empty")]
    pub serviced: Vec<BlkioEntry>,
    /// Queued.
    #[serde(rename = "io_queue_recursive", skip_serializing_if = "Vec::is_empty")]
    pub queued: Vec<BlkioEntry>,
    /// Service time.
    #[serde(rename = "io_service_time_recursive", skip_serializing_if = "Vec::is_empty")]
    pub service_time: Vec<BlkioEntry>,
    /// Wait time.
    #[serde(rename = "io_wait_time_recursive", skip_serializing_if = "Vec::is_empty")]
    pub wait_time: Vec<BlkioEntry>,
    /// Merged.
    #[serde(rename = "io_merged_recursive", skip_serializing_if = "Vec::is_empty")]
    pub merged: Vec<BlkioEntry>,
    /// Time.
    #[serde(rename = "io_time_recursive", skip_serializing_if = "Vec::is_empty")]
    pub time: Vec<BlkioEntry>,
    /// Sectors.
    #[serde(rename = "sectors_recursive", skip_serializing_if = "Vec::is_empty")]
    pub sectors: Vec<BlkioEntry>,
}

/// Huge pages of one size.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct HugetlbStats {
    /// Bytes now.
    #[serde(skip_serializing_if = "zero")]
    pub usage: u64,
    /// Highest so far.
    #[serde(skip_serializing_if = "zero")]
    pub max_usage: u64,
    /// How often the limit was hit.
    pub failcnt: u64,
}

/// One network interface.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkStats {
    /// Interface name.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// Bytes in.
    #[serde(skip_serializing_if = "zero")]
    pub rx_bytes: u64,
    /// Packets in.
    #[serde(skip_serializing_if = "zero")]
    pub rx_packets: u64,
    /// Receive errors.
    #[serde(skip_serializing_if = "zero")]
    pub rx_errors: u64,
    /// Dropped on receive.
    #[serde(skip_serializing_if = "zero")]
    pub rx_dropped: u64,
    /// Bytes out.
    #[serde(skip_serializing_if = "zero")]
    pub tx_bytes: u64,
    /// Packets out.
    #[serde(skip_serializing_if = "zero")]
    pub tx_packets: u64,
    /// Send errors.
    #[serde(skip_serializing_if = "zero")]
    pub tx_errors: u64,
    /// Dropped on send.
    #[serde(skip_serializing_if = "zero")]
    pub tx_dropped: u64,
}

/// The cgroup part.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct CgroupStats {
    /// CPU.
    pub cpu_stats: CpuStats,
    /// Memory.
    pub memory_stats: MemoryStats,
    /// Processes.
    pub pids_stats: PidsStats,
    /// Block I/O.
    pub blkio_stats: BlkioStats,
    /// Huge pages by page size, for example `2MB`.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub hugetlb_stats: BTreeMap<String, HugetlbStats>,
}

/// All of it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ContainerStats {
    /// The cgroup's figures.
    pub cgroup_stats: CgroupStats,
    /// Per interface.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub network_stats: Vec<NetworkStats>,
}

/// Name used by the wire.
pub type SandboxStats = ContainerStats;
