//! What whoever makes a template is told.
//!
//! Owns: the form of an order and the size a template has. Never: carries it out (see `make`).

use bulkhead_model::VmPlan;
use bulkhead_model::plan::FactoryPlan;
use bulkhead_model::vm::Accelerator;
use serde::{Deserialize, Serialize};

/// An order for a template.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Order {
    /// The machine, [`shape`]d.
    pub plan: VmPlan,
    /// How its guest code runs.
    pub accelerator: Accelerator,
    /// Where templates lie.
    pub factory: FactoryPlan,
}

/// The machine that is saved for a plan: of the size every sandbox has without its containers, so that one template
/// serves many; what is missing is added after the restore. A machine that cannot grow is saved as large as it is.
#[must_use]
pub fn shape(plan: &VmPlan) -> VmPlan {
    let mut shaped = plan.clone();
    if plan.base_vcpus > 0 {
        shaped.vcpus = plan.vcpus.min(plan.base_vcpus);
    }
    if plan.base_memory_mib > 0 && plan.memory_slots > 0 {
        shaped.memory_mib = plan.memory_mib.min(plan.base_memory_mib);
    }
    shaped
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plan(memory_slots: u32) -> VmPlan {
        serde_json::from_value(serde_json::json!({
            "hypervisor": "/q", "kernel": "/k", "initrd": "/i", "kernel_params": [],
            "machine_type": "q35", "machine_options": [], "cpu_features": [],
            "vcpus": 3, "max_vcpus": 8, "memory_mib": 640, "max_memory_mib": 4096,
            "memory_slots": memory_slots, "memory_prealloc": false, "hugepages": false,
            "memory_backend": null, "mlock": false, "virtio_mem": false, "root_ports": 4,
            "entropy_source": "/dev/urandom", "shared_fs": {"kind": "none"}, "boot_timeout_s": 5,
            "debug": false, "base_vcpus": 1, "base_memory_mib": 256
        }))
        .unwrap()
    }

    #[test]
    fn one_template_serves_every_size_that_can_be_reached_from_it() {
        let shaped = shape(&plan(10));
        assert_eq!((shaped.vcpus, shaped.memory_mib), (1, 256));
        assert_eq!(shape(&shaped), shaped);
        let fixed = shape(&plan(0));
        assert_eq!((fixed.vcpus, fixed.memory_mib), (1, 640), "it cannot grow");
        let mut old = plan(10);
        (old.base_vcpus, old.base_memory_mib) = (0, 0);
        assert_eq!(shape(&old), old);
    }
}
