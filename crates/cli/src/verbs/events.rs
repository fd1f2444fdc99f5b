//! `events`: statistics at an interval and out-of-memory kills, one JSON object a line, in runc's layout.
//!
//! ```text
//!  every interval: Stats ─► {"type":"stats",…}
//!  beside it:      Watch ─► more kills for want of memory ─► {"type":"oom",…}; the container ended ─► exit 0
//! ```

use super::{Outcome, print_text};
use crate::context::{CALL, Context, Found, unexpected};
use crate::go_duration;
use bulkhead_host::deadline::{Deadline, readable};
use bulkhead_model::stats::{BlkioEntry, ContainerStats, MemoryData};
use bulkhead_model::{Failure, FailureKind, State};
use bulkhead_sandbox::{Command, Reply};
use bulkhead_shim::Message;
use clap::Args;
use serde_json::{Map, Value, json};
use std::os::fd::AsFd;
use std::time::Instant;

/// Options of `events`.
#[derive(Debug, Args)]
pub(crate) struct Events {
    /// Time between two statistics, such as 5s or 500ms
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    pub(crate) interval: String,
    /// Print the statistics once
    #[arg(long)]
    pub(crate) stats: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Events {
    /// Runs the verb.
    ///
    /// # Errors
    /// A bad interval, a container that does not run.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let interval = go_duration::parse(&self.interval)
            .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let mut found = context.find(&self.id)?;
        if found.container.state == State::Stopped {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                format!("container with id {} is not running", found.id),
            ));
        }
        if self.stats {
            let stats = ask(&mut found)?;
            return print_line(&stats_event(&self.id, &stats));
        }
        let mut watch = context.client(&found.id)?;
        let mut kills = found.container.out_of_memory;
        let id = found.id.clone();
        let look = |kills| Command::Watch {
            id: id.clone(),
            out_of_memory: kills,
        };
        watch.send(&look(kills), &[])?;
        let mut next = Instant::now() + interval;
        loop {
            let left = next.saturating_duration_since(Instant::now());
            let told = readable(watch.stream().as_fd(), Deadline::after(left))
                .map_err(|e| Failure::new(FailureKind::Internal, format!("waiting: {e}")))?;
            if told {
                let (now, ended) = match watch.receive(Some(CALL)) {
                    Ok(Message::Ok(Reply::Happened { out_of_memory, ended })) => (out_of_memory, ended),
                    Ok(Message::Ok(other)) => return Err(unexpected(&other)),
                    Ok(Message::Notice(_)) => continue,
                    // The sandbox went with it.
                    Ok(Message::Err(_)) | Err(_) => return Ok(0),
                };
                for _ in kills..now {
                    print_line(&json!({"type": "oom", "id": self.id}))?;
                }
                if ended {
                    return Ok(0);
                }
                kills = now;
                watch.send(&look(kills), &[])?;
                continue;
            }
            next = Instant::now() + interval;
            let stats = match ask(&mut found) {
                // It ended a moment ago.
                Err(failure) if failure.kind != FailureKind::DeadlineExceeded => return Ok(0),
                other => other?,
            };
            print_line(&stats_event(&self.id, &stats))?;
        }
    }
}

fn ask(found: &mut Found) -> Result<ContainerStats, Failure> {
    let command = Command::Stats { id: found.id.clone() };
    match found.client.call(&command, Some(CALL))? {
        Reply::Stats { stats } => Ok(*stats),
        other => Err(unexpected(&other)),
    }
}

fn print_line(event: &Value) -> Outcome {
    print_text(&format!("{event}\n"))
}

