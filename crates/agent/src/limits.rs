//! OCI resource limits as cgroup v2 settings (OCI runtime-spec "Control groups", cgroup-v2.rst).
//!
//! Owns the conversion of fields that were defined for cgroup v1. Never: I/O (see `cgroup`).

use bulkhead_model::oci::{LinuxBlockIo, LinuxCpu, LinuxMemory, LinuxResources, LinuxThrottleDevice};

/// One line for one file of a cgroup.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Setting {
    /// File name inside the cgroup directory.
    pub(crate) file: String,
    /// What to write.
    pub(crate) value: String,
    /// A kernel without this file is no error (the limit is then logged as not applied).
    pub(crate) optional: bool,
}

/// A limit that cannot be converted.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum LimitError {
    /// A number outside its range.
    #[error("{what} {value}: expected {expected}")]
    Range {
        /// Which limit.
        what: &'static str,
        /// The value given.
        value: i64,
        /// What would do.
        expected: &'static str,
    },
    /// A `unified` key that is no plain file name.
    #[error("unified resource {key:?}: expected the name of a cgroup file")]
    Key {
        /// The key given.
        key: String,
    },
}

fn setting(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        file: file.into(),
        value: value.to_string(),
        optional: false,
    }
}

fn optional(file: impl Into<String>, value: impl ToString) -> Setting {
    Setting {
        optional: true,
        ..setting(file, value)
    }
}

/// -1 is "no limit", 0 is "not given".
fn bytes(what: &'static str, value: i64) -> Result<Option<String>, LimitError> {
    match value {
        -1 => Ok(Some("max".to_owned())),
        0 => Ok(None),
        value if value > 0 => Ok(Some(value.to_string())),
        value => Err(LimitError::Range {
            what,
            value,
            expected: "-1 for no limit, or a number of bytes",
        }),
    }
}

fn memory(memory: &LinuxMemory, out: &mut Vec<Setting>) -> Result<(), LimitError> {
    let limit = memory.limit().unwrap_or(0);
    let swap = memory.swap().unwrap_or(0);
    // v1 counts memory and swap together, v2 swap alone.
    let swap = match swap {
        0 => None,
        -1 => Some("max".to_owned()),
        both if both > 0 && limit > 0 && both >= limit => Some((both - limit).to_string()),
        both if both > 0 && limit == -1 => Some(both.to_string()),
        value => {
            return Err(LimitError::Range {
                what: "memory+swap limit",
                value,
                expected: "-1 for no limit, or at least the memory limit, which must be set",
            });
        }
    };
    // No limit for memory and none named for swap: none for swap either.
    let swap = swap.or_else(|| (limit == -1).then(|| "max".to_owned()));
    if let Some(value) = swap {
        out.push(optional("memory.swap.max", value));
    }
    if let Some(value) = bytes("memory limit", limit)? {
        out.push(setting("memory.max", value));
    }
    if let Some(value) = bytes("memory reservation", memory.reservation().unwrap_or(0))? {
        out.push(setting("memory.low", value));
    }
    Ok(())
}

/// v1 shares 2…262144 to v2 weight 1…10000, linear; 0 is "not given".
fn weight(shares: u64) -> Option<u64> {
    (shares != 0).then(|| 1 + (shares.clamp(2, 262_144) - 2) * 9999 / 262_142)
}

fn cpu(cpu: &LinuxCpu, out: &mut Vec<Setting>) {
    // Idle decides over weight: the kernel refuses a weight in an idle group.
    if let Some(idle) = cpu.idle() {
        out.push(optional("cpu.idle", idle));
    }
    if let Some(weight) = cpu.shares().and_then(weight)
        && cpu.idle() != Some(1)
    {
        out.push(setting("cpu.weight", weight));
    }
    let quota = cpu.quota().filter(|quota| *quota != 0);
    let period = cpu.period().filter(|period| *period != 0);
    if quota.is_some() || period.is_some() {
        let quota = match quota {
            Some(quota) if quota > 0 => quota.to_string(),
            _ => "max".to_owned(),
        };
        out.push(setting(
            "cpu.max",
            format!("{quota} {}", period.unwrap_or(100_000)),
        ));
    }
    if let Some(burst) = cpu.burst() {
        out.push(optional("cpu.max.burst", burst));
    }
    if let Some(cpus) = cpu.cpus().as_deref().filter(|cpus| !cpus.is_empty()) {
        out.push(setting("cpuset.cpus", cpus));
    }
    if let Some(mems) = cpu.mems().as_deref().filter(|mems| !mems.is_empty()) {
        out.push(setting("cpuset.mems", mems));
    }
}

fn block_io(io: &LinuxBlockIo, out: &mut Vec<Setting>) {
    // BFQ takes v1 weights (10…1000) as they are, io.weight is the scale of v2 (1…10000).
    let scaled = |weight: u16| 1 + (u64::from(weight).clamp(10, 1000) - 10) * 9999 / 990;
    if let Some(weight) = io.weight().filter(|weight| *weight != 0) {
        out.push(optional("io.bfq.weight", weight));
        out.push(optional("io.weight", format!("default {}", scaled(weight))));
    }
    for device in io.weight_device().iter().flatten() {
        if let Some(weight) = device.weight().filter(|weight| *weight != 0) {
            let (major, minor) = (device.major(), device.minor());
            out.push(optional("io.bfq.weight", format!("{major}:{minor} {weight}")));
            out.push(optional(
                "io.weight",
                format!("{major}:{minor} {}", scaled(weight)),
            ));
        }
    }
    let mut throttle = |list: &Option<Vec<LinuxThrottleDevice>>, key: &str| {
        for device in list.iter().flatten() {
            let rate = match device.rate() {
                0 => "max".to_owned(),
                rate => rate.to_string(),
            };
            out.push(setting(
                "io.max",
                format!("{}:{} {key}={rate}", device.major(), device.minor()),
            ));
        }
    };
    throttle(io.throttle_read_bps_device(), "rbps");
    throttle(io.throttle_write_bps_device(), "wbps");
    throttle(io.throttle_read_iops_device(), "riops");
    throttle(io.throttle_write_iops_device(), "wiops");
}

