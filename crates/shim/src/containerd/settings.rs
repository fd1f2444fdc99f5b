//! What a supervisor must know to serve containerd, beside its plan.
//!
//! Owns: the file `shim.json` in the state directory. Written by `start`, read by the supervisor and by `delete`.

use bulkhead_sandbox::{Layout, SandboxPaths};
use serde::{Deserialize, Serialize};
use std::io;
use std::path::{Path, PathBuf};

/// State roots of containerd's sandboxes: one for each of its namespaces, so that equal ids do not meet.
const ROOTS: &str = "/run/bulkhead/containerd";

/// The settings of one shim.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Settings {
    /// containerd's namespace.
    pub namespace: String,
    /// Where containerd takes in events; empty for a client that takes none.
    pub events_address: String,
    /// The bundle of the container that made the sandbox.
    pub bundle: PathBuf,
    /// Configuration file, if one was named.
    pub config: Option<PathBuf>,
    /// `cgroupsPath` is systemd's.
    pub systemd_cgroup: bool,
    /// The first container only stands for its pod.
    pub pod: bool,
    /// The bundle has no config.json: the sandbox is made when it is ordered over the Sandbox service.
    pub ordered: bool,
}

impl Settings {
    /// Of a sandbox; `None` when containerd has nothing to do with it.
    ///
    /// # Errors
    /// I/O, or a file that is not ours.
    pub fn read(paths: &SandboxPaths) -> io::Result<Option<Self>> {
        match std::fs::read(paths.shim()) {
            Ok(text) => Ok(Some(serde_json::from_slice(&text)?)),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The layout of the sandboxes of a containerd namespace.
    #[must_use]
    pub fn layout(namespace: &str) -> Layout {
        Layout::new(Path::new(ROOTS).join(namespace))
    }
}
