//! Statistics in containerd's words: the message of the host's cgroup version.
//!
//! | series | what |
//! | --- | --- |
//! | a container | its cgroup's figures in the guest (C-06) |
//! | the pod's own container, the sandbox | what the sandbox's processes on the host use beyond its containers |
//!
//! Owns: the translation, and reading `/proc` for the second. Called by the services.

use bulkhead_host::cgroup::Hierarchy;
use bulkhead_model::HostProcess;
use bulkhead_model::stats::{BlkioEntry, CgroupStats, ContainerStats, MemoryData, NetworkStats};
use containerd_shim_protos::cgroups::metrics as v1;
use containerd_shim_protos::cgroups_v2::metrics as v2;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::protobuf::{self, MessageField, MessageFull};
use std::collections::BTreeMap;

/// `stats` for the clients of this host.
pub(super) fn message(stats: &ContainerStats) -> protobuf::Result<Any> {
    match Hierarchy::detect() {
        Ok(Hierarchy::V2 { .. }) => any(&version2(stats)),
        // Also where there is no cgroup at all: every client reads version 1.
        _ => any(&version1(stats)),
    }
}

fn any<M: MessageFull>(message: &M) -> protobuf::Result<Any> {
    Ok(Any {
        type_url: M::descriptor().full_name().to_owned(),
        value: message.write_to_bytes()?,
        ..Any::default()
    })
}

fn some<T>(value: T) -> MessageField<T> {
    MessageField::some(value)
}

fn version1(stats: &ContainerStats) -> v1::Metrics {
    let CgroupStats {
        cpu_stats: cpu,
        pids_stats: pids,
        blkio_stats: io,
        hugetlb_stats: huge,
        ..
    } = &stats.cgroup_stats;
    let entries = |list: &[BlkioEntry]| list.iter().map(io_entry).collect();
    v1::Metrics {
        hugetlb: huge
            .iter()
            .map(|(size, figures)| v1::HugetlbStat {
                usage: figures.usage,
                max: figures.max_usage,
                failcnt: figures.failcnt,
                pagesize: size.clone(),
                ..v1::HugetlbStat::default()
            })
            .collect(),
        pids: some(v1::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..v1::PidsStat::default()
        }),
        cpu: some(v1::CPUStat {
            usage: some(v1::CPUUsage {
                total: cpu.cpu_usage.total_usage,
                kernel: cpu.cpu_usage.usage_in_kernelmode,
                user: cpu.cpu_usage.usage_in_usermode,
                per_cpu: cpu.cpu_usage.percpu_usage.clone(),
                ..v1::CPUUsage::default()
            }),
            throttling: some(v1::Throttle {
                periods: cpu.throttling_data.periods,
                throttled_periods: cpu.throttling_data.throttled_periods,
                throttled_time: cpu.throttling_data.throttled_time,
                ..v1::Throttle::default()
            }),
            ..v1::CPUStat::default()
        }),
        memory: some(memory1(&stats.cgroup_stats)),
        blkio: some(v1::BlkIOStat {
            io_service_bytes_recursive: entries(&io.service_bytes),
            io_serviced_recursive: entries(&io.serviced),
            io_queued_recursive: entries(&io.queued),
            io_service_time_recursive: entries(&io.service_time),
            io_wait_time_recursive: entries(&io.wait_time),
            io_merged_recursive: entries(&io.merged),
            io_time_recursive: entries(&io.time),
            sectors_recursive: entries(&io.sectors),
            ..v1::BlkIOStat::default()
        }),
        network: stats.network_stats.iter().map(network1).collect(),
        memory_oom_control: some(v1::MemoryOomControl {
            oom_kill: raw(&stats.cgroup_stats, &["oom_kill"]),
            ..v1::MemoryOomControl::default()
        }),
        ..v1::Metrics::default()
    }
}

fn io_entry(entry: &BlkioEntry) -> v1::BlkIOEntry {
    v1::BlkIOEntry {
        op: entry.op.clone(),
        major: entry.major,
        minor: entry.minor,
        value: entry.value,
        ..v1::BlkIOEntry::default()
    }
}

fn network1(network: &NetworkStats) -> v1::NetworkStat {
    v1::NetworkStat {
        name: network.name.clone(),
        rx_bytes: network.rx_bytes,
        rx_packets: network.rx_packets,
        rx_errors: network.rx_errors,
        rx_dropped: network.rx_dropped,
        tx_bytes: network.tx_bytes,
        tx_packets: network.tx_packets,
        tx_errors: network.tx_errors,
        tx_dropped: network.tx_dropped,
        ..v1::NetworkStat::default()
    }
}