/// Runc's layout of the same figures.
fn stats_event(id: &str, stats: &ContainerStats) -> Value {
    let cgroup = &stats.cgroup_stats;
    let cpu = &cgroup.cpu_stats;
    let memory = &cgroup.memory_stats;
    let blkio = &cgroup.blkio_stats;
    let throttling = filled([
        ("periods", cpu.throttling_data.periods),
        ("throttledPeriods", cpu.throttling_data.throttled_periods),
        ("throttledTime", cpu.throttling_data.throttled_time),
    ]);
    let mut usage = filled([("total", cpu.cpu_usage.total_usage)]);
    if !cpu.cpu_usage.percpu_usage.is_empty() {
        usage.insert("percpu".to_owned(), json!(cpu.cpu_usage.percpu_usage));
    }
    usage.insert("kernel".to_owned(), json!(cpu.cpu_usage.usage_in_kernelmode));
    usage.insert("user".to_owned(), json!(cpu.cpu_usage.usage_in_usermode));
    let mut memory_data = filled([("cache", memory.cache)]);
    for (name, data) in [
        ("usage", &memory.usage),
        ("swap", &memory.swap_usage),
        ("kernel", &memory.kernel_usage),
        ("kernelTCP", &memory.kernel_tcp_usage),
    ] {
        memory_data.insert(name.to_owned(), memory_entry(data));
    }
    if !memory.stats.is_empty() {
        memory_data.insert("raw".to_owned(), json!(memory.stats));
    }
    let mut blkio_data = Map::new();
    for (name, entries) in [
        ("ioServiceBytesRecursive", &blkio.service_bytes),
        ("ioServicedRecursive", &blkio.serviced),
        ("ioQueueRecursive", &blkio.queued),
        ("ioServiceTimeRecursive", &blkio.service_time),
        ("ioWaitTimeRecursive", &blkio.wait_time),
        ("ioMergedRecursive", &blkio.merged),
        ("ioTimeRecursive", &blkio.time),
        ("sectorsRecursive", &blkio.sectors),
    ] {
        if !entries.is_empty() {
            blkio_data.insert(name.to_owned(), entries.iter().map(blkio_entry).collect());
        }
    }
    let hugetlb: Map<String, Value> = cgroup
        .hugetlb_stats
        .iter()
        .map(|(size, page)| {
            let mut entry = filled([("usage", page.usage), ("max", page.max_usage)]);
            entry.insert("failcnt".to_owned(), json!(page.failcnt));
            (size.clone(), Value::Object(entry))
        })
        .collect();
    let interfaces: Vec<Value> = stats
        .network_stats
        .iter()
        .map(|card| {
            json!({
                "Name": card.name,
                "RxBytes": card.rx_bytes, "RxPackets": card.rx_packets,
                "RxErrors": card.rx_errors, "RxDropped": card.rx_dropped,
                "TxBytes": card.tx_bytes, "TxPackets": card.tx_packets,
                "TxErrors": card.tx_errors, "TxDropped": card.tx_dropped,
            })
        })
        .collect();
    json!({
        "type": "stats",
        "id": id,
        "data": {
            "cpu": {"usage": usage, "throttling": throttling},
            "cpuset": {},
            "memory": memory_data,
            "pids": filled([("current", cgroup.pids_stats.current), ("limit", cgroup.pids_stats.limit)]),
            "blkio": blkio_data,
            "hugetlb": hugetlb,
            "intel_rdt": {},
            "network_interfaces": if interfaces.is_empty() { Value::Null } else { Value::Array(interfaces) },
        },
    })
}

/// Members that are not zero.
fn filled<const N: usize>(members: [(&str, u64); N]) -> Map<String, Value> {
    members
        .into_iter()
        .filter(|(_, value)| *value != 0)
        .map(|(name, value)| (name.to_owned(), json!(value)))
        .collect()
}

fn memory_entry(data: &MemoryData) -> Value {
    let mut entry = filled([("usage", data.usage), ("max", data.max_usage)]);
    entry.insert("limit".to_owned(), json!(data.limit));
    entry.insert("failcnt".to_owned(), json!(data.failcnt));
    Value::Object(entry)
}

fn blkio_entry(entry: &BlkioEntry) -> Value {
    let mut value = filled([
        ("major", entry.major),
        ("minor", entry.minor),
        ("value", entry.value),
    ]);
    if !entry.op.is_empty() {
        value.insert("op".to_owned(), json!(entry.op));
    }
    Value::Object(value)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The keys engines read, also when everything is zero.
    #[test]
    fn the_layout_is_runcs() {
        let mut stats = ContainerStats::default();
        let event = stats_event("c", &stats);
        assert_eq!(
            event,
            json!({
                "type": "stats", "id": "c",
                "data": {
                    "cpu": {"usage": {"kernel": 0, "user": 0}, "throttling": {}},
                    "cpuset": {},
                    "memory": {
                        "usage": {"limit": 0, "failcnt": 0}, "swap": {"limit": 0, "failcnt": 0},
                        "kernel": {"limit": 0, "failcnt": 0}, "kernelTCP": {"limit": 0, "failcnt": 0},
                    },
                    "pids": {}, "blkio": {}, "hugetlb": {}, "intel_rdt": {}, "network_interfaces": null,
                },
            })
        );
        stats.cgroup_stats.cpu_stats.cpu_usage.total_usage = 5;
        stats.cgroup_stats.cpu_stats.cpu_usage.percpu_usage = vec![2, 3];
        stats.cgroup_stats.memory_stats.usage.usage = 7;
        stats.cgroup_stats.pids_stats.current = 1;
        stats.cgroup_stats.blkio_stats.service_bytes = vec![BlkioEntry {
            major: 8,
            minor: 0,
            op: "Read".into(),
            value: 9,
        }];
        let data = stats_event("c", &stats)["data"].take();
        assert_eq!(data["cpu"]["usage"]["percpu"], json!([2, 3]));
        assert_eq!(data["memory"]["usage"]["usage"], 7);
        assert_eq!(data["pids"]["current"], 1);
        assert_eq!(
            data["blkio"]["ioServiceBytesRecursive"],
            json!([{"major": 8, "op": "Read", "value": 9}])
        );
    }
}
