//! Values that do not go together, and values that cannot have their effect.
//!
//! Owns the rules between options; called after files were read and again after annotations were applied,
//! so an option is either honoured or refused, never ignored. Never: what one value looks like (see `value`).

use crate::facts::HostFacts;
use crate::opt::Honour;
use crate::options::{OPTIONS, Settings, VMM_MAX_VCPUS};

/// Options whose values contradict each other, the host or the VMM.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Invalid {
    /// The VMM cannot do it.
    #[error("{option} is {value}: expected {expected}: {reason}")]
    NotHonoured {
        /// The option.
        option: String,
        /// Its value.
        value: String,
        /// The only value that works.
        expected: String,
        /// Why.
        reason: &'static str,
    },
    /// More vCPUs at boot than at most.
    #[error(
        "hypervisor.default_vcpus is {vcpus}: expected at most hypervisor.default_max_vcpus, which is {max}"
    )]
    VcpusAboveMaximum {
        /// At boot.
        vcpus: u32,
        /// At most.
        max: u32,
    },
    /// More vCPUs than the host has CPUs (O-09).
    #[error("hypervisor.{option} is {value}: expected at most {cpus}, the number of the host's CPUs")]
    AboveHostCpus {
        /// Which of the two.
        option: &'static str,
        /// Its value.
        value: u32,
        /// CPUs of the host.
        cpus: u32,
    },
    /// More memory at boot than at most.
    #[error(
        "hypervisor.default_memory is {memory}: expected at most hypervisor.default_maxmemory, which is {max}"
    )]
    MemoryAboveMaximum {
        /// At boot, MiB.
        memory: u32,
        /// At most, MiB.
        max: u32,
    },
    /// Huge pages are wanted and not there.
    #[error(
        "hypervisor.enable_hugepages is true: expected {needed} MiB of free huge pages, the host has {free}"
    )]
    NoHugepages {
        /// Needed, MiB.
        needed: u32,
        /// Free, MiB.
        free: u32,
    },
    /// Two places for guest memory.
    #[error(
        "hypervisor.file_mem_backend is {path:?} and hypervisor.enable_hugepages is true: expected one of them"
    )]
    TwoMemoryBackends {
        /// The directory.
        path: String,
    },
    /// virtio-fs without a daemon (O-12).
    #[error(
        "hypervisor.shared_fs is \"virtio-fs\" without a daemon: expected hypervisor.virtio_fs_daemon, as none is built in"
    )]
    NoFsDaemon,
    /// 9p messages below what a Linux guest takes.
    #[error("hypervisor.msize_9p is {msize}: expected at least 4096, the least a Linux guest mounts with")]
    SmallMsize {
        /// Bytes.
        msize: u32,
    },
    /// No namespace but a model that needs one.
    #[error(
        "runtime.disable_new_netns is true and runtime.internetworking_model is {model:?}: expected \"none\" with it"
    )]
    NetworkWithoutNamespace {
        /// The model.
        model: String,
    },
    /// The device half of the IOMMU without the IOMMU.
    #[error("hypervisor.enable_iommu_platform is true: expected hypervisor.enable_iommu to be true too")]
    IommuPlatformAlone,
    /// A digest without a file.
    #[error("hypervisor.{option} is set: expected hypervisor.{asset} to be set too")]
    HashWithoutAsset {
        /// The digest.
        option: &'static str,
        /// The file.
        asset: &'static str,
    },
}

/// What can be said without knowing the host.
pub(crate) fn validate(settings: &Settings) -> Result<(), Invalid> {
    honoured(settings)?;
    let vm = &settings.hypervisor;
    if vm.default_max_vcpus != 0 && vm.default_vcpus > vm.default_max_vcpus {
        return Err(Invalid::VcpusAboveMaximum {
            vcpus: vm.default_vcpus,
            max: vm.default_max_vcpus,
        });
    }
    if vm.default_maxmemory != 0 && vm.default_memory > vm.default_maxmemory {
        return Err(Invalid::MemoryAboveMaximum {
            memory: vm.default_memory,
            max: vm.default_maxmemory,
        });
    }
    if let Some(path) = &vm.file_mem_backend
        && vm.enable_hugepages
    {
        return Err(Invalid::TwoMemoryBackends {
            path: path.to_string_lossy().into_owned(),
        });
    }
    if vm.shared_fs == "virtio-9p" && vm.msize_9p < 4096 {
        return Err(Invalid::SmallMsize { msize: vm.msize_9p });
    }
    if vm.enable_iommu_platform && !vm.enable_iommu {
        return Err(Invalid::IommuPlatformAlone);
    }
    if vm.firmware_hash.0.is_some() && vm.firmware.is_none() {
        return Err(Invalid::HashWithoutAsset {
            option: "firmware_hash",
            asset: "firmware",
        });
    }
    let runtime = &settings.runtime;
    if runtime.disable_new_netns && runtime.internetworking_model != "none" {
        return Err(Invalid::NetworkWithoutNamespace {
            model: runtime.internetworking_model.clone(),
        });
    }
    Ok(())
}

fn honoured(settings: &Settings) -> Result<(), Invalid> {
    for opt in OPTIONS {
        if let Honour::DefaultOnly(reason) = opt.columns.honour {
            let (value, default) = ((opt.show)(settings), opt.default());
            if value != default {
                let expected = if default.is_empty() {
                    "it unset".to_owned()
                } else {
                    default
                };
                return Err(Invalid::NotHonoured {
                    option: opt.name(),
                    value,
                    expected,
                    reason,
                });
            }
        }
    }
    Ok(())
}

/// What can be said once the host is known (O-09, O-12).
pub(crate) fn validate_on(settings: &Settings, host: &HostFacts) -> Result<(), Invalid> {
    let vm = &settings.hypervisor;
    for (option, value) in [
        ("default_vcpus", vm.default_vcpus),
        ("default_max_vcpus", vm.default_max_vcpus),
    ] {
        if value > host.cpus.min(VMM_MAX_VCPUS) {
            return Err(Invalid::AboveHostCpus {
                option,
                value,
                cpus: host.cpus.min(VMM_MAX_VCPUS),
            });
        }
    }
    if vm.shared_fs == "virtio-fs" && vm.virtio_fs_daemon.is_none() && !host.builtin_fs_daemon {
        return Err(Invalid::NoFsDaemon);
    }
    if vm.enable_hugepages && host.free_hugepages_mib < vm.default_memory {
        return Err(Invalid::NoHugepages {
            needed: vm.default_memory,
            free: host.free_hugepages_mib,
        });
    }
    Ok(())
}
