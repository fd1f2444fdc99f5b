//! Statistics of a container from its cgroup v2 files (contract C-06).
//!
//! Owns the mapping of v2 files to the names of the contract. Never: invents a figure v2 does not have.

use bulkhead_model::stats::{
    BlkioEntry, BlkioStats, CgroupStats, ContainerStats, CpuStats, HugetlbStats, MemoryData, MemoryStats,
    NetworkStats, PidsStats,
};
use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

/// Reads `directory`, a cgroup, and the guest's network interfaces. Files that do not exist count as zero.
#[must_use]
pub(crate) fn read(directory: &Path) -> ContainerStats {
    let file = |name: &str| fs::read_to_string(directory.join(name)).unwrap_or_default();
    let mut hugetlb_stats = BTreeMap::new();
    for entry in fs::read_dir(directory).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let Some(size) = name
            .to_str()
            .and_then(|name| name.strip_prefix("hugetlb.")?.strip_suffix(".current"))
            .filter(|size| !size.contains('.'))
        else {
            continue;
        };
        let events = pairs(&file(&format!("hugetlb.{size}.events")));
        hugetlb_stats.insert(
            size.to_owned(),
            HugetlbStats {
                usage: number(&file(&format!("hugetlb.{size}.current"))),
                max_usage: 0,
                failcnt: events.get("max").copied().unwrap_or(0),
            },
        );
    }
    ContainerStats {
        cgroup_stats: CgroupStats {
            cpu_stats: cpu(&file("cpu.stat")),
            memory_stats: memory(&MemoryFiles {
                current: &file("memory.current"),
                peak: &file("memory.peak"),
                max: &file("memory.max"),
                events: &file("memory.events"),
                stat: &file("memory.stat"),
                swap_current: &file("memory.swap.current"),
                swap_max: &file("memory.swap.max"),
                swap_events: &file("memory.swap.events"),
            }),
            pids_stats: PidsStats {
                current: number(&file("pids.current")),
                limit: number(&file("pids.max")),
            },
            blkio_stats: block_io(&file("io.stat")),
            hugetlb_stats,
        },
        network_stats: network(&fs::read_to_string("/proc/net/dev").unwrap_or_default()),
    }
}

/// `max` and everything else that is no number count as 0, "no limit".
fn number(text: &str) -> u64 {
    text.trim().parse().unwrap_or(0)
}

fn pairs(text: &str) -> BTreeMap<String, u64> {
    text.lines()
        .filter_map(|line| {
            let (key, value) = line.split_once(' ')?;
            Some((key.to_owned(), value.trim().parse().ok()?))
        })
        .collect()
}

fn cpu(stat: &str) -> CpuStats {
    let stat = pairs(stat);
    let nanoseconds = |key: &str| stat.get(key).copied().unwrap_or(0).saturating_mul(1000);
    let mut stats = CpuStats::default();
    stats.cpu_usage.total_usage = nanoseconds("usage_usec");
    stats.cpu_usage.usage_in_usermode = nanoseconds("user_usec");
    stats.cpu_usage.usage_in_kernelmode = nanoseconds("system_usec");
    stats.throttling_data.periods = stat.get("nr_periods").copied().unwrap_or(0);
    stats.throttling_data.throttled_periods = stat.get("nr_throttled").copied().unwrap_or(0);
    stats.throttling_data.throttled_time = nanoseconds("throttled_usec");
    stats
}

struct MemoryFiles<'a> {
    current: &'a str,
    peak: &'a str,
    max: &'a str,
    events: &'a str,
    stat: &'a str,
    swap_current: &'a str,
    swap_max: &'a str,
    swap_events: &'a str,
}

fn memory(files: &MemoryFiles<'_>) -> MemoryStats {
    let mut stat = pairs(files.stat);
    if let Some(kills) = pairs(files.events).get("oom_kill") {
        // `bulkhead events` watches it.
        stat.insert("oom_kill".to_owned(), *kills);
    }
    let of = |key: &str| stat.get(key).copied().unwrap_or(0);
    let current = number(files.current);
    let max = number(files.max);
    let swap_max = number(files.swap_max);
    MemoryStats {
        cache: of("file"),
        usage: MemoryData {
            usage: current,
            max_usage: number(files.peak),
            failcnt: pairs(files.events).get("max").copied().unwrap_or(0),
            limit: max,
        },
        // The contract counts memory and swap together, v2 swap alone.
        swap_usage: MemoryData {
            usage: current.saturating_add(number(files.swap_current)),
            max_usage: 0,
            failcnt: pairs(files.swap_events).get("fail").copied().unwrap_or(0),
            limit: if max == 0 || files.swap_max.trim() == "max" {
                0
            } else {
                max.saturating_add(swap_max)
            },
        },
        kernel_usage: MemoryData {
            usage: of("kernel"),
            ..MemoryData::default()
        },
        kernel_tcp_usage: MemoryData {
            usage: of("sock"),
            ..MemoryData::default()
        },
        use_hierarchy: true,
        stats: stat,
    }
}

