//! Why a task failed, in one line each.

use std::path::{Path, PathBuf};
use std::time::Duration;

/// Failure of a task.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TaskError {
    /// A file or directory.
    #[error("{path}: {source}")]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program that cannot be started.
    #[error("{program} cannot be started: {source}")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// A program that ended with an error.
    #[error("{line}: {status}")]
    Failed {
        /// Its command line.
        line: String,
        /// How it ended.
        status: String,
    },
    /// A program that took too long.
    #[error("{line}: took longer than {} s", deadline.as_secs())]
    Deadline {
        /// Its command line.
        line: String,
        /// Its limit.
        deadline: Duration,
    },
    /// Packages are missing and this user cannot install them.
    #[error("packages are missing and only root can install them: apt-get install {0}")]
    NeedsRootToInstall(String),
    /// Root is needed for VMs with network, mounts and cgroups.
    #[error("{0} needs root")]
    NeedsRoot(&'static str),
    /// The machine is not one this builds on.
    #[error("this machine is {found}: expected x86_64 Linux with apt")]
    Machine {
        /// What it is.
        found: String,
    },
    /// cargo metadata in an unknown form.
    #[error("cargo metadata: {0}")]
    Metadata(String),
    /// Rules of the house are broken.
    #[error("{0} rules are broken")]
    Rules(usize),
    /// Rows of the contract that no test holds.
    #[error("the contract: {0} things are wrong")]
    Contract(usize),
    /// The contract cannot be read.
    #[error("docs/contract.md, row {0}: expected once, as a line `| id | promise |`")]
    ContractRow(String),
    /// No such fuzz target.
    #[error("no fuzz target {name:?}: expected one of {known}")]
    FuzzTarget {
        /// Asked for.
        name: String,
        /// All there are.
        known: String,
    },
    /// apt has no kernel source.
    #[error("apt knows no package {0}, the source of the lean kernel")]
    NoKernelSource(&'static str),
    /// Options of the fragment that this kernel does not have any more, or that depend on others.
    #[error("guest/kernel.config: these lines have no effect: {0}")]
    KernelOptions(String),
    /// A second build gave other bytes.
    #[error("the kernel is not reproducible: sha256 {made}, before {former}")]
    KernelDiffers {
        /// Digest of the first.
        former: String,
        /// Digest of the second.
        made: String,
    },
    /// Tests failed.
    #[error("{0} tests failed")]
    Tests(u64),
    /// A picture that cannot be drawn.
    #[error("{path}: {why}")]
    Picture {
        /// The file it goes to.
        path: PathBuf,
        /// Why.
        why: String,
    },
    /// The demo showed something else than it should.
    #[error("the demo expected {expected} and got {found}")]
    Demo {
        /// What should be.
        expected: String,
        /// What is.
        found: String,
    },
}

impl TaskError {
    pub(crate) fn io(path: &Path, source: std::io::Error) -> Self {
        Self::Io {
            path: path.to_owned(),
            source,
        }
    }
}
