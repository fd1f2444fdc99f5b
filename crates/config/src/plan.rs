//! config.json + annotations + configuration + host → plans.
//!
//! ```text
//!  read the spec ─► place in the pod ─┬─ makes a sandbox: settings + annotations ─► SandboxPlan ┐
//!                                     └─ joins one: its id ──────────────────────────────────────┴► ContainerPlan
//! ```
//!
//! Owns the translation (O-01 to O-06, O-14, O-15, O-21 to O-23). Never: acquires anything; the host is
//! seen through [`HostFacts`] and [`HostFiles`] only. Called by the CLI's `create` and the shim.

use crate::env;
use crate::facts::HostFacts;
use crate::files::{Disk, HostFiles};
use crate::load::{Config, ConfigError};
use crate::mounts;
use crate::options::Settings;
use crate::overrides::{self, AnnotationError, Annotations};
use crate::pod::{self, PodError};
use crate::sizing::{PodSize, size};
use crate::source::Source;
use crate::spec::{self, At, Read, SpecError};
use crate::validate::{Invalid, validate, validate_on};
use bulkhead_model::plan::{
    AgentPlan, BUNDLE_PATH_ANNOTATION, CONTAINER_TYPE_ANNOTATION, CommandPlan, ContainerKind, FactoryPlan,
    NetworkMonitor, RootfsPlan, Share,
};
use bulkhead_model::vm::{AssetHash, BlockCache, BlockPlan, SharedFs};
use bulkhead_model::{
    ContainerId, ContainerPlan, FailureKind, NetworkPlan, SandboxId, SandboxPlan, VmPlan, oci,
};
use std::path::{Path, PathBuf};

/// Root ports every sandbox has: shared files, network cards and a few disks.
pub const BASE_ROOT_PORTS: u32 = 6;

/// Annotation that names another configuration file (O-20).
pub const CONFIG_PATH_ANNOTATION: &str = "io.katacontainers.config_path";

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// config.json.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An annotation.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The annotations that place a container in a pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Options that do not go together, or not with this host.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The configuration that an annotation names.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl PlanError {
    /// Its class: everything is the caller's input, but some of it is refused on principle.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Spec(SpecError::Unsupported { .. }) | Self::Invalid(Invalid::NotHonoured { .. }) => {
                FailureKind::Unsupported
            }
            Self::Spec(_) | Self::Annotation(_) | Self::Pod(_) | Self::Invalid(_) | Self::Config(_) => {
                FailureKind::InvalidArgument
            }
        }
    }
}

/// What a container is to be, and its sandbox if it makes one.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanKind {
    /// It makes a sandbox.
    Sandbox {
        /// The sandbox.
        sandbox: Box<SandboxPlan>,
        /// Its first container.
        container: Box<ContainerPlan>,
    },
    /// It joins a sandbox.
    Container {
        /// Which.
        sandbox: SandboxId,
        /// The container.
        container: Box<ContainerPlan>,
    },
}

/// The result of planning.
#[derive(Debug, Clone, PartialEq)]
pub struct Plans {
    /// The plans.
    pub kind: PlanKind,
    /// What was tolerated in the spec, one line each, for the log.
    pub warnings: Vec<String>,
}

/// Makes the plans for the container `container` whose config.json is `spec_json`. `bundle` is absolute
/// with symlinks resolved; its `rootfs` must be there already.
///
/// # Errors
/// The first [`PlanError`]: one line that names key, value and what was expected.
pub fn plan(
    bundle: &Path,
    spec_json: &[u8],
    container: &ContainerId,
    config: &Config,
    host: &HostFacts,
) -> Result<Plans, PlanError> {
    plan_with(&Disk, bundle, spec_json, container, config, host)
}

/// [`plan`] with the host's files given.
///
/// # Errors
/// As [`plan`].
pub fn plan_with(
    files: &dyn HostFiles,
    bundle: &Path,
    spec_json: &[u8],
    container: &ContainerId,
    config: &Config,
    host: &HostFacts,
) -> Result<Plans, PlanError> {
    let file = bundle.join("config.json");
    let Read { spec, mut warnings } = spec::read(&file, spec_json)?;
    let annotations: Annotations = spec
        .annotations()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let kind = pod::kind(&annotations)?;
    let at = At(&file);
    let planned = container_plan(
        at,
        files,
        bundle,
        container,
        kind,
        spec,
        &annotations,
        &mut warnings,
    )?;
    let kind = match kind {
        ContainerKind::PodContainer => PlanKind::Container {
            sandbox: pod::sandbox(&annotations)?,
            container: Box::new(planned),
        },
        ContainerKind::PodSandbox => {
            let other;
            let config = match chosen(config, &annotations, files)? {
                Some(loaded) => {
                    other = loaded;
                    &other
                }
                None => config,
            };
            let settings = overrides::apply(config.settings(), &annotations, files)?;
            validate(&settings)?;
            validate_on(&settings, host)?;
            let sandbox = sandbox_plan(at, files, &planned, annotations, &settings, host)?;
            PlanKind::Sandbox {
                sandbox: Box::new(sandbox),
                container: Box::new(planned),
            }
        }
    };
    Ok(Plans { kind, warnings })
}