/// `io.stat`: `8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6`.
fn block_io(stat: &str) -> BlkioStats {
    let mut stats = BlkioStats::default();
    for line in stat.lines() {
        let mut words = line.split_whitespace();
        let Some((major, minor)) = words.next().and_then(|device| device.split_once(':')) else {
            continue;
        };
        let (Ok(major), Ok(minor)) = (major.parse(), minor.parse()) else {
            continue;
        };
        for word in words {
            let Some((key, value)) = word.split_once('=') else {
                continue;
            };
            let (list, op) = match key {
                "rbytes" => (&mut stats.service_bytes, "Read"),
                "wbytes" => (&mut stats.service_bytes, "Write"),
                "dbytes" => (&mut stats.service_bytes, "Discard"),
                "rios" => (&mut stats.serviced, "Read"),
                "wios" => (&mut stats.serviced, "Write"),
                "dios" => (&mut stats.serviced, "Discard"),
                _ => continue,
            };
            list.push(BlkioEntry {
                major,
                minor,
                op: op.to_owned(),
                value: value.parse().unwrap_or(0),
            });
        }
    }
    stats
}

/// `/proc/net/dev`, proc(5), without loopback.
fn network(text: &str) -> Vec<NetworkStats> {
    text.lines()
        .filter_map(|line| {
            let (name, figures) = line.split_once(':')?;
            let name = name.trim();
            let figures: Vec<u64> = figures
                .split_whitespace()
                .filter_map(|figure| figure.parse().ok())
                .collect();
            (name != "lo" && figures.len() >= 12).then(|| NetworkStats {
                name: name.to_owned(),
                rx_bytes: figures[0],
                rx_packets: figures[1],
                rx_errors: figures[2],
                rx_dropped: figures[3],
                tx_bytes: figures[8],
                tx_packets: figures[9],
                tx_errors: figures[10],
                tx_dropped: figures[11],
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c06_cpu_is_in_nanoseconds() {
        let stats =
            cpu("usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 7\nnr_throttled 1\nthrottled_usec 9\n");
        assert_eq!(stats.cpu_usage.total_usage, 5000);
        assert_eq!(stats.cpu_usage.usage_in_usermode, 3000);
        assert_eq!(stats.cpu_usage.usage_in_kernelmode, 2000);
        assert_eq!(stats.throttling_data.periods, 7);
        assert_eq!(stats.throttling_data.throttled_time, 9000);
    }

    #[test]
    fn c06_memory_and_swap_are_added_up() {
        let stats = memory(&MemoryFiles {
            current: "100\n",
            peak: "150\n",
            max: "1000\n",
            events: "low 0\nmax 4\noom_kill 1\n",
            stat: "anon 60\nfile 40\nkernel 7\nsock 3\n",
            swap_current: "5\n",
            swap_max: "500\n",
            swap_events: "fail 2\n",
        });
        assert_eq!(stats.cache, 40);
        assert_eq!(
            stats.usage,
            MemoryData {
                usage: 100,
                max_usage: 150,
                failcnt: 4,
                limit: 1000
            }
        );
        assert_eq!(
            stats.swap_usage,
            MemoryData {
                usage: 105,
                max_usage: 0,
                failcnt: 2,
                limit: 1500
            }
        );
        assert_eq!(stats.kernel_usage.usage, 7);
        assert_eq!(stats.stats["anon"], 60);
        assert_eq!(stats.stats["oom_kill"], 1);
    }

    #[test]
    fn c06_block_io_and_network() {
        let io = block_io("253:16 rbytes=10 wbytes=20 rios=1 wios=2 dbytes=0 dios=0\nbroken\n");
        assert_eq!(
            io.service_bytes[1],
            BlkioEntry {
                major: 253,
                minor: 16,
                op: "Write".to_owned(),
                value: 20
            }
        );
        assert_eq!(io.serviced.len(), 3);
        let net = network(
            "Inter-| x\n face |bytes\n    lo: 1 1 0 0 0 0 0 0 1 1 0 0 0 0 0 0\n  eth0: 5 4 3 2 0 0 0 0 9 8 7 6 0 0 0 0\n",
        );
        assert_eq!(net.len(), 1);
        assert_eq!((net[0].rx_bytes, net[0].tx_dropped), (5, 6));
    }
}
