//! Where things of a sandbox lie on the host.
//!
//! ```text
//! <root>/sandboxes/<sandbox>/   plan.json state.json journal lock log …     (0700)
//! <root>/containers/<container>/<sandbox>/                                  (K-01)
//! <root>/timelines/<sandbox>    of sandboxes that are gone                  (0700)
//! /run/bulkhead/s/<hash>/       ctl qmp control data console fs share/      (0700)
//! ```
//! The socket directory has a short fixed base with a hash in it: an engine's own root plus a
//! 64-character id exceeds the 108 bytes of `sun_path`, unix(7).
//!
//! Owns: names. Never: creating or removing anything. Called by everything that touches state.

use bulkhead_model::{ContainerId, ProcessKey, SandboxId};
use sha2::{Digest, Sha256};
use std::path::{Path, PathBuf};

/// State root used without `--root`.
pub const DEFAULT_ROOT: &str = "/run/bulkhead";

/// Base of socket directories, whatever the root.
pub(crate) const SOCKET_BASE: &str = "/run/bulkhead/s";

/// The file system layout under one root.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Layout {
    root: PathBuf,
}

impl Layout {
    /// A layout under `root`, which should be absolute.
    #[must_use]
    pub fn new(root: impl Into<PathBuf>) -> Self {
        Self { root: root.into() }
    }

    /// The root itself.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Directory that holds one directory per sandbox.
    #[must_use]
    pub fn sandboxes(&self) -> PathBuf {
        self.root.join("sandboxes")
    }

    /// Directory of the container → sandbox map (K-01).
    #[must_use]
    pub fn containers(&self) -> PathBuf {
        self.root.join("containers")
    }

    /// Directory of the timelines of sandboxes that are gone.
    #[must_use]
    pub fn timelines(&self) -> PathBuf {
        self.root.join("timelines")
    }

    /// Everything of one sandbox.
    #[must_use]
    pub fn sandbox(&self, id: &SandboxId) -> SandboxPaths {
        let mut hash = Sha256::new();
        hash.update(self.root.as_os_str().as_encoded_bytes());
        hash.update([0]);
        hash.update(id.as_str());
        let marker: String = hash
            .finalize()
            .iter()
            .take(8)
            .map(|byte| format!("{byte:02x}"))
            .collect();
        SandboxPaths {
            dir: self.sandboxes().join(id.as_str()),
            containers: self.containers(),
            timelines: self.timelines(),
            sockets: Path::new(SOCKET_BASE).join(&marker),
            marker,
        }
    }

    /// The sandbox a container id stands for when nothing else says so.
    #[must_use]
    pub fn own_sandbox(&self, id: &ContainerId) -> SandboxPaths {
        self.sandbox(&SandboxId::from(id))
    }
}

/// Paths of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SandboxPaths {
    /// State directory.
    pub dir: PathBuf,
    /// Directory of the container → sandbox map (K-01).
    pub containers: PathBuf,
    /// Directory of the timelines of sandboxes that are gone.
    pub timelines: PathBuf,
    /// Socket directory.
    pub sockets: PathBuf,
    /// 16 hexadecimal digits: `BULKHEAD_SANDBOX=<marker>/<role>` stands in the environment of its processes.
    pub marker: String,
}

impl SandboxPaths {
    /// The plan, written before the supervisor starts.
    #[must_use]
    pub fn plan(&self) -> PathBuf {
        self.dir.join("plan.json")
    }
    /// Locked by the live supervisor.
    #[must_use]
    pub fn lock(&self) -> PathBuf {
        self.dir.join("lock")
    }
    /// Saved state.
    #[must_use]
    pub fn state(&self) -> PathBuf {
        self.dir.join("state.json")
    }
    /// The journal of acquired host resources.
    #[must_use]
    pub fn journal(&self) -> PathBuf {
        self.dir.join("journal")
    }
    /// The sandbox log: JSON lines.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("log")
    }
    /// Where its time went.
    #[must_use]
    pub fn timeline(&self) -> PathBuf {
        self.dir.join("timeline.json")
    }
    /// Directory in which streams remember how far they got, for a fresh supervisor.
    #[must_use]
    pub fn streams(&self) -> PathBuf {
        self.dir.join("streams")
    }
    /// Socket commands are sent to.
    #[must_use]
    pub fn control_socket(&self) -> PathBuf {
        self.sockets.join("ctl")
    }
    /// Socket on which the services of containerd's shim are.
    #[must_use]
    pub fn task_socket(&self) -> PathBuf {
        self.sockets.join("task")
    }
    /// What the supervisor must know to serve containerd; there only if it does.
    #[must_use]
    pub fn shim(&self) -> PathBuf {
        self.dir.join("shim.json")
    }
    /// One of the VM's sockets: `qmp`, `control`, `data`, `console`, `fs`.
    #[must_use]
    pub(crate) fn vm_socket(&self, name: &str) -> PathBuf {
        self.sockets.join(name)
    }
    /// Socket on which the stub of a process waits for a fresh supervisor.
    #[must_use]
    pub fn stub_socket(&self, key: &ProcessKey) -> PathBuf {
        stub_socket(&self.sockets, key)
    }
    /// What the guest sees of the host's files.
    #[must_use]
    pub fn share(&self) -> PathBuf {
        self.sockets.join("share")
    }
}

/// [`SandboxPaths::stub_socket`] for those who know only the socket directory.
#[must_use]
pub fn stub_socket(sockets: &Path, key: &ProcessKey) -> PathBuf {
    let mut hash = Sha256::new();
    hash.update(key.container.as_str());
    hash.update([0]);
    hash.update(key.exec.as_ref().map_or("", |exec| exec.as_str()));
    let name: String = hash
        .finalize()
        .iter()
        .take(8)
        .map(|byte| format!("{byte:02x}"))
        .collect();
    sockets.join(format!("stub-{name}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn socket_paths_stay_short_whatever_root_and_id() {
        let layout = Layout::new(format!("/var/run/{}", "r".repeat(200)));
        let id = SandboxId::new("x".repeat(255)).unwrap();
        let longest = layout.sandbox(&id).vm_socket("control");
        assert!(longest.as_os_str().len() < 108, "{longest:?}");
    }

    #[test]
    fn roots_do_not_share_sockets() {
        let id = SandboxId::new("a").unwrap();
        assert_ne!(
            Layout::new("/a").sandbox(&id).sockets,
            Layout::new("/b").sandbox(&id).sockets
        );
    }
}
