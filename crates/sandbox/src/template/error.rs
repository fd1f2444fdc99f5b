//! Why a template could not be made, or cannot be used.
//!
//! Owns: the classes. Never: text for decisions.

use bulkhead_protocol::GuestError;
use bulkhead_vmm::VmmError;
use std::io;
use std::path::PathBuf;
use std::time::Duration;

/// A template that could not be made, or is of no use.
#[derive(Debug, thiserror::Error)]
pub enum TemplateError {
    /// A file of it is not as it was sealed.
    #[error("{path} is not as it was saved: {what}")]
    Damaged {
        /// The file.
        path: PathBuf,
        /// What differs.
        what: &'static str,
    },
    /// Its manifest cannot be understood.
    #[error("the manifest {path}")]
    Manifest {
        /// The file.
        path: PathBuf,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Host I/O.
    #[error("{step} {path}")]
    Io {
        /// What was being done.
        step: &'static str,
        /// On what.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// The file system for the memory knows no holes: every start would copy the zeroes of the whole memory.
    #[error(
        "{dir} cannot hold the memory of templates: expected a file system with sparse files, as tmpfs or ext4"
    )]
    NoHoles {
        /// The directory.
        dir: PathBuf,
        /// What it answers to a hole.
        #[source]
        source: io::Error,
    },
    /// The file system for it is full.
    #[error("{dir} is full")]
    Full {
        /// The directory.
        dir: PathBuf,
        /// What failed for it.
        #[source]
        source: Box<TemplateError>,
    },
    /// The VMM.
    #[error(transparent)]
    Vmm(#[from] VmmError),
    /// The agent.
    #[error(transparent)]
    Guest(#[from] GuestError),
    /// It took too long.
    #[error("making a template took longer than {} s", deadline.as_secs())]
    Deadline {
        /// How long it may take.
        deadline: Duration,
    },
}

impl TemplateError {
    /// An I/O error, for `map_err`.
    pub(super) fn io(step: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(io::Error) -> Self {
        let path = path.into();
        move |source| Self::Io { step, path, source }
    }
}
