//! The one table of options: names, types, defaults, annotations, limits, effect, advice.
//!
//! Owns every option there is. The TOML parser, the annotation reader, `bulkhead config`, the reference
//! page (docs/options.md) and the tests are made from it; nothing else lists options.
//! Sources: contract rows O-07 to O-23 and C-08.

use crate::opt::{Columns, Honour, Keeps, Opt, Section, options};
use crate::value::{
    Based, CpuFeatures, Digest, Globs, KernelParams, MachineOptions, MachineType, Modules, OptionValue,
    Patterns, Rule, Words,
};
use std::path::PathBuf;

/// vCPUs the VMM can give a q35 machine without interrupt remapping: APIC ids are 8 bits.
pub const VMM_MAX_VCPUS: u32 = 255;

/// Least memory in MiB a guest kernel with its initrd starts in.
pub const MIN_MEMORY_MIB: u64 = 128;

/// Experimental features of this version (O-14).
pub const EXPERIMENTAL: &[&str] = &[];

const GUEST: &str = "the guest kernel";
const QEMU: &str = "the VMM's command line";
const DISKS: &str = "every disk of the VM";
const NO_IMAGE: &str = "the guest is a kernel and an initrd: there is no disk image";
const NO_JAILER: &str = "QEMU has no jailer: it is confined by its own sandbox option and namespaces";
const NO_CTL: &str = "QEMU has no control program: it is driven over its machine protocol";