/// What to write, in this order.
///
/// # Errors
/// [`LimitError`] naming the limit, its value and what was expected.
pub(crate) fn settings(resources: &LinuxResources) -> Result<Vec<Setting>, LimitError> {
    let mut out = Vec::new();
    if let Some(limits) = resources.memory() {
        memory(limits, &mut out)?;
    }
    if let Some(limits) = resources.cpu() {
        cpu(limits, &mut out);
    }
    if let Some(pids) = resources.pids() {
        match pids.limit() {
            0 => {}
            limit if limit > 0 => out.push(setting("pids.max", limit)),
            _ => out.push(setting("pids.max", "max")),
        }
    }
    if let Some(limits) = resources.block_io() {
        block_io(limits, &mut out);
    }
    for page in resources.hugepage_limits().iter().flatten() {
        let size = page.page_size();
        if size.contains('/') {
            return Err(LimitError::Key { key: size.clone() });
        }
        out.push(setting(format!("hugetlb.{size}.max"), page.limit()));
        out.push(optional(format!("hugetlb.{size}.rsvd.max"), page.limit()));
    }
    for (device, limits) in resources.rdma().iter().flatten() {
        let mut line = device.clone();
        if let Some(handles) = limits.hca_handles() {
            line.push_str(&format!(" hca_handle={handles}"));
        }
        if let Some(objects) = limits.hca_objects() {
            line.push_str(&format!(" hca_object={objects}"));
        }
        out.push(setting("rdma.max", line));
    }
    let mut unified: Vec<_> = resources.unified().iter().flatten().collect();
    unified.sort();
    for (key, value) in unified {
        if key.is_empty() || key.contains('/') || key.starts_with("cgroup.") {
            return Err(LimitError::Key { key: key.clone() });
        }
        for line in value.lines() {
            out.push(setting(key, line));
        }
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(resources: serde_json::Value) -> Result<Vec<(String, String)>, LimitError> {
        let resources: LinuxResources = serde_json::from_value(resources).unwrap();
        Ok(settings(&resources)?
            .into_iter()
            .map(|s| (s.file, s.value))
            .collect())
    }

    fn pairs(expected: &[(&str, &str)]) -> Vec<(String, String)> {
        expected
            .iter()
            .map(|(file, value)| ((*file).to_owned(), (*value).to_owned()))
            .collect()
    }

    #[test]
    fn memory_and_swap_are_taken_apart() {
        assert_eq!(
            lines(json!({"memory": {"limit": 1000, "swap": 3000, "reservation": 500}})).unwrap(),
            pairs(&[
                ("memory.swap.max", "2000"),
                ("memory.max", "1000"),
                ("memory.low", "500")
            ])
        );
        assert_eq!(
            lines(json!({"memory": {"limit": -1}})).unwrap(),
            pairs(&[("memory.swap.max", "max"), ("memory.max", "max")])
        );
        assert!(lines(json!({"memory": {"limit": 1000, "swap": 500}})).is_err());
        assert!(lines(json!({"memory": {"limit": -5}})).is_err());
    }

    #[test]
    fn cpu_shares_become_a_weight_and_quota_a_pair() {
        assert_eq!(
            lines(json!({"cpu": {"shares": 1024, "quota": 50000, "period": 100_000, "cpus": "0-1", "mems": "0"}})).unwrap(),
            pairs(&[("cpu.weight", "39"), ("cpu.max", "50000 100000"), ("cpuset.cpus", "0-1"), ("cpuset.mems", "0")])
        );
        assert_eq!(weight(2), Some(1));
        assert_eq!(weight(262_144), Some(10_000));
        assert_eq!(weight(u64::MAX), Some(10_000));
        assert_eq!(
            lines(json!({"cpu": {"quota": -1}})).unwrap(),
            pairs(&[("cpu.max", "max 100000")])
        );
        assert_eq!(
            lines(json!({"cpu": {"shares": 0, "quota": 0, "period": 0, "cpus": ""}})).unwrap(),
            pairs(&[])
        );
    }

    #[test]
    fn other_controllers() {
        assert_eq!(
            lines(
                json!({"pids": {"limit": 10}, "hugepageLimits": [{"pageSize": "2MB", "limit": 4096}],
                         "blockIO": {"throttleReadBpsDevice": [{"major": 8, "minor": 0, "rate": 7}]},
                         "unified": {"memory.high": "5"}})
            )
            .unwrap(),
            pairs(&[
                ("pids.max", "10"),
                ("io.max", "8:0 rbps=7"),
                ("hugetlb.2MB.max", "4096"),
                ("hugetlb.2MB.rsvd.max", "4096"),
                ("memory.high", "5")
            ])
        );
        assert_eq!(
            lines(json!({"pids": {"limit": -1}})).unwrap(),
            pairs(&[("pids.max", "max")])
        );
    }

    #[test]
    fn unified_keys_stay_in_the_cgroup() {
        for key in ["../x", "a/b", "", "cgroup.procs"] {
            assert_eq!(
                lines(json!({"unified": {key: "1"}})),
                Err(LimitError::Key { key: key.to_owned() })
            );
        }
    }
}
