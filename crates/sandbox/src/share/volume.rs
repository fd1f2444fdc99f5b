//! What kind of volume a bind source is (M-07 to M-10, C-32, C-35).
//!
//! Owns: the classification by path, statfs(2) and a count of files. Never: sharing anything.
//! Called when a container's mounts are planned.

use bulkhead_host::mount::count_files;
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

/// Most files of a volume that is made watchable (C-32).
pub(crate) const MOST_WATCHED_FILES: usize = 8;

/// Where Docker keeps its volumes.
const DOCKER_VOLUMES: &str = "/var/lib/docker/volumes";

/// How a bind source reaches the container.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Volume {
    /// Over the shared file system.
    Shared,
    /// Over the shared file system, and copied in the guest so that inotify works (C-32).
    Watchable,
    /// An empty-dir on tmpfs: a tmpfs in the guest (C-35).
    Ephemeral {
        /// Permission bits.
        mode: u32,
        /// Group.
        gid: u32,
        /// Size in bytes, 0 when the host's has no bound.
        bytes: u64,
    },
    /// Any other empty-dir: a directory of the guest's own (C-35).
    Local {
        /// Permission bits.
        mode: u32,
        /// Group.
        gid: u32,
    },
}

/// Kubernetes volumes, by the second-to-last element of their path (M-08).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kubernetes {
    /// Scratch space.
    EmptyDir,
    /// Configuration.
    ConfigMap,
    /// Secrets.
    Secret,
}

impl Kubernetes {
    /// The kind of the volume at `path`; `None` when it is none of Kubernetes'.
    #[must_use]
    pub fn of(path: &Path) -> Option<Self> {
        match path.parent()?.file_name()?.to_str()? {
            "kubernetes.io~empty-dir" => Some(Self::EmptyDir),
            "kubernetes.io~configmap" => Some(Self::ConfigMap),
            "kubernetes.io~secret" => Some(Self::Secret),
            _ => None,
        }
    }
}

/// M-07: below Docker's volumes, last element `_data`.
#[must_use]
pub fn is_docker(path: &Path) -> bool {
    path.starts_with(DOCKER_VOLUMES) && path.file_name().is_some_and(|name| name == "_data")
}

/// The kind of the bind source `path`.
///
/// # Errors
/// What the host says of an empty-dir; its NotFound means that the source is not there. Other volumes are not
/// looked at unless they may be watchable, and then whatever keeps their files from being counted makes them
/// plain.
pub(crate) fn classify(path: &Path) -> io::Result<Volume> {
    match Kubernetes::of(path) {
        Some(Kubernetes::EmptyDir) => empty_dir(path),
        Some(Kubernetes::ConfigMap | Kubernetes::Secret) => {
            let watchable = matches!(count_files(path, MOST_WATCHED_FILES), Ok(count) if count > 0);
            Ok(if watchable {
                Volume::Watchable
            } else {
                Volume::Shared
            })
        }
        None => Ok(Volume::Shared),
    }
}

