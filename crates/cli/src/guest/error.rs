//! Why a guest verb failed.

use super::kernel::KernelError;
use super::manifest::ManifestError;
use super::module::ModuleError;
use super::package::PackageError;
use std::path::{Path, PathBuf};

/// Failure of `guest build` or `guest show`.
#[derive(Debug, thiserror::Error)]
pub(crate) enum GuestError {
    /// A file.
    #[error("{path}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// The kernel file is not usable.
    #[error("kernel {path}")]
    Kernel {
        /// Which.
        path: PathBuf,
        /// What is wrong with it.
        #[source]
        source: KernelError,
    },
    /// The modules.
    #[error(transparent)]
    Module(#[from] ModuleError),
    /// Fetching the kernel package.
    #[error(transparent)]
    Package(#[from] PackageError),
    /// The installed guest.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// Modules were named but no tree to find them in.
    #[error("--module {0}: expected --modules DIR beside --kernel FILE")]
    ModulesWithoutTree(String),
    /// No agent was named and none lies where it is expected.
    #[error("no agent found in {}: give one with --agent FILE", list(tried))]
    NoAgent {
        /// Paths tried.
        tried: Vec<PathBuf>,
    },
    /// Another build is under way.
    #[error("another build is writing to {0}")]
    Busy(PathBuf),
    /// The manifest cannot be encoded.
    #[error("encoding the manifest")]
    Encode(#[source] serde_json::Error),
    /// The output cannot be written.
    #[error("writing the output")]
    Output(#[source] std::io::Error),
}

impl GuestError {
    pub(super) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}

fn list(paths: &[PathBuf]) -> String {
    let names: Vec<String> = paths.iter().map(|p| p.display().to_string()).collect();
    names.join(" or ")
}
