//! What a container adds to the size of its VM (C-24).
//!
//! Owns: the sum from a spec's limits. Never: the size of the VM. Called by `config`, and by the engine when a container comes or goes.

use serde::{Deserialize, Serialize};

/// A container's share of the sandbox; zero means it named no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Share {
    /// vCPUs: ceil(quota / period).
    pub vcpus: u32,
    /// Memory in bytes.
    pub memory_bytes: u64,
}

impl Share {
    /// The share that limits ask for: `quota` and `period` in microseconds, `memory` in bytes. Unset,
    /// zero and negative values ask for nothing; too many CPUs saturate.
    #[must_use]
    pub fn of(quota: Option<i64>, period: Option<u64>, memory: Option<i64>) -> Self {
        let positive = |value: Option<i64>| value.and_then(|v| u64::try_from(v).ok()).unwrap_or(0);
        let vcpus = match period {
            Some(period) if period > 0 => positive(quota).div_ceil(period),
            _ => 0,
        };
        Self {
            vcpus: u32::try_from(vcpus).unwrap_or(u32::MAX),
            memory_bytes: positive(memory),
        }
    }

    /// The memory in MiB, rounded up; saturates.
    #[must_use]
    pub fn memory_mib(&self) -> u32 {
        u32::try_from(self.memory_bytes.div_ceil(1 << 20)).unwrap_or(u32::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C-24: ceil(quota / period), nothing when unset or not positive.
    #[test]
    fn c24_vcpus_of_a_constraint() {
        let vcpus = |quota, period| Share::of(quota, period, None).vcpus;
        assert_eq!(vcpus(Some(100_000), Some(100_000)), 1);
        assert_eq!(vcpus(Some(100_001), Some(100_000)), 2);
        assert_eq!(vcpus(Some(1), Some(100_000)), 1);
        assert_eq!(vcpus(Some(250_000), Some(100_000)), 3);
        for none in [
            (None, Some(100_000)),
            (Some(100_000), None),
            (Some(0), Some(100_000)),
            (Some(-1), Some(100_000)),
            (Some(100_000), Some(0)),
        ] {
            assert_eq!(vcpus(none.0, none.1), 0, "{none:?}");
        }
        assert_eq!(vcpus(Some(i64::MAX), Some(1)), u32::MAX);
    }

    /// C-24: memory is bytes; MiB are rounded up.
    #[test]
    fn c24_memory_of_a_limit() {
        let share = Share::of(None, None, Some(32 << 20));
        assert_eq!((share.memory_bytes, share.memory_mib()), (32 << 20, 32));
        assert_eq!(Share::of(None, None, Some(1)).memory_mib(), 1);
        assert_eq!(Share::of(None, None, Some(-1)), Share::default());
    }
}
