//! A container's files in the share, and out of it again (C-11, C-30 to C-33).
//!
//! ```text
//!  SharePlan ─► journal: all of them, one write ─► bind each ─► … ─► unmount each ─► journal, one write
//! ```
//!
//! Owns: order and tolerance. Never: which mounts are shared (see [`crate::share`]). Called by create, stop,
//! delete and rollback.

use crate::error::SandboxError;
use crate::journal::{Entry, Resource};
use crate::platform::Bind;
use crate::share::Share;
use crate::span;
use crate::world::World;
use bulkhead_model::ContainerId;
use bulkhead_model::plan::RootMount;
use std::io;
use std::path::Path;

/// Mounts made before other tasks get their turn.
const BATCH: usize = 64;

/// Which of a container's mounts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Part {
    /// All but the root file system.
    Mounts,
    /// The root file system.
    Rootfs,
}

impl World {
    /// Binds what `shares` names. What was bound before a failure is in the journal.
    pub(crate) async fn bind_shares(
        &mut self,
        id: &ContainerId,
        shares: &[Share],
    ) -> Result<(), SandboxError> {
        let root = self.paths.share();
        for storage in shares.iter().filter_map(|share| share.storage.as_ref()) {
            // Made here, so that it is there whatever the guest may write.
            let Ok(below) = Path::new(&storage.mount_point).strip_prefix(crate::boot::GUEST_SHARE) else {
                continue;
            };
            let above = root.join(below.parent().unwrap_or(below));
            let span = span::on_path("make a directory", &self.plan.id, id, &above);
            span.in_scope(|| self.platform.make_guest_dir(&above))
                .inspect_err(|error| span::failed(&span, error))
                .map_err(|e| SandboxError::host("creating", above, e))?;
        }
        let namespace = self
            .platform
            .mount_namespace()
            .map_err(|e| SandboxError::host("reading", "/proc/self/ns/mnt", e))?;
        let bound = || {
            shares
                .iter()
                .filter_map(|share| Some((share, share.host_path(&root)?)))
        };
        let resources = bound().map(|(_, path)| Resource::Mount {
            path,
            namespace,
            container: Some(id.clone()),
        });
        self.journal
            .intend_all(resources.collect())
            .map_err(|e| SandboxError::host("writing the journal", self.paths.journal(), e))?;
        for (number, (share, target)) in bound().enumerate() {
            if number % BATCH == BATCH - 1 {
                tokio::task::yield_now().await;
            }
            let bind = Bind {
                source: &share.source,
                target: &target,
                recursive: share.recursive,
                share: &root,
            };
            let span = span::on_path("bind", &self.plan.id, id, &share.source);
            span.in_scope(|| self.platform.bind(bind))
                .inspect_err(|error| span::failed(&span, error))
                .map_err(|e| SandboxError::mount(&share.source, &share.destination, e))?;
        }
        Ok(())
    }

    /// Mounts a container's root file system at `target`, before its create. Every mount is in the journal as the
    /// container's, so that whatever ends the container unmounts it.
    pub(crate) fn mount_root(
        &mut self,
        id: &ContainerId,
        target: &Path,
        mounts: &[RootMount],
    ) -> Result<(), SandboxError> {
        if self.containers.contains_key(id) {
            return Err(SandboxError::InUse {
                what: "container",
                id: id.to_string(),
            });
        }
        let namespace = self
            .platform
            .mount_namespace()
            .map_err(|e| SandboxError::host("reading", "/proc/self/ns/mnt", e))?;
        let resources: Vec<Resource> = mounts
            .iter()
            .map(|mount| Resource::RootMount {
                path: target.join(mount.target.trim_start_matches('/')),
                namespace,
                container: id.clone(),
            })
            .collect();
        let entries = self
            .journal
            .intend_all(resources.clone())
            .map_err(|e| SandboxError::host("writing the journal", self.paths.journal(), e))?;
        let Err(error) = self.platform.mount_root(target, mounts) else {
            return Ok(());
        };
        for resource in resources.iter().rev() {
            if let Err(error) = self.platform.undo(resource) {
                tracing::error!(%error, container = %id, "unmounting a root file system; the sandbox's end tries again");
                return Err(SandboxError::host(
                    "mounting the root file system at",
                    target,
                    error,
                ));
            }
        }
        if let Err(error) = self.journal.release_all(&entries) {
            tracing::error!(%error, "writing the journal");
        }
        Err(SandboxError::host(
            "mounting the root file system at",
            target,
            error,
        ))
    }

    /// Whether anything on the host is held for a container.
    pub(crate) fn holds_for(&self, id: &ContainerId) -> bool {
        self.journal
            .held()
            .iter()
            .any(|(_, resource)| resource.belongs_to(id))
    }

    /// Takes all of a container's files out of the share, newest first. Every mount is tried, every failure is
    /// logged with its path, the first is returned (C-33).
    pub(crate) async fn unshare(&mut self, id: &ContainerId) -> Result<(), SandboxError> {
        let mounts = self.unshare_part(id, Part::Mounts).await;
        let rootfs = self.unshare_part(id, Part::Rootfs).await;
        mounts.and(rootfs)
    }

    /// The same for a part of them.
    pub(crate) async fn unshare_part(&mut self, id: &ContainerId, part: Part) -> Result<(), SandboxError> {
        let rootfs = self.paths.share().join(id.as_str());
        let held: Vec<(Entry, Resource)> = self
            .journal
            .held()
            .into_iter()
            .filter(|(_, resource)| resource.belongs_to(id))
            .filter(|(_, resource)| {
                let of_rootfs = matches!(resource, Resource::Mount { path, .. } if path.starts_with(&rootfs));
                of_rootfs == (part == Part::Rootfs)
            })
            .collect();
        let mut released = Vec::new();
        let mut first = Ok(());
        for (entry, resource) in held {
            match self.undo(resource.clone()).await {
                Ok(()) => released.push(entry),
                Err(error) => {
                    let path = match resource {
                        Resource::Mount { path, .. } | Resource::RootMount { path, .. } => path,
                        _ => rootfs.clone(),
                    };
                    tracing::error!(%error, host_path = %path.display(), container = %id, "unmounting");
                    if first.is_ok() {
                        first = Err(SandboxError::host("unmounting", path, error));
                    }
                }
            }
        }
        if let Err(error) = self.journal.release_all(&released) {
            tracing::error!(%error, "writing the journal");
        }
        if part == Part::Rootfs {
            self.remove_empty_directory(&rootfs);
        }
        first
    }

    /// The directory that held `rootfs`.
    fn remove_empty_directory(&self, path: &Path) {
        match std::fs::remove_dir(path) {
            Err(error)
                if !matches!(
                    error.kind(),
                    io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
                ) =>
            {
                tracing::warn!(%error, host_path = %path.display(), "removing a directory of the share");
            }
            _ => {}
        }
    }
}
