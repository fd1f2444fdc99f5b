//! Capability sets as the kernel takes them.
//!
//! Owns: the numbers of linux/capability.h. Never: a system call (see `sys::capabilities`).

use bulkhead_model::oci::{Capabilities, Capability, LinuxCapabilities};
use serde::{Deserialize, Serialize};

/// The five sets of a process, bit N for capability N.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Privileges {
    /// What it can ever get.
    pub(crate) bounding: u64,
    /// What it has.
    pub(crate) effective: u64,
    /// What it may switch on.
    pub(crate) permitted: u64,
    /// What a program with file capabilities may inherit.
    pub(crate) inheritable: u64,
    /// What any program inherits.
    pub(crate) ambient: u64,
}

impl Privileges {
    /// From the spec; a set that is absent is empty.
    pub(super) fn of(given: &LinuxCapabilities) -> Self {
        Self {
            bounding: bits(given.bounding().as_ref()),
            effective: bits(given.effective().as_ref()),
            permitted: bits(given.permitted().as_ref()),
            inheritable: bits(given.inheritable().as_ref()),
            ambient: bits(given.ambient().as_ref()),
        }
    }
}

fn bits(set: Option<&Capabilities>) -> u64 {
    set.into_iter()
        .flatten()
        .fold(0, |all, capability| all | (1 << number(*capability)))
}

const fn number(capability: Capability) -> u32 {
    match capability {
        Capability::Chown => 0,
        Capability::DacOverride => 1,
        Capability::DacReadSearch => 2,
        Capability::Fowner => 3,
        Capability::Fsetid => 4,
        Capability::Kill => 5,
        Capability::Setgid => 6,
        Capability::Setuid => 7,
        Capability::Setpcap => 8,
        Capability::LinuxImmutable => 9,
        Capability::NetBindService => 10,
        Capability::NetBroadcast => 11,
        Capability::NetAdmin => 12,
        Capability::NetRaw => 13,
        Capability::IpcLock => 14,
        Capability::IpcOwner => 15,
        Capability::SysModule => 16,
        Capability::SysRawio => 17,
        Capability::SysChroot => 18,
        Capability::SysPtrace => 19,
        Capability::SysPacct => 20,
        Capability::SysAdmin => 21,
        Capability::SysBoot => 22,
        Capability::SysNice => 23,
        Capability::SysResource => 24,
        Capability::SysTime => 25,
        Capability::SysTtyConfig => 26,
        Capability::Mknod => 27,
        Capability::Lease => 28,
        Capability::AuditWrite => 29,
        Capability::AuditControl => 30,
        Capability::Setfcap => 31,
        Capability::MacOverride => 32,
        Capability::MacAdmin => 33,
        Capability::Syslog => 34,
        Capability::WakeAlarm => 35,
        Capability::BlockSuspend => 36,
        Capability::AuditRead => 37,
        Capability::Perfmon => 38,
        Capability::Bpf => 39,
        Capability::CheckpointRestore => 40,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn names_become_bits() {
        let given: LinuxCapabilities = serde_json::from_value(json!({
            "bounding": ["CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE"], "effective": [], "permitted": ["CAP_KILL"]
        }))
        .unwrap();
        let privileges = Privileges::of(&given);
        assert_eq!(privileges.bounding, 1 | 1 << 21 | 1 << 40);
        assert_eq!((privileges.effective, privileges.permitted), (0, 1 << 5));
        assert_eq!(privileges.ambient, 0);
    }
}
