//! `update`: changes the resource limits of a container (C-20).

use super::Outcome;
use crate::context::{BOOT, Context};
use bulkhead_model::{Failure, FailureKind, State, oci};
use bulkhead_sandbox::Command;
use clap::Args;
use serde_json::{Map, Value, json};
use std::io::Read;

/// Options of `update`. Numbers are kept as text, so that a bad one is named by its option.
#[derive(Debug, Default, Args)]
pub(crate) struct Update {
    /// File with the resources as JSON, - for standard input; the other options are not used then
    #[arg(long, short, value_name = "FILE")]
    pub(crate) resources: Option<String>,
    /// Block I/O weight, 10 to 1000
    #[arg(long, value_name = "WEIGHT")]
    pub(crate) blkio_weight: Option<String>,
    /// CFS period in microseconds
    #[arg(long, value_name = "US")]
    pub(crate) cpu_period: Option<String>,
    /// CFS quota in microseconds in each period, -1 for none
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_quota: Option<String>,
    /// CPU shares
    #[arg(long, value_name = "SHARES")]
    pub(crate) cpu_share: Option<String>,
    /// Real-time period in microseconds
    #[arg(long, value_name = "US")]
    pub(crate) cpu_rt_period: Option<String>,
    /// Real-time runtime in microseconds
    #[arg(long, value_name = "US", allow_hyphen_values = true)]
    pub(crate) cpu_rt_runtime: Option<String>,
    /// CPUs to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_cpus: Option<String>,
    /// Memory nodes to use
    #[arg(long, value_name = "LIST")]
    pub(crate) cpuset_mems: Option<String>,
    /// Memory limit in bytes, or with a unit such as 100M; -1 for none
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory: Option<String>,
    /// Memory soft limit in bytes
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_reservation: Option<String>,
    /// Memory and swap in bytes, -1 for no limit
    #[arg(long, value_name = "BYTES", allow_hyphen_values = true)]
    pub(crate) memory_swap: Option<String>,
    /// Most processes, -1 for no limit
    #[arg(long, value_name = "N", allow_hyphen_values = true)]
    pub(crate) pids_limit: Option<String>,
    /// Not supported: caches are the host's
    #[arg(long, value_name = "SCHEMA")]
    pub l3_cache_schema: Option<String>,
    /// Not supported: memory bandwidth is the host's
    #[arg(long, value_name = "SCHEMA")]
    pub(crate) mem_bw_schema: Option<String>,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

fn bad(message: String) -> Failure {
    Failure::new(FailureKind::InvalidArgument, message)
}

impl Update {
    /// Runs the verb.
    ///
    /// # Errors
    /// A value that is none, a container that does not run, a limit that cannot be had.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut found = context.find(&self.id)?;
        if found.container.state == State::Stopped {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                format!("container not running: {}", found.id),
            ));
        }
        let resources = self.resources()?;
        let command = Command::Update {
            id: found.id.clone(),
            resources: Box::new(resources),
        };
        found.done(&command, BOOT)?;
        Ok(0)
    }

    fn resources(&self) -> Result<oci::LinuxResources, Failure> {
        if let Some(source) = &self.resources {
            return from_source(source);
        }
        for (flag, value) in [
            ("l3-cache-schema", &self.l3_cache_schema),
            ("mem-bw-schema", &self.mem_bw_schema),
        ] {
            if let Some(value) = value.as_ref().filter(|value| !value.is_empty()) {
                return Err(Failure::new(
                    FailureKind::Unsupported,
                    format!(
                        "--{flag} {value:?} is not supported: caches and memory bandwidth are the host's"
                    ),
                ));
            }
        }
        let mut all = Map::new();
        let mut set = |section: &str, key: &str, value: Option<Value>| {
            if let Some(value) = value {
                let section = all.entry(section).or_insert_with(|| json!({}));
                if let Some(members) = section.as_object_mut() {
                    members.insert(key.to_owned(), value);
                }
            }
        };
        set(
            "blockIO",
            "weight",
            unsigned("blkio-weight", self.blkio_weight.as_deref(), 1000)?,
        );
        let u64_of = |flag, text: &Option<String>| unsigned(flag, text.as_deref(), u64::MAX);
        set("cpu", "period", u64_of("cpu-period", &self.cpu_period)?);
        set("cpu", "quota", signed("cpu-quota", self.cpu_quota.as_deref())?);
        set("cpu", "shares", u64_of("cpu-share", &self.cpu_share)?);
        set(
            "cpu",
            "realtimePeriod",
            u64_of("cpu-rt-period", &self.cpu_rt_period)?,
        );
        set(
            "cpu",
            "realtimeRuntime",
            signed("cpu-rt-runtime", self.cpu_rt_runtime.as_deref())?,
        );
        set("cpu", "cpus", given(self.cpuset_cpus.as_ref()));
        set("cpu", "mems", given(self.cpuset_mems.as_ref()));
        set("memory", "limit", bytes("memory", self.memory.as_deref())?);
        set(
            "memory",
            "reservation",
            bytes("memory-reservation", self.memory_reservation.as_deref())?,
        );
        set(
            "memory",
            "swap",
            bytes("memory-swap", self.memory_swap.as_deref())?,
        );
        set("pids", "limit", signed("pids-limit", self.pids_limit.as_deref())?);
        parse(Value::Object(all))
    }
}

