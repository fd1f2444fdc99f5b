//! One source of a container as host and guest see it (C-31, C-36, C-37).
//!
//! Owns: where it is on either side. Never: binds it. Called by `plan`, and by the engine that binds.

use crate::boot::GUEST_SHARE;
use bulkhead_protocol::GuestStorage;
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One source of a container's files; durable, part of saved state: fields are only added.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Host path, symlinks not yet resolved.
    pub source: PathBuf,
    /// Name below the share on both sides; empty when nothing of the host is bound.
    pub name: PathBuf,
    /// Destination in the container.
    pub destination: PathBuf,
    /// Mounts below the source come along.
    #[serde(default = "yes")]
    pub recursive: bool,
    /// What the guest mounts of it before the container takes it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub storage: Option<GuestStorage>,
}

const fn yes() -> bool {
    true
}

impl Share {
    /// Whether the host binds something.
    #[must_use]
    pub fn is_bound(&self) -> bool {
        !self.name.as_os_str().is_empty()
    }

    /// Where it is mounted on the host, below `share` (C-31); `None` when nothing is bound.
    #[must_use]
    pub fn host_path(&self, share: &Path) -> Option<PathBuf> {
        self.is_bound().then(|| share.join(&self.name))
    }

    /// Where the guest has it (C-31, C-36, C-37): the mount point of its storage, else its name below the
    /// guest's share.
    #[must_use]
    pub fn guest_path(&self) -> PathBuf {
        match &self.storage {
            Some(storage) => PathBuf::from(&storage.mount_point),
            None => Path::new(GUEST_SHARE).join(&self.name),
        }
    }
}

/// C-36: the root file system in the guest. `whole` when the source was an unmounted device, or the target
/// itself is the mount point: then there is no `rootfs` element.
#[must_use]
pub fn guest_rootfs(container: &str, whole: bool) -> PathBuf {
    let path = Path::new(GUEST_SHARE).join(container);
    if whole { path } else { path.join("rootfs") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn c36_rootfs_in_the_guest() {
        assert_eq!(
            guest_rootfs("c1", false),
            Path::new("/run/bulkhead/share/c1/rootfs")
        );
        assert_eq!(guest_rootfs("c1", true), Path::new("/run/bulkhead/share/c1"));
    }

    /// C-37: what a storage stands for is found at its mount point, and that is durable.
    #[test]
    fn c37_the_guest_path_of_a_storage_is_remembered() {
        let share = Share {
            source: "/dev/sdb".into(),
            name: PathBuf::new(),
            destination: "/data".into(),
            recursive: false,
            storage: Some(GuestStorage {
                driver: "blk".into(),
                mount_point: "/run/bulkhead/volumes/d".into(),
                ..GuestStorage::default()
            }),
        };
        assert_eq!(share.host_path(Path::new("/s")), None);
        let json = serde_json::to_vec(&share).unwrap();
        let again: Share = serde_json::from_slice(&json).unwrap();
        assert_eq!(again.guest_path(), Path::new("/run/bulkhead/volumes/d"));
    }

    #[test]
    fn a_share_saved_by_the_first_version_is_read() {
        let old = r#"{"source":"/a","name":"c-00-a","destination":"/b"}"#;
        let share: Share = serde_json::from_str(old).unwrap();
        assert!(share.recursive && share.storage.is_none());
        assert_eq!(share.guest_path(), Path::new("/run/bulkhead/share/c-00-a"));
    }
}
