//! What a plan must know about the host; handed in, so that planning is a pure function.
//!
//! Owns: the list of facts and reading them from the kernel's texts. Never: opens a file. Called by whoever plans.

use bulkhead_model::vm::Accelerator;
use std::path::PathBuf;

/// The host, as far as plans depend on it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HostFacts {
    /// CPUs that are online, at least 1.
    pub cpus: u32,
    /// Memory in MiB.
    pub memory_mib: u32,
    /// Free huge pages in MiB.
    pub free_hugepages_mib: u32,
    /// How guest code will run.
    pub accelerator: Accelerator,
    /// Where `qemu-system-x86_64` was found; `None` leaves the search to the VMM driver.
    pub hypervisor: Option<PathBuf>,
    /// Whether the file-system daemon is built in.
    pub builtin_fs_daemon: bool,
}

impl HostFacts {
    /// The facts in `/sys/devices/system/cpu/online` and `/proc/meminfo`. What cannot be understood counts
    /// as 1 CPU, no huge pages, and 2048 MiB.
    #[must_use]
    pub fn from_texts(cpu_online: &str, meminfo: &str, accelerator: Accelerator) -> Self {
        let kib = |key: &str| field(meminfo, key);
        let mib = |kib: u64| u32::try_from(kib / 1024).unwrap_or(u32::MAX);
        let page = kib("Hugepagesize").unwrap_or(0);
        Self {
            cpus: count_cpus(cpu_online).unwrap_or(1).max(1),
            memory_mib: kib("MemTotal").map_or(2048, mib),
            free_hugepages_mib: mib(kib("HugePages_Free").unwrap_or(0).saturating_mul(page)),
            accelerator,
            hypervisor: None,
            builtin_fs_daemon: true,
        }
    }
}

/// The number in a line `key:   number [kB]`.
fn field(meminfo: &str, key: &str) -> Option<u64> {
    meminfo
        .lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(':'))?
        .split_whitespace()
        .next()?
        .parse()
        .ok()
}

/// CPUs in a list such as `0-3,5` (cpuset(7), "List format").
fn count_cpus(list: &str) -> Option<u32> {
    let mut count: u32 = 0;
    for range in list.trim().split(',') {
        let (first, last) = range.split_once('-').unwrap_or((range, range));
        let (first, last): (u32, u32) = (first.parse().ok()?, last.parse().ok()?);
        count = count.checked_add(last.checked_sub(first)?.checked_add(1)?)?;
    }
    Some(count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_the_kernel_writes() {
        let meminfo = "MemTotal:        8138788 kB\nMemFree: 1 kB\nHugePages_Free:        3\nHugepagesize:       2048 kB\n";
        let facts = HostFacts::from_texts("0-1,4\n", meminfo, Accelerator::Tcg);
        assert_eq!(
            (facts.cpus, facts.memory_mib, facts.free_hugepages_mib),
            (3, 7948, 6)
        );
    }

    #[test]
    fn nonsense_counts_as_a_small_host() {
        for list in ["", "x", "3-1", "0-4294967295,1", "-"] {
            let facts = HostFacts::from_texts(list, "MemTotal: many", Accelerator::Tcg);
            assert_eq!(
                (facts.cpus, facts.memory_mib, facts.free_hugepages_mib),
                (1, 2048, 0),
                "{list}"
            );
        }
    }
}
