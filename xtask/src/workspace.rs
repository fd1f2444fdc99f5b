//! Where things of the workspace lie.

use crate::error::TaskError;
use std::path::{Path, PathBuf};

/// The checkout.
#[derive(Debug, Clone)]
pub(crate) struct Workspace {
    root: PathBuf,
}

impl Workspace {
    /// The workspace this program was built in.
    pub(crate) fn find() -> Result<Self, TaskError> {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let root = here.parent().unwrap_or(here);
        let manifest = root.join("Cargo.toml");
        match std::fs::metadata(&manifest) {
            Ok(_) => Ok(Self {
                root: root.to_owned(),
            }),
            Err(source) => Err(TaskError::io(&manifest, source)),
        }
    }

    /// The checkout itself.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where cargo and the tasks put what they make.
    pub(crate) fn target(&self) -> PathBuf {
        match std::env::var_os("CARGO_TARGET_DIR") {
            Some(dir) => self.root.join(dir),
            None => self.root.join("target"),
        }
    }

    /// The lean kernel, if it was built.
    pub(crate) fn kernel(&self) -> PathBuf {
        self.target().join("kernel")
    }

    /// The guest that demo, tests and bench boot.
    pub(crate) fn guest(&self) -> PathBuf {
        self.target().join("guest-assets")
    }

    /// The configuration that makes the host binary boot that guest.
    pub(crate) fn config(&self) -> PathBuf {
        self.guest().join("config.toml")
    }
}