/// The first of these names that is among the raw counters; the guest's are version 2's.
fn raw(stats: &CgroupStats, names: &[&str]) -> u64 {
    let all: &BTreeMap<String, u64> = &stats.memory_stats.stats;
    names.iter().find_map(|name| all.get(*name).copied()).unwrap_or(0)
}

fn memory1(stats: &CgroupStats) -> v1::MemoryStat {
    let memory = &stats.memory_stats;
    let entry = |data: &MemoryData| {
        some(v1::MemoryEntry {
            limit: data.limit,
            usage: data.usage,
            max: data.max_usage,
            failcnt: data.failcnt,
            ..v1::MemoryEntry::default()
        })
    };
    let of = |names: &[&str]| raw(stats, names);
    // The guest counts its hierarchy: own and total are one.
    let rss = of(&["rss", "anon"]);
    let rss_huge = of(&["rss_huge", "anon_thp"]);
    let mapped_file = of(&["mapped_file", "file_mapped"]);
    let dirty = of(&["dirty", "file_dirty"]);
    let writeback = of(&["writeback", "file_writeback"]);
    let (fault, major) = (of(&["pgfault"]), of(&["pgmajfault"]));
    let (inactive_anon, active_anon) = (of(&["inactive_anon"]), of(&["active_anon"]));
    let (inactive_file, active_file) = (of(&["inactive_file"]), of(&["active_file"]));
    let unevictable = of(&["unevictable"]);
    v1::MemoryStat {
        cache: memory.cache,
        total_cache: memory.cache,
        rss,
        total_rss: rss,
        rss_huge,
        total_rss_huge: rss_huge,
        mapped_file,
        total_mapped_file: mapped_file,
        dirty,
        total_dirty: dirty,
        writeback,
        total_writeback: writeback,
        pg_fault: fault,
        total_pg_fault: fault,
        pg_maj_fault: major,
        total_pg_maj_fault: major,
        inactive_anon,
        total_inactive_anon: inactive_anon,
        active_anon,
        total_active_anon: active_anon,
        inactive_file,
        total_inactive_file: inactive_file,
        active_file,
        total_active_file: active_file,
        unevictable,
        total_unevictable: unevictable,
        hierarchical_memory_limit: memory.usage.limit,
        hierarchical_swap_limit: memory.swap_usage.limit,
        usage: entry(&memory.usage),
        swap: entry(&memory.swap_usage),
        kernel: entry(&memory.kernel_usage),
        kernel_tcp: entry(&memory.kernel_tcp_usage),
        ..v1::MemoryStat::default()
    }
}

fn version2(stats: &ContainerStats) -> v2::Metrics {
    let CgroupStats {
        cpu_stats: cpu,
        pids_stats: pids,
        hugetlb_stats: huge,
        ..
    } = &stats.cgroup_stats;
    v2::Metrics {
        pids: some(v2::PidsStat {
            current: pids.current,
            limit: pids.limit,
            ..v2::PidsStat::default()
        }),
        cpu: some(v2::CPUStat {
            usage_usec: cpu.cpu_usage.total_usage / 1000,
            user_usec: cpu.cpu_usage.usage_in_usermode / 1000,
            system_usec: cpu.cpu_usage.usage_in_kernelmode / 1000,
            nr_periods: cpu.throttling_data.periods,
            nr_throttled: cpu.throttling_data.throttled_periods,
            throttled_usec: cpu.throttling_data.throttled_time / 1000,
            ..v2::CPUStat::default()
        }),
        memory: some(memory2(&stats.cgroup_stats)),
        io: some(io2(&stats.cgroup_stats)),
        hugetlb: huge
            .iter()
            .map(|(size, figures)| v2::HugeTlbStat {
                current: figures.usage,
                max: figures.max_usage,
                pagesize: size.clone(),
                failcnt: figures.failcnt,
                ..v2::HugeTlbStat::default()
            })
            .collect(),
        memory_events: some(v2::MemoryEvents {
            max: stats.cgroup_stats.memory_stats.usage.failcnt,
            oom_kill: raw(&stats.cgroup_stats, &["oom_kill"]),
            ..v2::MemoryEvents::default()
        }),
        network: stats.network_stats.iter().map(network2).collect(),
        ..v2::Metrics::default()
    }
}

fn network2(network: &NetworkStats) -> v2::NetworkStat {
    v2::NetworkStat {
        name: network.name.clone(),
        rx_bytes: network.rx_bytes,
        rx_packets: network.rx_packets,
        rx_errors: network.rx_errors,
        rx_dropped: network.rx_dropped,
        tx_bytes: network.tx_bytes,
        tx_packets: network.tx_packets,
        tx_errors: network.tx_errors,
        tx_dropped: network.tx_dropped,
        ..v2::NetworkStat::default()
    }
}

