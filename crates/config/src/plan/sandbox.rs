//! A spec and settings become a sandbox and its VM (O-05, O-06, O-14 to O-16, O-21 to O-23).
//!
//! Owns which option ends up where in a plan. Called by `plan` only.

use crate::facts::HostFacts;
use crate::files::HostFiles;
use crate::mounts;
use crate::options::Settings;
use crate::overrides::Annotations;
use crate::plan::{BASE_ROOT_PORTS, PlanError};
use crate::pod;
use crate::sizing::{PodSize, size};
use crate::spec::At;
use bulkhead_model::plan::{AgentPlan, BUNDLE_PATH_ANNOTATION, FactoryPlan, NetworkMonitor, Share};
use bulkhead_model::vm::{AssetHash, BlockCache, BlockPlan, SharedFs};
use bulkhead_model::{ContainerPlan, NetworkPlan, SandboxId, SandboxPlan, VmPlan, oci};
use std::path::PathBuf;

/// The plan of the sandbox that `first` makes.
pub(super) fn sandbox(
    at: At<'_>,
    files: &dyn HostFiles,
    first: &ContainerPlan,
    annotations: Annotations,
    settings: &Settings,
    host: &HostFacts,
) -> Result<SandboxPlan, PlanError> {
    let (runtime, agent) = (&settings.runtime, &settings.agent);
    let pod_size = PodSize::read(&annotations)?;
    let cgroups_path = first
        .spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.cgroups_path().as_ref())
        .map(|path| path.to_string_lossy().into_owned())
        .filter(|path| !path.is_empty());
    let some = |text: &Option<String>| text.clone().filter(|text| !text.is_empty());
    Ok(SandboxPlan {
        id: SandboxId::from(&first.id),
        hostname: some(first.spec.hostname()),
        domainname: some(first.spec.domainname()),
        vm: vm_plan(settings, host, first.share, pod_size),
        network: network(&first.spec, settings),
        network_model: runtime.internetworking_model.clone(),
        shm_bytes: mounts::shm_bytes(at, &first.mounts, files)?,
        cgroups_path,
        pod: pod::in_pod(&annotations),
        kernel_modules: agent.kernel_modules.0.clone(),
        guest_seccomp: !runtime.disable_guest_seccomp,
        annotations,
        recorded: Annotations::from([(
            BUNDLE_PATH_ANNOTATION.to_owned(),
            first.bundle.to_string_lossy().into_owned(),
        )]),
        network_monitor: NetworkMonitor {
            enable: runtime.enable_netmon,
            path: runtime.netmon_path.clone(),
            debug: runtime.enable_netmon_debug,
        },
        sandbox_cgroup_only: runtime.sandbox_cgroup_only,
        systemd_cgroup: false,
        share_empty_dirs: runtime.disable_guest_empty_dir,
        experimental: runtime.experimental.0.clone(),
        agent: AgentPlan {
            debug: agent.enable_debug,
            tracing: agent.enable_tracing,
            trace_mode: agent.trace_mode.clone(),
            trace_type: agent.trace_type.clone(),
            container_pipe_bytes: agent.container_pipe_size,
            share_pid_namespace: runtime.enable_agent_pidns,
        },
        kept: false,
        factory: factory(settings),
        debug: runtime.enable_debug,
        trace: runtime.enable_tracing,
    })
}

/// The machine without any container's share, and the settings of templates.
pub(super) fn machine(settings: &Settings, host: &HostFacts) -> (VmPlan, FactoryPlan) {
    let vm = vm_plan(settings, host, Share::default(), PodSize::default());
    (vm, factory(settings))
}

/// Where VMs wait: it is of this boot of the host only.
const POOLS: &str = "/run/bulkhead/pool";

fn factory(settings: &Settings) -> FactoryPlan {
    let factory = &settings.factory;
    FactoryPlan {
        template: factory.template == "on",
        template_path: factory.template_path.clone(),
        template_memory: factory.template_memory.clone(),
        pool: factory.pool.max(factory.vm_cache_number),
        pool_path: POOLS.into(),
        vm_cache_number: factory.vm_cache_number,
        vm_cache_endpoint: factory.vm_cache_endpoint.clone(),
    }
}