options! {
    /// The VM.
    hypervisor = Hypervisor {
        /// The VMM binary; unset means qemu-system-x86_64 from PATH.
        path: Option<PathBuf> = None, {
            annotation: true, applies: QEMU,
            globs: Some(("valid_hypervisor_paths", |s| &s.hypervisor.valid_hypervisor_paths)),
            when: "to use a QEMU that is not in PATH",
        }
        /// Paths that the annotation `path` may name.
        valid_hypervisor_paths: Globs = Globs::default(), {
            applies: "annotations", when: "to let pods choose between several QEMUs",
        }
        /// SHA-512 of the VMM binary, verified before use.
        hypervisor_hash: Digest = Digest::default(), {
            annotation: true, applies: "the VMM binary", when: "to pin the VMM",
        }
        /// Jailer binary.
        jailer_path: Option<PathBuf> = None, {
            annotation: true, applies: "nothing with QEMU", honour: Honour::DefaultOnly(NO_JAILER),
            globs: Some(("valid_jailer_paths", |s| &s.hypervisor.valid_jailer_paths)),
            when: "never with QEMU",
        }
        /// Paths that the annotation `jailer_path` may name.
        valid_jailer_paths: Globs = Globs::default(), { applies: "annotations", when: "never with QEMU" }
        /// SHA-512 of the jailer binary.
        jailer_hash: Digest = Digest::default(), {
            annotation: true, applies: "nothing with QEMU", honour: Honour::DefaultOnly(NO_JAILER),
            when: "never with QEMU",
        }
        /// Control program of the VMM.
        ctlpath: Option<PathBuf> = None, {
            annotation: true, applies: "nothing with QEMU", honour: Honour::DefaultOnly(NO_CTL),
            globs: Some(("valid_ctlpaths", |s| &s.hypervisor.valid_ctlpaths)),
            when: "never with QEMU",
        }
        /// Paths that the annotation `ctlpath` may name.
        valid_ctlpaths: Globs = Globs::default(), { applies: "annotations", when: "never with QEMU" }
        /// SHA-512 of the control program.
        hypervisorctl_hash: Digest = Digest::default(), {
            annotation: true, applies: "nothing with QEMU", honour: Honour::DefaultOnly(NO_CTL),
            when: "never with QEMU",
        }
        /// Uncompressed guest kernel, booted by PVH.
        kernel: PathBuf = PathBuf::from("/var/lib/bulkhead/guest/vmlinux"), {
            annotation: true, applies: QEMU, when: "to boot a kernel of your own",
        }
        /// SHA-512 of the kernel, verified before use.
        kernel_hash: Digest = Digest::default(), {
            annotation: true, applies: "the kernel file", when: "to pin the kernel",
        }
        /// Initial RAM disk with the agent as its /init.
        initrd: PathBuf = PathBuf::from("/var/lib/bulkhead/guest/initrd"), {
            annotation: true, applies: QEMU, when: "to use an initrd of your own",
        }
        /// SHA-512 of the initrd, verified before use.
        initrd_hash: Digest = Digest::default(), {
            annotation: true, applies: "the initrd file", when: "to pin the initrd",
        }
        /// Guest disk image.
        image: Option<PathBuf> = None, {
            annotation: true, applies: "nothing", honour: Honour::DefaultOnly(NO_IMAGE), when: "never",
        }
        /// SHA-512 of the guest disk image.
        image_hash: Digest = Digest::default(), {
            annotation: true, applies: "nothing", honour: Honour::DefaultOnly(NO_IMAGE), when: "never",
        }
        /// Firmware in place of the VMM's own.
        firmware: Option<PathBuf> = None, {
            annotation: true, applies: QEMU, when: "to boot with another SeaBIOS",
        }
        /// SHA-512 of the firmware, verified before use.
        firmware_hash: Digest = Digest::default(), {
            annotation: true, applies: "the firmware file", when: "to pin the firmware",
        }
        /// Kind of the digests of assets.
        asset_hash_type: String = "sha512".to_owned(), {
            annotation: true, alias: Some("io.katacontainers.asset_hash_type"), rule: Rule::OneOf(&["sha512"]),
            applies: "all digests", when: "never: there is one kind",
        }
        /// Which hypervisor annotations pods may set: regular expressions that match all of the part after the prefix.
        enable_annotations: Patterns = Patterns::default(), {
            applies: "annotations", when: "to let pods size or tune their own VM",
        }
        /// Machine type of the VM.
        machine_type: MachineType = MachineType("q35".to_owned()), {
            annotation: true, keeps: Keeps::Empty, applies: QEMU,
            when: "to keep a machine's version over QEMU upgrades",
        }
        /// Options added to the machine, as key=value separated by commas.
        machine_accelerators: MachineOptions = MachineOptions::default(), {
            annotation: true, keeps: Keeps::Empty, applies: QEMU, when: "to switch a machine feature on or off",
        }
        /// Features added to the CPU model, separated by commas.
        cpu_features: CpuFeatures = CpuFeatures::default(), {
            annotation: true, keeps: Keeps::Empty, applies: QEMU,
            when: "to hide a CPU feature from guests, for example \"pmu=off\"",
        }
        /// Parameters added to the guest's kernel command line, in order; an annotation adds to what is configured.
        kernel_params: KernelParams = KernelParams::default(), {
            annotation: true, keeps: Keeps::Empty, applies: GUEST, when: "to tune or debug the guest kernel",
        }
        /// vCPUs of a sandbox before its containers' CPU limits are added; not above the host's.
        default_vcpus: u32 = 1, {
            annotation: true, rule: Rule::Range(1, VMM_MAX_VCPUS as u64), applies: "the VM's size",
            when: "when containers without a CPU limit need more than one CPU",
        }
        /// Most vCPUs a sandbox can grow to; 0 means as many as the host has.
        default_max_vcpus: u32 = 0, {
            annotation: true, rule: Rule::Range(0, VMM_MAX_VCPUS as u64), applies: "the VM's size",
            when: "to bound what limits can ask for",
        }
        /// Memory in MiB of a sandbox before its containers' memory limits are added; only touched memory costs.
        default_memory: u32 = 2048, {
            annotation: true, rule: Rule::Range(MIN_MEMORY_MIB, u32::MAX as u64), applies: "the VM's size",
            when: "when containers without a memory limit need more, or to save the kernel's page tables",
        }
        /// Most memory in MiB a sandbox can grow to; 0 means as much as the host has.
        default_maxmemory: u32 = 0, {
            applies: "the VM's size", when: "to bound what limits can ask for",
        }
        /// Slots for memory modules: how often memory can be added; 0 in an annotation changes nothing.
        memory_slots: u32 = 10, {
            annotation: true, keeps: Keeps::Zero, rule: Rule::Range(0, 256), applies: "memory hot-plug",
            when: "when many containers with limits join one pod",
        }
        /// Address space in MiB kept free above the largest memory; 0 in an annotation changes nothing.
        memory_offset: u32 = 0, {
            annotation: true, keeps: Keeps::Zero, applies: "memory hot-plug", when: "for persistent-memory devices",
        }
        /// Grow and shrink memory by virtio-mem in place of modules.
        enable_virtio_mem: bool = false, {
            annotation: true, applies: "memory hot-plug", when: "when memory must shrink again",
        }
        /// Touch all memory at start.
        enable_mem_prealloc: bool = false, {
            annotation: true, applies: "guest memory", when: "when latency matters more than memory",
        }
        /// Let the host swap guest memory; false locks it in RAM.
        enable_swap: bool = true, {
            annotation: true, applies: "guest memory", when: "set to false when guest memory must never reach a swap device",
        }
        /// Back guest memory by huge pages.
        enable_hugepages: bool = false, {
            annotation: true, applies: "guest memory", when: "for large, busy sandboxes on hosts with reserved huge pages",
        }
        /// Give memory back to the host that the guest has freed, seconds later.
        reclaim_guest_freed_memory: bool = true, {
            applies: "guest memory, unless it is locked, preallocated, of huge pages, or mapped copy-on-write",
            when: "set to false when the processor time of touching memory anew matters more than memory",
        }
        /// Directory of the file that backs guest memory; unset means anonymous memory.
        file_mem_backend: Option<PathBuf> = None, {
            annotation: true, applies: "guest memory",
            globs: Some(("valid_file_mem_backends", |s| &s.hypervisor.valid_file_mem_backends)),
            when: "to keep guest memory on a file system of your choice, for example /dev/shm",
        }
        /// Paths that the annotation `file_mem_backend` may name.
        valid_file_mem_backends: Globs = Globs::default(), {
            applies: "annotations", when: "together with that annotation",
        }
        /// Give the guest an IOMMU.
        enable_iommu: bool = false, {
            annotation: true, applies: QEMU, when: "for device assignment inside the guest",
        }
        /// Devices use the guest's IOMMU.
        enable_iommu_platform: bool = false, {
            annotation: true, applies: "every virtio device", when: "together with enable_iommu",
        }
        /// How disks are attached.
        block_device_driver: String = "virtio-blk".to_owned(), {
            annotation: true, applies: DISKS,
            rule: Rule::OneOf(&["virtio-scsi", "virtio-blk", "virtio-mmio", "nvdimm", "virtio-blk-ccw"]),
            honour: Honour::DefaultOnly("disks are hot-plugged as virtio-blk on PCIe root ports"),
            when: "never: the other kinds need another machine",
        }
        /// Never attach block devices: root file systems and volumes on them go through the shared file system.
        disable_block_device_use: bool = false, {
            annotation: true, applies: DISKS, when: "when block devices must stay with the host",
        }
        /// Serve disks in a thread of their own.
        enable_iothreads: bool = false, { annotation: true, applies: DISKS, when: "for busy disks" }
        /// Set the cache mode of disks by the two options below, in place of the VMM's default.
        block_device_cache_set: bool = false, { annotation: true, applies: DISKS, when: "to choose a cache mode" }
        /// Bypass the host's page cache.
        block_device_cache_direct: bool = false, {
            annotation: true, applies: DISKS, when: "together with block_device_cache_set",
        }
        /// Ignore flush requests of the guest: fast, and not safe over a host crash.
        block_device_cache_noflush: bool = false, {
            annotation: true, applies: DISKS, when: "for disks whose content can be lost",
        }
        /// How files are shared with the guest.
        shared_fs: String = "virtio-fs".to_owned(), {
            annotation: true, applies: "root file systems and volumes", rule: Rule::OneOf(&["virtio-fs", "virtio-9p"]),
            when: "virtio-9p where no daemon may run: slower, and the guest kernel must have 9p",
        }
        /// virtio-fs daemon; unset means the built-in one.
        virtio_fs_daemon: Option<PathBuf> = None, {
            annotation: true, applies: "shared files",
            globs: Some(("valid_virtio_fs_daemon_paths", |s| &s.hypervisor.valid_virtio_fs_daemon_paths)),
            when: "to use another virtiofsd",
        }
        /// Paths that the annotation `virtio_fs_daemon` may name.
        valid_virtio_fs_daemon_paths: Globs = Globs::default(), {
            applies: "annotations", when: "together with that annotation",
        }
        /// How much of shared files the guest caches.
        virtio_fs_cache: String = "auto".to_owned(), {
            annotation: true, applies: "shared files", rule: Rule::OneOf(&["auto", "always", "never", "metadata"]),
            when: "never when the host changes files under a running container; always when nobody does",
        }
        /// Size in MiB of the window through which the guest maps host pages.
        virtio_fs_cache_size: u32 = 0, {
            annotation: true, applies: "shared files",
            honour: Honour::DefaultOnly("QEMU has no such window for virtio-fs"), when: "never",
        }
        /// Largest virtio-9p message in bytes.
        msize_9p: u32 = 131_072, {
            annotation: true, applies: "shared files by virtio-9p", rule: Rule::Range(1, u32::MAX as u64),
            when: "to trade memory for throughput",
        }
        /// Never use the host kernel's vhost-net for network cards.
        disable_vhost_net: bool = false, {
            annotation: true, applies: "network cards", when: "to keep packets out of the host kernel's vhost code",
        }
        /// Directory of OCI hooks in the guest.
        guest_hook_path: Option<PathBuf> = None, {
            annotation: true, keeps: Keeps::Empty, applies: "nothing",
            honour: Honour::DefaultOnly("the guest has no programs but the agent: use the spec's hooks"), when: "never",
        }
        /// Talk to the guest over vsock.
        use_vsock: bool = false, {
            annotation: true, applies: "nothing",
            honour: Honour::DefaultOnly("the agent is reached over virtio-serial, which also works without vhost-vsock"),
            when: "never",
        }
        /// Do not present the guest image as persistent memory; without an image there is nothing to present.
        disable_image_nvdimm: bool = true, { annotation: true, applies: "nothing", when: "never" }
        /// Plug VFIO devices into the root bus.
        hotplug_vfio_on_root_bus: bool = false, {
            annotation: true, applies: "device assignment", when: "for devices that do not work behind a bridge",
        }
        /// PCIe root ports for hot-plug beside those that every sandbox has.
        pcie_root_port: u32 = 0, {
            annotation: true, rule: Rule::Range(0, 16), applies: "hot-plug",
            when: "when a pod has many disks or network cards",
        }
        /// Host source of randomness for the guest.
        entropy_source: PathBuf = PathBuf::from("/dev/urandom"), {
            annotation: true, keeps: Keeps::Empty, applies: "the guest's random device",
            when: "to use a hardware generator",
        }
        /// Directory of vhost-user device sockets.
        vhost_user_store_path: Option<PathBuf> = None, {
            annotation: true, applies: "nothing",
            globs: Some(("valid_vhost_user_store_paths", |s| &s.hypervisor.valid_vhost_user_store_paths)),
            honour: Honour::DefaultOnly("vhost-user disks are not supported: use block volumes"), when: "never",
        }
        /// Paths that the annotation `vhost_user_store_path` may name.
        valid_vhost_user_store_paths: Globs = Globs::default(), { applies: "annotations", when: "never" }
        /// Seconds until a guest that has not reported in is a failed boot.
        boot_timeout: u32 = 60, {
            rule: Rule::Range(1, 3600), applies: "starting a sandbox", when: "on very slow hosts",
        }
        /// More output of the guest kernel in the console log.
        enable_debug: bool = false, { applies: GUEST, when: "when a guest does not boot" }
    }

    /// The host side.
    runtime = Runtime {
        /// Do not apply the spec's seccomp filters in the guest.
        disable_guest_seccomp: bool = false, {
            annotation: true, applies: "containers", when: "for guest kernels without seccomp",
        }
        /// Keep VMM, daemon and stubs in the pod's cgroup, where they always are: read for existing configurations, without effect.
        sandbox_cgroup_only: bool = false, {
            annotation: true, applies: "nothing", when: "never",
        }
        /// Make no network namespace for the VMM; needs internetworking_model = "none".
        disable_new_netns: bool = false, {
            annotation: true, applies: "the network", when: "when nothing may be done to the host's network",
        }
        /// How the sandbox's network interfaces reach the guest.
        internetworking_model: String = "tcfilter".to_owned(), {
            annotation: true, applies: "the network", rule: Rule::OneOf(&["tcfilter", "macvtap", "none"]),
            when: "none for sandboxes without network; macvtap where tc filters are not available",
        }
        /// Experimental features that are on; an annotation replaces the list.
        experimental: Words = Words::default(), {
            annotation: true, applies: "the sandbox", rule: Rule::OneOf(EXPERIMENTAL), when: "to try what is new",
        }
        /// Kernel parameters added after the hypervisor's.
        kernel_params: KernelParams = KernelParams::default(), {
            applies: GUEST, when: "to keep a host's own parameters apart from the distribution's",
        }
        /// Files that the annotation io.katacontainers.config_path may name in place of this configuration.
        valid_config_paths: Globs = Globs::default(), {
            applies: "annotations", when: "to offer several classes of sandboxes under one runtime name",
        }
        /// Containers may share the agent's pid namespace: read for the sake of existing configurations, and without effect.
        enable_agent_pidns: bool = false, { applies: "nothing", when: "never" }
        /// Share Kubernetes empty-dir volumes with the host in place of directories in the guest.
        disable_guest_empty_dir: bool = false, {
            applies: "Kubernetes empty-dir volumes", when: "when the host must see or limit their content",
        }
        /// Watch the network namespace: read for the sake of existing configurations, and without effect, as it always is.
        enable_netmon: bool = false, { applies: "nothing", when: "never" }
        /// Program that watches the network namespace: read for the sake of existing configurations, and without effect.
        netmon_path: Option<PathBuf> = None, { applies: "nothing", when: "never" }
        /// More log output of the network watch: read for the sake of existing configurations, and without effect.
        enable_netmon_debug: bool = false, { applies: "nothing", when: "never" }
        /// More log output of the supervisor.
        enable_debug: bool = false, { applies: "logs", when: "when something is to be reported" }
        /// Record trace spans of the supervisor.
        enable_tracing: bool = false, { applies: "traces", when: "to see where time is spent" }
    }

    /// The guest agent.
    agent = Agent {
        /// Kernel modules to load in the guest, each with its parameters.
        kernel_modules: Modules = Modules::default(), {
            annotation: true, applies: GUEST, when: "when a workload needs a driver that is not built in",
        }
        /// Record trace spans in the guest.
        enable_tracing: bool = false, { annotation: true, applies: "traces", when: "to see where time is spent" }
        /// When guest spans are recorded: read and checked for the sake of existing configurations, and without effect.
        trace_mode: String = "static".to_owned(), {
            annotation: true, rule: Rule::OneOf(&["static", "dynamic"]), applies: "nothing", when: "never",
        }
        /// How guest spans belong together: read and checked for the sake of existing configurations, and without effect.
        trace_type: String = "isolated".to_owned(), {
            annotation: true, rule: Rule::OneOf(&["isolated", "collated"]), applies: "nothing", when: "never",
        }
        /// Bytes that pipes between containers and agent hold; 0: the kernel's default, 256 KiB for whoever fills that.
        container_pipe_size: u32 = 0, {
            annotation: true, rule: Rule::Range(0, 1 << 30), applies: "containers' output",
            when: "for workloads that write in large bursts",
        }
        /// More log output of the agent.
        enable_debug: bool = false, { applies: "logs", when: "when something is to be reported" }
    }

    /// VMs kept ready.
    factory = Factory {
        /// Start sandboxes from a saved, booted VM.
        template: String = "on".to_owned(), {
            rule: Rule::OneOf(&["on", "off"]), applies: "starting a sandbox",
            when: "off when VMs must not share a kernel layout or memory pages",
        }
        /// Directory of templates.
        template_path: PathBuf = PathBuf::from("/var/lib/bulkhead/templates"), {
            applies: "starting a sandbox", when: "to keep templates on another file system",
        }
        /// Directory of the memory of templates: on a tmpfs it stays in memory, elsewhere in files.
        template_memory: PathBuf = PathBuf::from("/dev/shm/bulkhead-templates"), {
            applies: "starting a sandbox",
            when: "to have templates survive a reboot, or to give their memory back under pressure",
        }
        /// VMs that went on from the template and wait, each for one sandbox; 0 for none.
        pool: u32 = 0, {
            rule: Rule::Range(0, 1024), applies: "starting a sandbox", when: "to trade memory for start time: each takes that of an idle sandbox",
        }
        /// The same as pool, for the sake of existing configurations; the larger one counts.
        vm_cache_number: u32 = 0, {
            rule: Rule::Range(0, 1024), applies: "starting a sandbox", when: "to trade memory for start time",
        }
        /// Socket of a server of waiting VMs: read for the sake of existing configurations, and without effect.
        vm_cache_endpoint: PathBuf = PathBuf::from("/run/bulkhead/cache.sock"), {
            applies: "nothing", when: "never",
        }
    }

    /// One container; set by its own annotations only.
    resource = Resource {
        /// How readily the guest swaps the container's memory.
        swappiness: Based = Based::default(), {
            annotation: true, rule: Rule::Below(200), applies: "one container", when: "with swap in the guest",
        }
        /// Memory and swap in bytes the container may use together.
        swap_in_bytes: Based = Based::default(), {
            annotation: true, rule: Rule::Below(i64::MAX as u64), applies: "one container", when: "with swap in the guest",
        }
    }
}