/// The configuration a sandbox's annotation chose (O-20); allowed by the configuration in force.
fn chosen(
    config: &Config,
    annotations: &Annotations,
    files: &dyn HostFiles,
) -> Result<Option<Config>, PlanError> {
    let Some(path) = annotations.get(CONFIG_PATH_ANNOTATION) else {
        return Ok(None);
    };
    if !config.settings().runtime.valid_config_paths.name(path) || !files.exists(path.as_ref()) {
        return Err(AnnotationError::Path {
            annotation: CONFIG_PATH_ANNOTATION.to_owned(),
            value: path.clone(),
            globs: "runtime.valid_config_paths".to_owned(),
        }
        .into());
    }
    Ok(Some(Config::load(&Source::File(path.into()))?))
}

#[allow(
    clippy::too_many_arguments,
    reason = "each is used once; a struct would only rename them"
)]
fn container_plan(
    at: At<'_>,
    files: &dyn HostFiles,
    bundle: &Path,
    id: &ContainerId,
    kind: ContainerKind,
    spec: oci::Spec,
    annotations: &Annotations,
    warnings: &mut Vec<String>,
) -> Result<ContainerPlan, PlanError> {
    let rootfs = rootfs(at, files, bundle, &spec)?;
    let mounts = mounts::mounts(at, &spec)?;
    let devices = mounts::devices(at, &spec)?;
    let command = command(&spec, warnings);
    let resources = resources(&spec, annotations, files)?;
    let cpu = resources.cpu().as_ref();
    let share = Share::of(
        cpu.and_then(oci::LinuxCpu::quota),
        cpu.and_then(oci::LinuxCpu::period),
        resources.memory().as_ref().and_then(oci::LinuxMemory::limit),
    );
    let recorded = Annotations::from([
        (CONTAINER_TYPE_ANNOTATION.to_owned(), kind.as_str().to_owned()),
        (
            BUNDLE_PATH_ANNOTATION.to_owned(),
            bundle.to_string_lossy().into_owned(),
        ),
    ]);
    Ok(ContainerPlan {
        id: id.clone(),
        bundle: bundle.to_owned(),
        rootfs,
        spec,
        creates_sandbox: kind == ContainerKind::PodSandbox,
        no_pivot: false,
        no_new_keyring: false,
        kind,
        command,
        mounts,
        devices,
        share,
        resources,
        recorded,
    })
}

fn rootfs(
    at: At<'_>,
    files: &dyn HostFiles,
    bundle: &Path,
    spec: &oci::Spec,
) -> Result<RootfsPlan, SpecError> {
    let Some(root) = spec.root() else {
        return Err(at.missing("root", "the section that names the root file system"));
    };
    let value = format!("{:?}", root.path());
    if root.path().as_os_str().is_empty() {
        return Err(at.value("root.path", value, "the directory of the root file system"));
    }
    // An absolute path replaces the bundle's.
    let path = bundle.join(root.path());
    if !files.exists(&path) {
        return Err(at.value(
            "root.path",
            value,
            format!("an existing directory, {path:?} does not exist"),
        ));
    }
    if !files.is_directory(&path) {
        return Err(at.value("root.path", value, format!("a directory, {path:?} is none")));
    }
    Ok(RootfsPlan {
        path,
        readonly: root.readonly().unwrap_or(false),
    })
}

/// O-02, O-03.
fn command(spec: &oci::Spec, warnings: &mut Vec<String>) -> CommandPlan {
    // spec::read refuses a spec without a process.
    let Some(process) = spec.process() else {
        return CommandPlan::default();
    };
    let entries = process.env().as_deref().unwrap_or_default();
    for (index, entry) in entries.iter().enumerate() {
        if !entry.contains('=') {
            let entry = spec::shortened(entry);
            warnings.push(format!(
                "process.env[{index}]: {entry:?} dropped: expected NAME=value"
            ));
        }
    }
    let user = process.user();
    CommandPlan {
        args: process.args().clone().unwrap_or_default(),
        env: env::lenient(entries),
        cwd: process.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        terminal: process.terminal().unwrap_or(false),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        capabilities: process.capabilities().clone(),
    }
}

/// The spec's resources with what container-resource annotations add (C-08).
fn resources(
    spec: &oci::Spec,
    annotations: &Annotations,
    files: &dyn HostFiles,
) -> Result<oci::LinuxResources, AnnotationError> {
    let wanted = overrides::apply_resource(annotations, files)?.resource;
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let mut resources = given.unwrap_or_default();
    if wanted.swappiness.0.is_some() || wanted.swap_in_bytes.0.is_some() {
        let mut memory = resources.memory().unwrap_or_default();
        if let Some(swappiness) = wanted.swappiness.0 {
            memory.set_swappiness(Some(swappiness));
        }
        // The option's rule keeps it within i64.
        if let Some(swap) = wanted.swap_in_bytes.0.and_then(|bytes| i64::try_from(bytes).ok()) {
            memory.set_swap(Some(swap));
        }
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}

fn sandbox_plan(
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
        factory: FactoryPlan {
            template: settings.factory.template == "on",
            template_path: settings.factory.template_path.clone(),
            vm_cache_number: settings.factory.vm_cache_number,
            vm_cache_endpoint: settings.factory.vm_cache_endpoint.clone(),
        },
        debug: runtime.enable_debug,
        trace: runtime.enable_tracing,
    })
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
        .filter(|path| !path.as_os_str().is_empty())
        .next_back();
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
    }
}