fn memory2(stats: &CgroupStats) -> v2::MemoryStat {
    let memory = &stats.memory_stats;
    let of = |name: &str| raw(stats, &[name]);
    v2::MemoryStat {
        anon: of("anon"),
        file: memory.cache,
        kernel_stack: of("kernel_stack"),
        slab: of("slab"),
        sock: of("sock"),
        shmem: of("shmem"),
        file_mapped: of("file_mapped"),
        file_dirty: of("file_dirty"),
        file_writeback: of("file_writeback"),
        anon_thp: of("anon_thp"),
        inactive_anon: of("inactive_anon"),
        active_anon: of("active_anon"),
        inactive_file: of("inactive_file"),
        active_file: of("active_file"),
        unevictable: of("unevictable"),
        slab_reclaimable: of("slab_reclaimable"),
        slab_unreclaimable: of("slab_unreclaimable"),
        pgfault: of("pgfault"),
        pgmajfault: of("pgmajfault"),
        usage: memory.usage.usage,
        usage_limit: memory.usage.limit,
        max_usage: memory.usage.max_usage,
        // Version 2 counts swap alone.
        swap_usage: memory.swap_usage.usage.saturating_sub(memory.usage.usage),
        swap_limit: memory.swap_usage.limit.saturating_sub(memory.usage.limit),
        ..v2::MemoryStat::default()
    }
}

fn io2(stats: &CgroupStats) -> v2::IOStat {
    let mut devices: BTreeMap<(u64, u64), v2::IOEntry> = BTreeMap::new();
    let lists = [
        (&stats.blkio_stats.service_bytes, true),
        (&stats.blkio_stats.serviced, false),
    ];
    for (list, bytes) in lists {
        for figure in list {
            let entry = devices
                .entry((figure.major, figure.minor))
                .or_insert_with(|| v2::IOEntry {
                    major: figure.major,
                    minor: figure.minor,
                    ..v2::IOEntry::default()
                });
            match (bytes, figure.op.as_str()) {
                (true, "Read") => entry.rbytes = figure.value,
                (true, "Write") => entry.wbytes = figure.value,
                (false, "Read") => entry.rios = figure.value,
                (false, "Write") => entry.wios = figure.value,
                _ => {}
            }
        }
    }
    v2::IOStat {
        usage: devices.into_values().collect(),
        ..v2::IOStat::default()
    }
}

/// What processes on the host use; one that has ended counts nothing.
pub(super) fn of_processes(processes: impl IntoIterator<Item = HostProcess>) -> ContainerStats {
    let mut sum = ContainerStats::default();
    let cgroup = &mut sum.cgroup_stats;
    for process in processes {
        let Some((user, kernel)) = cpu_ns(process.pid) else {
            continue;
        };
        cgroup.cpu_stats.cpu_usage.usage_in_usermode += user;
        cgroup.cpu_stats.cpu_usage.usage_in_kernelmode += kernel;
        cgroup.cpu_stats.cpu_usage.total_usage += user + kernel;
        let memory = pss_bytes(process.pid).unwrap_or(0);
        cgroup.memory_stats.usage.usage += memory;
        cgroup.pids_stats.current += 1;
    }
    let usage = cgroup.memory_stats.usage.usage;
    cgroup.memory_stats.stats.insert("anon".to_owned(), usage);
    sum
}

/// `whole` without what `parts` used.
pub(super) fn beyond(mut whole: ContainerStats, parts: &[ContainerStats]) -> ContainerStats {
    let cgroup = &mut whole.cgroup_stats;
    for part in parts {
        let (cpu, part_cpu) = (
            &mut cgroup.cpu_stats.cpu_usage,
            &part.cgroup_stats.cpu_stats.cpu_usage,
        );
        cpu.total_usage = cpu.total_usage.saturating_sub(part_cpu.total_usage);
        cpu.usage_in_usermode = cpu.usage_in_usermode.saturating_sub(part_cpu.usage_in_usermode);
        cpu.usage_in_kernelmode = cpu
            .usage_in_kernelmode
            .saturating_sub(part_cpu.usage_in_kernelmode);
        let usage = &mut cgroup.memory_stats.usage.usage;
        *usage = usage.saturating_sub(part.cgroup_stats.memory_stats.usage.usage);
    }
    let usage = cgroup.memory_stats.usage.usage;
    cgroup.memory_stats.stats.insert("anon".to_owned(), usage);
    whole
}

