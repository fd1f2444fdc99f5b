//! Bringing hot-plugged CPUs and memory online, and CPUs offline (contract C-20, C-24; cpu-hotplug.rst,
//! memory-hotplug.rst).
//!
//! Owns: the switches in sysfs. Never: which CPUs a container may use. Called by `service` when the host has plugged something.

use crate::uevent;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

const CPUS: &str = "/sys/devices/system/cpu";
const MEMORY: &str = "/sys/devices/system/memory";
const DEADLINE: Duration = Duration::from_secs(30);

/// Why the guest does not have what was asked for.
#[derive(Debug, thiserror::Error)]
pub(crate) enum HotplugError {
    /// Too few CPUs turned up.
    #[error("the guest has {there} CPUs: expected {wanted} within {} s", DEADLINE.as_secs())]
    Cpus {
        /// How many there are.
        there: usize,
        /// How many were asked for.
        wanted: usize,
    },
    /// One could not be switched.
    #[error("switching {path}")]
    Switch {
        /// Its directory.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
}

/// `cpu12` and `memory3` in `directory`, by number.
fn numbered(directory: &str, prefix: &str) -> Vec<(u32, PathBuf)> {
    let mut all: Vec<(u32, PathBuf)> = fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter_map(|entry| {
            let name = entry.file_name();
            let number = name.to_str()?.strip_prefix(prefix)?.parse().ok()?;
            Some((number, entry.path()))
        })
        .collect();
    all.sort();
    all
}

/// A CPU that cannot be switched has no `online` file and is on.
fn is_online(path: &Path) -> bool {
    fs::read_to_string(path.join("online")).map_or(true, |text| text.trim() == "1")
}

fn switch(path: &Path, on: bool) -> Result<(), HotplugError> {
    fs::write(path.join("online"), if on { "1" } else { "0" }).map_err(|source| HotplugError::Switch {
        path: path.to_owned(),
        source,
    })
}

/// Makes exactly `wanted` CPUs online, the lowest numbers; 0 leaves them. Returns how many are.
///
/// # Errors
/// [`HotplugError`].
pub(crate) fn cpus(wanted: u32) -> Result<u32, HotplugError> {
    let wanted = wanted as usize;
    if wanted > 0 {
        let there = || {
            let all = numbered(CPUS, "cpu");
            (all.len() >= wanted).then_some(all)
        };
        let all = uevent::wait_for(DEADLINE, there)
            .ok()
            .flatten()
            .ok_or_else(|| HotplugError::Cpus {
                there: numbered(CPUS, "cpu").len(),
                wanted,
            })?;
        for (index, (_, path)) in all.iter().enumerate() {
            let on = index < wanted;
            if is_online(path) != on {
                switch(path, on)?;
            }
        }
    }
    let online = numbered(CPUS, "cpu")
        .iter()
        .filter(|(_, path)| is_online(path))
        .count();
    Ok(u32::try_from(online).unwrap_or(u32::MAX))
}

/// Brings every memory block online if `all`; returns the bytes that are.
///
/// # Errors
/// [`HotplugError::Switch`].
pub(crate) fn memory(all: bool) -> Result<u64, HotplugError> {
    let blocks = numbered(MEMORY, "memory");
    if all {
        for (_, path) in &blocks {
            if !is_online(path) {
                switch(path, true)?;
            }
        }
    }
    let size = fs::read_to_string(Path::new(MEMORY).join("block_size_bytes"))
        .ok()
        .and_then(|text| u64::from_str_radix(text.trim(), 16).ok());
    let online = blocks.iter().filter(|(_, path)| is_online(path)).count() as u64;
    Ok(size
        .map(|size| size * online)
        .filter(|bytes| *bytes > 0)
        .unwrap_or_else(total))
}

/// A kernel without memory hot-plug tells its size only here.
fn total() -> u64 {
    fs::read_to_string("/proc/meminfo")
        .ok()
        .and_then(|text| {
            let line = text
                .lines()
                .find_map(|line| line.strip_prefix("MemTotal:"))?
                .trim()
                .to_owned();
            line.split_whitespace().next()?.parse::<u64>().ok()
        })
        .map_or(0, |kib| kib * 1024)
}