/// O-05: of several network namespaces the last with a path counts.
fn network(spec: &oci::Spec, settings: &Settings) -> NetworkPlan {
    let namespaces = spec
        .linux()
        .as_ref()
        .and_then(|linux| linux.namespaces().as_ref());
    let mut networks = namespaces
        .into_iter()
        .flatten()
        .filter(|ns| ns.typ() == oci::LinuxNamespaceType::Network)
        .peekable();
    let any = networks.peek().is_some();
    let path = networks
        .filter_map(|ns| ns.path().clone())
        .rfind(|path| !path.as_os_str().is_empty());
    match path {
        Some(path) => NetworkPlan::Existing { path },
        None if any && !settings.runtime.disable_new_netns => NetworkPlan::New,
        None => NetworkPlan::None,
    }
}

fn vm_plan(settings: &Settings, host: &HostFacts, share: Share, pod: PodSize) -> VmPlan {
    let vm = &settings.hypervisor;
    let size = size(vm, host, share, pod);
    let hypervisor = vm
        .path
        .clone()
        .or_else(|| host.hypervisor.clone())
        .unwrap_or_else(|| PathBuf::from("qemu-system-x86_64"));
    let mut kernel_params = vm.kernel_params.0.clone();
    kernel_params.extend(settings.runtime.kernel_params.0.iter().cloned());
    let assets = [
        ("hypervisor_hash", &vm.hypervisor_hash, Some(&hypervisor)),
        ("kernel_hash", &vm.kernel_hash, Some(&vm.kernel)),
        ("initrd_hash", &vm.initrd_hash, Some(&vm.initrd)),
        ("firmware_hash", &vm.firmware_hash, vm.firmware.as_ref()),
    ];
    let asset_hashes = assets
        .into_iter()
        .filter_map(|(option, hash, path)| {
            Some(AssetHash {
                option: option.to_owned(),
                path: path?.clone(),
                sha512: hash.0.clone()?,
            })
        })
        .collect();
    let shared_fs = if vm.shared_fs == "virtio-9p" {
        SharedFs::Virtio9p { msize: vm.msize_9p }
    } else {
        SharedFs::VirtioFs {
            daemon: vm.virtio_fs_daemon.clone(),
            cache: vm.virtio_fs_cache.clone(),
            cache_size_mib: vm.virtio_fs_cache_size,
        }
    };
    VmPlan {
        hypervisor,
        kernel: vm.kernel.clone(),
        initrd: vm.initrd.clone(),
        kernel_params,
        machine_type: vm.machine_type.0.clone(),
        machine_options: vm.machine_accelerators.0.clone(),
        cpu_features: vm.cpu_features.0.clone(),
        vcpus: size.vcpus,
        max_vcpus: size.max_vcpus,
        memory_mib: size.memory_mib,
        max_memory_mib: size.max_memory_mib,
        memory_slots: vm.memory_slots,
        memory_prealloc: vm.enable_mem_prealloc,
        hugepages: vm.enable_hugepages,
        memory_backend: vm.file_mem_backend.clone(),
        mlock: !vm.enable_swap,
        virtio_mem: vm.enable_virtio_mem,
        root_ports: BASE_ROOT_PORTS + vm.pcie_root_port,
        entropy_source: vm.entropy_source.clone(),
        shared_fs,
        boot_timeout_s: vm.boot_timeout,
        debug: vm.enable_debug,
        base_vcpus: vm.default_vcpus,
        base_memory_mib: vm.default_memory,
        asset_hashes,
        firmware: vm.firmware.clone(),
        block: BlockPlan {
            disabled: vm.disable_block_device_use,
            iothreads: vm.enable_iothreads,
            cache: vm.block_device_cache_set.then_some(BlockCache {
                direct: vm.block_device_cache_direct,
                no_flush: vm.block_device_cache_noflush,
            }),
        },
        iommu: vm.enable_iommu,
        iommu_platform: vm.enable_iommu_platform,
        disable_vhost_net: vm.disable_vhost_net,
        vfio_on_root_bus: vm.hotplug_vfio_on_root_bus,
        reclaim_freed_memory: vm.reclaim_guest_freed_memory,
    }
}
