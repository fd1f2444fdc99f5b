//! The floor of a start from a template: a VM goes on until its agent answers, and one clone makes a container.
//!
//! Owns: which steps of a timeline those are. Never: runs anything. Called by `start` after each run.

use serde_json::Value;
use std::time::Duration;

/// The VM, from the start of its QEMU to the agent's first word.
const FROM: &str = "start QEMU, until it answers";
const TO: &str = "wait for the agent's hello";
/// The container, in the guest.
const CLONE: &str = "clone, mounts, pivot";

/// What the steps took in the run that `timeline` (`bulkhead timeline --format json`) is of; `None` if one is missing.
pub(super) fn of(timeline: &Value) -> Option<Duration> {
    let spans: Vec<&Value> = timeline["operations"]
        .as_array()?
        .iter()
        .filter_map(|operation| operation["spans"].as_array())
        .flatten()
        .collect();
    let times = |name: &str| {
        let span = spans.iter().find(|span| span["name"] == name)?;
        Some((span["begin_ns"].as_u64()?, span["end_ns"].as_u64()?))
    };
    let restored = times(TO)?.1.checked_sub(times(FROM)?.0)?;
    let (begin, end) = times(CLONE)?;
    Some(Duration::from_nanos(restored + end.checked_sub(begin)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn span(name: &str, begin: u64, end: u64) -> Value {
        json!({"lane": "vmm", "name": name, "begin_ns": begin, "end_ns": end})
    }

    #[test]
    fn the_vm_and_the_clone_without_what_lies_between() {
        let timeline = json!({"operations": [
            {"name": "boot", "spans": [span(FROM, 100, 140), span("plug the share", 140, 150), span(TO, 150, 200)]},
            {"name": "create", "spans": [span("bind the shares", 300, 350), span(CLONE, 400, 430)]},
        ]});
        assert_eq!(of(&timeline), Some(Duration::from_nanos(130)));
        assert_eq!(of(&json!({"operations": []})), None);
    }
}
