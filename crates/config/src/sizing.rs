//! How large a VM is: configured base plus what containers ask for (O-09, O-10, C-24).
//!
//! ```text
//!  boot size = base + share of the pod (engine's annotations) or of the first container (its limits)
//!  bounded by the most the configuration and the host allow; later containers are hot-added
//! ```
//!
//! A limit never makes a container fail to start: what the host cannot give is not given, as with runc.
//!
//! Owns: that sum. Never: changes the size of a VM that runs. Called by `plan`.

use crate::facts::HostFacts;
use crate::options::{Hypervisor, VMM_MAX_VCPUS};
use crate::overrides::{AnnotationError, Annotations};
use crate::value::signed;
use bulkhead_model::Share;

/// Annotations by which engines say how large a whole pod will be.
const QUOTA: &str = "io.kubernetes.cri.sandbox-cpu-quota";
const PERIOD: &str = "io.kubernetes.cri.sandbox-cpu-period";
const SHARES: &str = "io.kubernetes.cri.sandbox-cpu-shares";
const MEMORY: &str = "io.kubernetes.cri.sandbox-memory";

/// Weight of one CPU in cpu.shares (Kubernetes: 1 CPU requested is 1024).
const SHARES_PER_CPU: i64 = 1024;

/// What the engine announced for a pod.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) struct PodSize {
    /// The pod's limits.
    pub(crate) share: Share,
    /// Whole CPUs it requests: it has at least as many vCPUs, however its limits add up.
    pub(crate) requested_vcpus: u32,
}

impl PodSize {
    /// # Errors
    /// An annotation that is no number.
    pub(crate) fn read(annotations: &Annotations) -> Result<Self, AnnotationError> {
        let number = |key: &str| -> Result<Option<i64>, AnnotationError> {
            annotations
                .get(key)
                .map(|text| {
                    signed(text).map_err(|refused| AnnotationError::Value {
                        annotation: key.to_owned(),
                        value: refused.value,
                        expected: refused.expected,
                    })
                })
                .transpose()
        };
        let period = number(PERIOD)?.and_then(|period| u64::try_from(period).ok());
        let requested = number(SHARES)?.unwrap_or(0).max(0) / SHARES_PER_CPU;
        Ok(Self {
            share: Share::of(number(QUOTA)?, period, number(MEMORY)?),
            requested_vcpus: u32::try_from(requested).unwrap_or(u32::MAX),
        })
    }
}

/// The sizes of a VM.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) vcpus: u32,
    pub(crate) max_vcpus: u32,
    pub(crate) memory_mib: u32,
    pub(crate) max_memory_mib: u32,
}

/// The size of a VM whose first container has `share`, in a pod of `pod`.
pub(crate) fn size(vm: &Hypervisor, host: &HostFacts, share: Share, pod: PodSize) -> Size {
    let most_cpus = match vm.default_max_vcpus {
        0 => host.cpus.min(VMM_MAX_VCPUS),
        max => max,
    }
    .max(vm.default_vcpus);
    let vcpus = vm
        .default_vcpus
        .saturating_add(share.vcpus.max(pod.share.vcpus))
        .max(pod.requested_vcpus)
        .min(most_cpus);
    let most_memory = match vm.default_maxmemory {
        0 => host.memory_mib,
        max => max,
    }
    .max(vm.default_memory);
    let memory = vm
        .default_memory
        .saturating_add(share.memory_mib().max(pod.share.memory_mib()))
        .min(most_memory);
    Size {
        vcpus,
        max_vcpus: most_cpus,
        memory_mib: memory,
        max_memory_mib: most_memory.saturating_add(vm.memory_offset),
    }
}
