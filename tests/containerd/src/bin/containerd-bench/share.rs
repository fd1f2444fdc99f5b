//! How much of an operation's time was spent waiting for the guest, from the sandbox's timeline.
//!
//! Guest time is what spans of the guest cover, what calls to its agent cover, and, for a process that runs to its
//! end, the time between its start and its end. All of it is translated code where there is no KVM.

use bulkhead_containerd::Place;
use serde_json::Value;
use std::path::PathBuf;

/// A stretch of time in nanoseconds.
type Stretch = (u64, u64);

/// Seconds that the operations of `container` (or all of the sandbox's, the boot included) waited for the guest; of its
/// execs only the newest, if `exec`.
pub(crate) fn in_guest(namespace: &str, sandbox: &str, container: Option<&str>, exec: bool) -> Option<f64> {
    let root = Place::root(namespace);
    let paths: [PathBuf; 2] = [
        root.join("sandboxes").join(sandbox).join("timeline.json"),
        root.join("timelines").join(sandbox),
    ];
    let text = paths.iter().find_map(|path| std::fs::read(path).ok())?;
    let timeline: Value = serde_json::from_slice(&text).ok()?;
    let operations: Vec<&Value> = timeline["operations"]
        .as_array()?
        .iter()
        .filter(|one| container.is_none_or(|id| one["container"] == id))
        .collect();
    let newest = operations.iter().rev().find_map(|one| one["exec"].as_str());
    let counted = operations.iter().filter(|one| match one["exec"].as_str() {
        Some(id) => exec && newest == Some(id),
        None => !exec,
    });
    let mut stretches = Vec::new();
    let (mut started, mut ended) = (None, None);
    for operation in counted {
        for span in operation["spans"].as_array()? {
            let (begin, end) = (span["begin_ns"].as_u64()?, span["end_ns"].as_u64());
            let (lane, name) = (span["lane"].as_str()?, span["name"].as_str()?);
            if lane == "guest" || lane == "supervisor" && (name.contains("guest") || name.contains("agent")) {
                stretches.push((begin, end.unwrap_or(begin)));
            }
        }
        match operation["name"].as_str()? {
            "exec" | "start" => started = operation["end_ns"].as_u64(),
            "exit" => ended = operation["begin_ns"].as_u64(),
            _ => {}
        }
    }
    stretches.extend(started.zip(ended).filter(|(from, to)| from < to));
    Some(covered(stretches) as f64 / 1e9)
}

/// Length of what is covered by at least one of them.
fn covered(mut stretches: Vec<Stretch>) -> u64 {
    stretches.sort_unstable();
    let (mut sum, mut until) = (0, 0);
    for (begin, end) in stretches {
        let begin = begin.max(until);
        if end > begin {
            sum += end - begin;
            until = end;
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use super::covered;

    #[test]
    fn what_overlaps_counts_once() {
        assert_eq!(covered(vec![(10, 20), (0, 5), (15, 30), (16, 17)]), 25);
    }
}