/// Fields 14 and 15 of `/proc/<pid>/stat`, proc_pid_stat(5), in nanoseconds.
fn cpu_ns(pid: i32) -> Option<(u64, u64)> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    // After the name, which may hold anything: field 3 and on.
    let (_, rest) = text.rsplit_once(") ")?;
    let mut fields = rest.split(' ').skip(11);
    let per_second = nix::unistd::sysconf(nix::unistd::SysconfVar::CLK_TCK).ok()??;
    let tick_ns = 1_000_000_000 / u64::try_from(per_second).ok()?.max(1);
    let mut next = || fields.next()?.parse::<u64>().ok().map(|ticks| ticks * tick_ns);
    Some((next()?, next()?))
}

/// Proportional share of memory, proc_pid_smaps(5).
fn pss_bytes(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::stats::{HugetlbStats, PidsStats};

    fn stats() -> ContainerStats {
        let mut stats = ContainerStats::default();
        let cgroup = &mut stats.cgroup_stats;
        cgroup.cpu_stats.cpu_usage.total_usage = 5000;
        cgroup.cpu_stats.cpu_usage.percpu_usage = vec![2000, 3000];
        cgroup.cpu_stats.throttling_data.throttled_time = 7000;
        cgroup.memory_stats.usage.usage = 100;
        cgroup.memory_stats.usage.limit = 1000;
        cgroup.memory_stats.swap_usage.usage = 130;
        cgroup.memory_stats.swap_usage.limit = 1500;
        cgroup.memory_stats.stats = [("anon".to_owned(), 60), ("oom_kill".to_owned(), 2)].into();
        cgroup.pids_stats = PidsStats { current: 3, limit: 9 };
        let entry = |op: &str, value| BlkioEntry {
            major: 8,
            minor: 1,
            op: op.into(),
            value,
        };
        cgroup.blkio_stats.service_bytes = vec![entry("Read", 10), entry("Write", 20)];
        cgroup.blkio_stats.serviced = vec![entry("Read", 1)];
        cgroup.hugetlb_stats = [(
            "2MB".to_owned(),
            HugetlbStats {
                usage: 4,
                max_usage: 5,
                failcnt: 6,
            },
        )]
        .into();
        stats.network_stats = vec![NetworkStats {
            name: "eth0".into(),
            tx_bytes: 11,
            ..NetworkStats::default()
        }];
        stats
    }

    /// C-06: every figure has its place in the message of cgroup version 1.
    #[test]
    fn c06_as_version_1() {
        let got = version1(&stats());
        assert_eq!(got.cpu.usage.per_cpu, [2000, 3000]);
        assert_eq!(got.cpu.throttling.throttled_time, 7000);
        assert_eq!((got.memory.usage.limit, got.memory.swap.usage), (1000, 130));
        assert_eq!((got.memory.rss, got.memory.total_rss), (60, 60));
        assert_eq!(got.memory_oom_control.oom_kill, 2);
        assert_eq!((got.pids.current, got.pids.limit), (3, 9));
        assert_eq!(got.blkio.io_service_bytes_recursive[1].value, 20);
        assert_eq!(got.hugetlb[0].pagesize, "2MB");
        assert_eq!(got.network[0].tx_bytes, 11);
        assert_eq!(any(&got).unwrap().type_url, "io.containerd.cgroups.v1.Metrics");
    }

    /// C-06: the same for version 2, whose times are microseconds and whose swap is swap alone.
    #[test]
    fn c06_as_version_2() {
        let got = version2(&stats());
        assert_eq!((got.cpu.usage_usec, got.cpu.throttled_usec), (5, 7));
        assert_eq!((got.memory.swap_usage, got.memory.swap_limit), (30, 500));
        let io = &got.io.usage[0];
        assert_eq!((io.rbytes, io.wbytes, io.rios, io.wios), (10, 20, 1, 0));
        assert_eq!(got.memory_events.oom_kill, 2);
        assert_eq!(any(&got).unwrap().type_url, "io.containerd.cgroups.v2.Metrics");
    }

    #[test]
    fn the_overhead_is_what_the_containers_did_not_use() {
        let me = HostProcess {
            pid: i32::try_from(std::process::id()).unwrap(),
            start_time: 0,
        };
        let whole = of_processes([me]);
        assert!(whole.cgroup_stats.memory_stats.usage.usage > 100);
        assert_eq!(whole.cgroup_stats.pids_stats.current, 1);
        let rest = beyond(whole.clone(), &[stats()]);
        let usage = |stats: &ContainerStats| stats.cgroup_stats.memory_stats.usage.usage;
        assert_eq!(usage(&rest), usage(&whole) - 100);
    }
}
