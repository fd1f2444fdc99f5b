//! A plan for unit tests.

use bulkhead_model::VmPlan;
use bulkhead_model::vm::{BlockPlan, SharedFs};

/// A small plan; tests change what they are about.
pub(crate) fn plan() -> VmPlan {
    VmPlan {
        hypervisor: "/usr/bin/qemu-system-x86_64".into(),
        kernel: "/k/vmlinux".into(),
        initrd: "/k/initrd".into(),
        kernel_params: Vec::new(),
        machine_type: "q35".into(),
        machine_options: Vec::new(),
        cpu_features: Vec::new(),
        vcpus: 1,
        max_vcpus: 1,
        memory_mib: 256,
        max_memory_mib: 1024,
        memory_slots: 4,
        memory_prealloc: false,
        hugepages: false,
        memory_backend: None,
        mlock: false,
        virtio_mem: false,
        root_ports: 3,
        entropy_source: "/dev/urandom".into(),
        shared_fs: SharedFs::None,
        boot_timeout_s: 60,
        debug: false,
        base_vcpus: 1,
        base_memory_mib: 256,
        asset_hashes: Vec::new(),
        firmware: None,
        block: BlockPlan::default(),
        iommu: false,
        iommu_platform: false,
        disable_vhost_net: false,
        vfio_on_root_bus: false,
    }
}
