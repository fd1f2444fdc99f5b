//! Mounts the host asks for before containers use them (agent.proto `Storage`; contract C-31, C-35, M-13).
//!
//! Owns: drivers, and who still uses a mount. Never: follows a path of the host through a link.
//! Called by configuration (for the whole sandbox) and by containers.

mod blocks;
mod kept;
mod mounted;
mod options;
mod registers;
mod watchable;

pub(crate) use kept::KeptError;
pub(crate) use mounted::Storages;

use crate::modules::ModuleError;
use crate::paths::PathError;

/// Why a storage could not be made available.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StorageError {
    /// No such driver.
    #[error(
        "storage driver {driver:?}: expected virtiofs, 9p, blk, ephemeral, local, bind, overlay or watchable-bind"
    )]
    Driver {
        /// The name given.
        driver: String,
    },
    /// A path that is not the host's to give.
    #[error(transparent)]
    Path(#[from] PathError),
    /// A module it needs.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// The device a saved machine kept.
    #[error(transparent)]
    Kept(#[from] KeptError),
    /// An option that cannot be used.
    #[error("storage option {option:?}: expected {expected}")]
    Option {
        /// The option given.
        option: String,
        /// What would do.
        expected: &'static str,
    },
    /// A source that is no PCI path.
    #[error("block device {source_path:?}: expected a PCI path such as 03/00")]
    PciPath {
        /// The text given.
        source_path: String,
    },
    /// The device did not turn up.
    #[error("block device {source_path:?} did not appear within {seconds} s")]
    NoDevice {
        /// Its PCI path.
        source_path: String,
        /// The deadline.
        seconds: u64,
    },
    /// The kernel does not have the file system.
    #[error("file system {fstype}: the guest's kernel has none: expected one that is built with it")]
    FileSystem {
        /// Which.
        fstype: String,
    },
    /// The kernel refused.
    #[error("{step} {path}")]
    Io {
        /// What was tried.
        step: &'static str,
        /// On which path.
        path: String,
        /// Why not.
        #[source]
        source: std::io::Error,
    },
}