/// M-09: ephemeral is an empty-dir that is itself a tmpfs mount point; local any other, mount point or not.
fn empty_dir(path: &Path) -> io::Result<Volume> {
    let meta = std::fs::metadata(path)?;
    let (mode, gid) = (meta.mode() & 0o7777, meta.gid());
    let above = std::fs::metadata(path.join(".."))?;
    let facts = statfs(path)?;
    // A mount point is on another device than the directory it is in.
    if facts.filesystem_type() != TMPFS_MAGIC || meta.dev() == above.dev() {
        return Ok(Volume::Local { mode, gid });
    }
    let unit = u64::try_from(facts.block_size()).unwrap_or(0);
    Ok(Volume::Ephemeral {
        mode,
        gid,
        bytes: facts.blocks().saturating_mul(unit),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{PermissionsExt, symlink};
    use std::path::PathBuf;

    #[test]
    fn m07_docker_volumes() {
        assert!(is_docker(Path::new("/var/lib/docker/volumes/x/_data")));
        for no in [
            "/var/lib/docker/volumes/x/data",
            "/var/lib/docker/volumesx/_data",
            "/x/var/lib/docker/volumes/_data",
            "/var/lib/docker/volumes/x/_data/y",
        ] {
            assert!(!is_docker(Path::new(no)), "{no}");
        }
    }

    #[test]
    fn m08_kubernetes_volumes() {
        let of = |text: &str| Kubernetes::of(Path::new(text));
        assert_eq!(of("/p/kubernetes.io~empty-dir/v"), Some(Kubernetes::EmptyDir));
        assert_eq!(of("/p/kubernetes.io~configmap/v"), Some(Kubernetes::ConfigMap));
        assert_eq!(of("/p/kubernetes.io~secret/v"), Some(Kubernetes::Secret));
        for no in [
            "/",
            "",
            "/p/kubernetes.io~secret",
            "/p/kubernetes.io~secret/v/w",
            "/p/kubernetes.io~nfs/v",
        ] {
            assert_eq!(of(no), None, "{no}");
        }
    }

    fn volume(temp: &tempfile::TempDir, kind: &str) -> PathBuf {
        let path = temp.path().join(kind).join("v");
        std::fs::create_dir_all(&path).unwrap();
        path
    }

    /// C-32, M-10: 1 to 8 files, links counted and not followed, at any depth.
    #[test]
    fn c32_m10_small_configuration_is_watchable() {
        let temp = tempfile::tempdir().unwrap();
        for kind in ["kubernetes.io~configmap", "kubernetes.io~secret"] {
            let path = volume(&temp, kind);
            assert_eq!(classify(&path).unwrap(), Volume::Shared, "no file");
            std::fs::create_dir(path.join("..1")).unwrap();
            std::fs::write(path.join("..1/key"), "").unwrap();
            symlink("..1", path.join("..data")).unwrap();
            for n in 0..6 {
                symlink("/etc", path.join(format!("k{n}"))).unwrap();
            }
            assert_eq!(classify(&path).unwrap(), Volume::Watchable, "8 files");
            std::fs::write(path.join("..1/more"), "").unwrap();
            assert_eq!(classify(&path).unwrap(), Volume::Shared, "9 files");
        }
        let absent = temp.path().join("kubernetes.io~secret/absent");
        assert_eq!(classify(&absent).unwrap(), Volume::Shared);
    }

    /// M-09, C-35.
    #[test]
    fn m09_an_empty_dir_that_is_no_tmpfs_mount_point_is_local() {
        let temp = tempfile::tempdir().unwrap();
        let path = volume(&temp, "kubernetes.io~empty-dir");
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o2770)).unwrap();
        let Volume::Local { mode, .. } = classify(&path).unwrap() else {
            panic!("not local")
        };
        assert_eq!(mode, 0o2770);
        let absent = path.with_file_name("absent");
        assert_eq!(classify(&absent).unwrap_err().kind(), io::ErrorKind::NotFound);
    }

    /// M-09, C-35: on a tmpfs of its own, with its size.
    #[test]
    #[ignore = "needs root"]
    fn m09_an_empty_dir_on_tmpfs_is_ephemeral() {
        let temp = tempfile::tempdir().unwrap();
        let path = volume(&temp, "kubernetes.io~empty-dir");
        let no = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("t"), &path, Some("tmpfs"), no, Some("size=1m,mode=0777")).unwrap();
        let found = classify(&path);
        // A directory in it is not a mount point.
        let inner = path.join("kubernetes.io~empty-dir/w");
        std::fs::create_dir_all(&inner).unwrap();
        let below = classify(&inner);
        nix::mount::umount(&path).unwrap();
        let ephemeral = Volume::Ephemeral {
            mode: 0o777,
            gid: 0,
            bytes: 1 << 20,
        };
        assert_eq!(found.unwrap(), ephemeral);
        assert!(matches!(below.unwrap(), Volume::Local { .. }));
    }
}
