//! What the host says of itself.
//!
//! Owns: reading `/proc/cpuinfo`, `/sys/module` and opening `/dev/kvm`. Never: judges.

use bulkhead_host::kvm;
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::OwnedFd;
use std::path::Path;

/// The device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Device {
    /// There is none.
    Missing,
    /// It may not be opened.
    Denied,
    /// It cannot be opened for another reason.
    Broken,
    /// It opens.
    Opens,
}

/// How fast a million steps of a guest are behind the device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Speed {
    /// This many microseconds.
    Micros(u64),
    /// Not within the limit.
    TooSlow,
    /// The guest could not be made or did something else.
    Failed,
    /// A VM did not start with it.
    Distrusted,
}

/// All that the choice depends on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Facts {
    /// `vmx` or `svm` if the processor says it can.
    pub flag: Option<String>,
    /// `kvm_intel` or `kvm_amd` if the kernel has it loaded or built in.
    pub module: Option<String>,
    /// `/dev/kvm`.
    pub device: Device,
    /// `None` while not measured.
    pub speed: Option<Speed>,
}

/// Everything but the speed, and the open device.
pub(super) fn collect() -> (Facts, Option<OwnedFd>) {
    let cpuinfo = std::fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let module = ["kvm_intel", "kvm_amd"]
        .into_iter()
        .find(|name| Path::new("/sys/module").join(name).exists());
    let opened = kvm::open(Path::new("/dev/kvm"));
    let device = match &opened {
        Ok(_) => Device::Opens,
        Err(error) => match error.kind() {
            io::ErrorKind::NotFound => Device::Missing,
            io::ErrorKind::PermissionDenied => Device::Denied,
            _ => Device::Broken,
        },
    };
    let facts = Facts {
        flag: flag(&cpuinfo).map(String::from),
        module: module.map(String::from),
        device,
        speed: None,
    };
    (facts, opened.ok())
}

/// `vmx` or `svm` as a whole word of the first `flags` line of `/proc/cpuinfo`.
fn flag(cpuinfo: &str) -> Option<&str> {
    let flags = cpuinfo.lines().find_map(|line| line.strip_prefix("flags"))?;
    flags
        .split_ascii_whitespace()
        .find(|flag| ["vmx", "svm"].contains(flag))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flag_is_a_whole_word() {
        assert_eq!(flag("processor\t: 0\nflags\t\t: fpu vmx sse\n"), Some("vmx"));
        assert_eq!(flag("flags\t\t: fpu svm\n"), Some("svm"));
        assert_eq!(flag("flags\t\t: fpu svm_lock vmxx\nvmx flags\t: vnmi\n"), None);
        assert_eq!(flag(""), None);
    }
}