fn given(text: Option<&String>) -> Option<Value> {
    text.filter(|text| !text.is_empty()).map(|text| json!(text))
}

/// 0 leaves a value as it is, as with runc.
fn unsigned(flag: &str, text: Option<&str>, most: u64) -> Result<Option<Value>, Failure> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<u64>() {
        Ok(0) => Ok(None),
        Ok(value) if value <= most => Ok(Some(json!(value))),
        _ => Err(bad(format!(
            "invalid value for {flag}: {text:?}: expected a number from 0 to {most}"
        ))),
    }
}

fn signed(flag: &str, text: Option<&str>) -> Result<Option<Value>, Failure> {
    let Some(text) = text else { return Ok(None) };
    match text.parse::<i64>() {
        Ok(0) => Ok(None),
        Ok(value) => Ok(Some(json!(value))),
        Err(_) => Err(bad(format!(
            "invalid value for {flag}: {text:?}: expected a whole number"
        ))),
    }
}

/// A number of bytes, with an optional unit of powers of 1024: b, k, m, g, t, p, also as KB or KiB.
fn bytes(flag: &str, text: Option<&str>) -> Result<Option<Value>, Failure> {
    let Some(text) = text else { return Ok(None) };
    let refuse = || {
        bad(format!(
            "invalid value for {flag}: {text:?}: expected a number of bytes such as 104857600 or 100M, or -1"
        ))
    };
    if text == "-1" {
        return Ok(Some(json!(-1)));
    }
    let digits = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(digits);
    let unit = unit.trim().to_ascii_lowercase();
    let unit = unit
        .strip_suffix("ib")
        .or_else(|| unit.strip_suffix('b'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return Err(refuse()),
    };
    let scale = 1_i64 << shift;
    let value = match number.parse::<i64>() {
        Ok(whole) => whole.checked_mul(scale).ok_or_else(refuse)?,
        Err(_) => {
            let value = number.parse::<f64>().map_err(|_| refuse())?
                * f64::from(1_u32 << (shift % 30))
                * if shift >= 30 { f64::from(1_u32 << 30) } else { 1.0 };
            if !(0.0..9.0e18).contains(&value) {
                return Err(refuse());
            }
            #[allow(clippy::cast_possible_truncation, reason = "within the range just checked")]
            let whole = value as i64;
            whole
        }
    };
    Ok((value != 0).then(|| json!(value)))
}

fn from_source(source: &str) -> Result<oci::LinuxResources, Failure> {
    let name = if source == "-" { "standard input" } else { source };
    let mut text = Vec::new();
    let read = if source == "-" {
        std::io::stdin().lock().read_to_end(&mut text).map(drop)
    } else {
        std::fs::read(source).map(|read| text = read)
    };
    read.map_err(|e| bad(format!("reading the resources {name}: {e}")))?;
    let value = serde_json::from_slice(&text).map_err(|e| bad(format!("the resources {name}: {e}")))?;
    parse(value)
}

fn parse(mut value: Value) -> Result<oci::LinuxResources, Failure> {
    unchanged_out(&mut value);
    serde_json::from_value(value).map_err(|e| bad(format!("the resources: {e}")))
}

/// Takes out what stands for "unchanged": engines send every member, most of them 0 or empty.
fn unchanged_out(resources: &mut Value) {
    let Some(sections) = resources.as_object_mut() else {
        return;
    };
    for section in ["cpu", "memory", "pids", "blockIO"] {
        let Some(members) = sections.get_mut(section).and_then(Value::as_object_mut) else {
            continue;
        };
        members.retain(|_, value| match value {
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Null => false,
            _ => true,
        });
        if members.is_empty() {
            sections.remove(section);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn value(update: &Update) -> Value {
        serde_json::to_value(update.resources().unwrap()).unwrap()
    }

    fn some(text: &str) -> Option<String> {
        Some(text.to_owned())
    }

    /// C-20: every flag reaches its member.
    #[test]
    fn c20_flags() {
        let update = Update {
            blkio_weight: some("500"),
            cpu_period: some("100000"),
            cpu_quota: some("-1"),
            cpu_share: some("2"),
            cpu_rt_period: some("3"),
            cpu_rt_runtime: some("4"),
            cpuset_cpus: some("0-1"),
            cpuset_mems: some("0"),
            memory: some("1.5G"),
            memory_reservation: some("10m"),
            memory_swap: some("-1"),
            pids_limit: some("7"),
            ..Update::default()
        };
        assert_eq!(
            value(&update),
            json!({
                "blockIO": {"weight": 500},
                "cpu": {
                    "period": 100_000, "quota": -1, "shares": 2, "realtimePeriod": 3,
                    "realtimeRuntime": 4, "cpus": "0-1", "mems": "0",
                },
                "memory": {"limit": 1_610_612_736, "reservation": 10_485_760, "swap": -1},
                "pids": {"limit": 7},
            })
        );
    }

    /// C-20: what is not given, or given as 0, stays as it is.
    #[test]
    fn c20_zero_is_unchanged() {
        let update = Update {
            cpu_quota: some("0"),
            memory: some("0"),
            ..Update::default()
        };
        assert_eq!(value(&update), json!({}));
        let file = json!({"memory": {"limit": 0, "swap": 5}, "cpu": {"shares": 0, "cpus": ""}, "blockIO": {"weight": 0}});
        assert_eq!(
            serde_json::to_value(parse(file).unwrap()).unwrap(),
            json!({"memory": {"swap": 5}})
        );
    }

    #[test]
    fn bad_values_are_named_with_their_option() {
        for (update, words) in [
            (
                Update {
                    cpu_quota: some("abc"),
                    ..Update::default()
                },
                ["cpu-quota", "\"abc\""],
            ),
            (
                Update {
                    memory: some("10q"),
                    ..Update::default()
                },
                ["memory", "\"10q\""],
            ),
            (
                Update {
                    memory: some("9999999999999P"),
                    ..Update::default()
                },
                ["memory", "9999999999999P"],
            ),
            (
                Update {
                    cpu_share: some("-1"),
                    ..Update::default()
                },
                ["cpu-share", "\"-1\""],
            ),
            (
                Update {
                    blkio_weight: some("1001"),
                    ..Update::default()
                },
                ["blkio-weight", "1001"],
            ),
            (
                Update {
                    l3_cache_schema: some("L3:0=f"),
                    ..Update::default()
                },
                ["l3-cache-schema", "L3:0=f"],
            ),
            (
                Update {
                    resources: some("/nonexistent"),
                    ..Update::default()
                },
                ["resources", "/nonexistent"],
            ),
        ] {
            let failure = update.resources().unwrap_err();
            assert!(
                words.iter().all(|word| failure.message.contains(word)),
                "{failure}"
            );
        }
        assert!(parse(json!({"memory": {"limit": "x"}})).is_err());
    }
}
