//! Which cgroup version the host has and where a container's path is in it (contract K-03).
//!
//! Owns: reading the mount table and computing paths. Never: touches a cgroup.

use crate::mount::{MountInfo, MountInfoError};
use std::collections::BTreeMap;
use std::io;
use std::path::{Component, Path, PathBuf};

/// The resources of K-03 whose presence in the spec calls for a cgroup.
pub const RESOURCES: [&str; 4] = ["memory", "cpu", "pids", "blkio"];

/// Why there is no cgroup.
#[derive(Debug, thiserror::Error)]
pub enum CgroupError {
    /// The mount table has no cgroup mount.
    #[error("no cgroup file system is mounted: expected one in /proc/self/mountinfo")]
    NotMounted,
    /// The mount table cannot be read.
    #[error("looking for cgroup mounts")]
    MountInfo(#[from] MountInfoError),
    /// The directory above the cgroup mounts is missing.
    #[error("the cgroup root {} does not exist", path.display())]
    NoRoot {
        /// The directory.
        path: PathBuf,
    },
    /// An empty resource name, or an empty destination of the spec's cgroup mount.
    #[error("{what} is empty: expected {expected}")]
    Empty {
        /// What is.
        what: &'static str,
        /// What it should be.
        expected: &'static str,
    },
    /// A path that leads out of the cgroup root.
    #[error("cgroups path {path:?} leads out of the cgroup root: expected no \"..\"")]
    Escape {
        /// The path.
        path: String,
    },
    /// A systemd-style path that is not one.
    #[error("cgroups path {path:?}: expected \"<slice>:<prefix>:<name>\" with a slice named *.slice")]
    Systemd {
        /// The path.
        path: String,
    },
    /// A directory could not be made or removed.
    #[error("{call} the cgroup {}", path.display())]
    Io {
        /// What was being done.
        call: &'static str,
        /// The directory.
        path: PathBuf,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// Processes are still in it after the deadline.
    #[error("the cgroup {} still has processes {pids:?}", path.display())]
    Busy {
        /// The directory.
        path: PathBuf,
        /// Which ones.
        pids: Vec<i32>,
    },
}

/// The host's cgroup mounts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Hierarchy {
    /// Version 1, also the hybrid with an empty version 2 beside it: mount point by controller (named
    /// hierarchies are left alone).
    V1 {
        /// Parent of the first cgroup mount (K-03).
        root: PathBuf,
        /// Mount point of each controller.
        controllers: BTreeMap<String, PathBuf>,
    },
    /// Version 2 alone.
    V2 {
        /// Its mount point.
        root: PathBuf,
    },
}

impl Hierarchy {
    /// Of this host.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`], [`CgroupError::MountInfo`], [`CgroupError::NoRoot`].
    pub fn detect() -> Result<Self, CgroupError> {
        let found = Self::of(&crate::mount::read(None)?)?;
        if !found.root().is_dir() {
            return Err(CgroupError::NoRoot {
                path: found.root().to_owned(),
            });
        }
        Ok(found)
    }

    /// Of a mount table.
    ///
    /// # Errors
    /// [`CgroupError::NotMounted`].
    pub fn of(mounts: &[MountInfo]) -> Result<Self, CgroupError> {
        let mut controllers = BTreeMap::new();
        let mut first = None;
        for mount in mounts.iter().filter(|mount| mount.fs_type == "cgroup") {
            // A named hierarchy (systemd's) has no controllers and is its owner's.
            let names = mount
                .super_options
                .iter()
                .filter(|option| !matches!(option.as_str(), "rw" | "ro" | "xattr" | "clone_children"))
                .filter(|option| !option.contains('='));
            for name in names {
                first = first.or_else(|| mount.target.parent().map(Path::to_owned));
                controllers
                    .entry(name.clone())
                    .or_insert_with(|| mount.target.clone());
            }
        }
        if let Some(root) = first {
            return Ok(Self::V1 { root, controllers });
        }
        mounts
            .iter()
            .find(|mount| mount.fs_type == "cgroup2")
            .map(|mount| Self::V2 {
                root: mount.target.clone(),
            })
            .ok_or(CgroupError::NotMounted)
    }

    /// The cgroup root: for version 1 the parent of the first cgroup mount, for version 2 the mount.
    #[must_use]
    pub fn root(&self) -> &Path {
        match self {
            Self::V1 { root, .. } | Self::V2 { root } => root,
        }
    }

    /// The directory of `path` for a resource (K-03): `<root>/<resource>/<path>`. A relative path is under
    /// the host's root; an absolute one under `spec_mount`, the destination of the spec's first cgroup mount,
    /// if there is one. Version 2 has one directory for all resources. `None` when that resource is not mounted.
    ///
    /// # Errors
    /// [`CgroupError::Empty`] for an empty resource or destination, [`CgroupError::Escape`].
    pub fn directory(
        &self,
        resource: &str,
        path: &str,
        spec_mount: Option<&Path>,
    ) -> Result<Option<PathBuf>, CgroupError> {
        if resource.is_empty() {
            return Err(CgroupError::Empty {
                what: "cgroup resource name",
                expected: "memory, cpu, pids or blkio",
            });
        }
        let escape = || CgroupError::Escape {
            path: path.to_owned(),
        };
        let mut below = PathBuf::new();
        for component in Path::new(path).components() {
            match component {
                Component::Normal(name) => below.push(name),
                Component::RootDir | Component::CurDir => {}
                Component::ParentDir | Component::Prefix(_) => return Err(escape()),
            }
        }
        // Nothing below would be the root cgroup itself, which is nobody's to limit or remove.
        if below.as_os_str().is_empty() {
            return Err(CgroupError::Empty {
                what: "cgroups path",
                expected: "a path below the cgroup root",
            });
        }
        let host = match self {
            Self::V2 { root } => Some(root.clone()),
            Self::V1 { controllers, .. } => controllers.get(resource).cloned(),
        };
        let top = match spec_mount.filter(|_| path.starts_with('/')) {
            None => host,
            Some(mount) if mount.as_os_str().is_empty() => {
                return Err(CgroupError::Empty {
                    what: "destination of the spec's cgroup mount",
                    expected: "a path",
                });
            }
            Some(mount) => {
                let top = match self {
                    Self::V2 { .. } => mount.to_owned(),
                    Self::V1 { .. } => mount.join(resource),
                };
                is_cgroup(&top).then_some(top)
            }
        };
        Ok(top.map(|top| top.join(below)))
    }
}

fn is_cgroup(path: &Path) -> bool {
    use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, statfs};
    statfs(path).is_ok_and(|stat| {
        let kind = stat.filesystem_type();
        kind == CGROUP_SUPER_MAGIC || kind == CGROUP2_SUPER_MAGIC
    })
}

/// The path below the cgroup root of a systemd-style `cgroupsPath`, `<slice>:<prefix>:<name>`:
/// `a-b.slice:cri:x` is `/a.slice/a-b.slice/cri-x.scope` (systemd.slice(5)). An empty slice is
/// `system.slice`.
///
/// # Errors
/// [`CgroupError::Systemd`].
pub fn expand_systemd(path: &str) -> Result<String, CgroupError> {
    let bad = || CgroupError::Systemd {
        path: path.to_owned(),
    };
    let parts: Vec<&str> = path.split(':').collect();
    let [slice, prefix, name] = parts.as_slice() else {
        return Err(bad());
    };
    let slice = if slice.is_empty() { "system.slice" } else { slice };
    let stem = slice.strip_suffix(".slice").ok_or_else(bad)?;
    if name.is_empty() || path.contains('/') || stem.is_empty() {
        return Err(bad());
    }
    let mut expanded = String::new();
    // "-.slice" is the root slice.
    if stem != "-" {
        let mut so_far = String::new();
        for part in stem.split('-') {
            if part.is_empty() {
                return Err(bad());
            }
            if !so_far.is_empty() {
                so_far.push('-');
            }
            so_far.push_str(part);
            expanded.push_str(&format!("/{so_far}.slice"));
        }
    }
    let scope = match (*prefix, name.ends_with(".slice")) {
        (_, true) => (*name).to_owned(),
        ("", false) => format!("{name}.scope"),
        (prefix, false) => format!("{prefix}-{name}.scope"),
    };
    Ok(format!("{expanded}/{scope}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    const HYBRID: &[u8] = b"30 20 0:26 / /sys/fs/cgroup rw - tmpfs tmpfs rw\n\
        31 30 0:27 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n\
        32 30 0:28 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct\n\
        33 30 0:29 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
        34 30 0:30 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n";
    const UNIFIED: &[u8] = b"31 20 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n";

    fn hierarchy(text: &[u8]) -> Hierarchy {
        Hierarchy::of(&crate::mount::parse(text).unwrap()).unwrap()
    }

    #[test]
    fn a_hybrid_host_is_version_1_with_combined_controllers() {
        let Hierarchy::V1 { root, controllers } = hierarchy(HYBRID) else {
            panic!()
        };
        assert_eq!(root, Path::new("/sys/fs/cgroup"));
        assert_eq!(
            controllers.keys().collect::<Vec<_>>(),
            ["cpu", "cpuacct", "memory"]
        );
        assert_eq!(controllers["cpuacct"], Path::new("/sys/fs/cgroup/cpu,cpuacct"));
    }

    #[test]
    fn k_03_paths_per_resource_on_either_version() {
        let v1 = hierarchy(HYBRID);
        let v2 = hierarchy(UNIFIED);
        let at = |h: &Hierarchy, resource, path| h.directory(resource, path, None).unwrap();
        assert_eq!(
            at(&v1, "memory", "/pod/x"),
            Some("/sys/fs/cgroup/memory/pod/x".into())
        );
        assert_eq!(
            at(&v1, "memory", "pod/x"),
            Some("/sys/fs/cgroup/memory/pod/x".into())
        );
        assert_eq!(at(&v1, "pids", "/pod/x"), None, "not mounted: skipped");
        assert_eq!(at(&v2, "memory", "/pod/x"), Some("/sys/fs/cgroup/pod/x".into()));
        assert_eq!(at(&v2, "pids", "pod//x/"), Some("/sys/fs/cgroup/pod/x".into()));
    }

    #[test]
    fn k_03_an_absolute_path_is_under_the_specs_cgroup_mount_if_that_is_mounted() {
        let v1 = hierarchy(HYBRID);
        let elsewhere = Some(Path::new("/no/cgroup"));
        assert_eq!(v1.directory("memory", "/x", elsewhere).unwrap(), None, "skipped");
        let relative = v1.directory("memory", "x", elsewhere).unwrap();
        assert_eq!(relative, Some("/sys/fs/cgroup/memory/x".into()));
    }

    #[test]
    fn k_03_empty_names_and_escapes_are_errors() {
        let v1 = hierarchy(HYBRID);
        let empty = Some(Path::new(""));
        assert!(matches!(
            v1.directory("", "/x", None),
            Err(CgroupError::Empty { .. })
        ));
        assert!(matches!(
            v1.directory("memory", "/x", empty),
            Err(CgroupError::Empty { .. })
        ));
        assert!(matches!(
            v1.directory("memory", "/", None),
            Err(CgroupError::Empty { .. })
        ));
        let error = v1.directory("memory", "/a/../..", None).unwrap_err();
        assert!(error.to_string().contains("/a/../.."), "{error}");
    }

    #[test]
    fn no_cgroup_mount_is_an_error() {
        assert!(matches!(Hierarchy::of(&[]), Err(CgroupError::NotMounted)));
    }

    #[test]
    fn systemd_paths_expand() {
        for (path, expanded) in [
            ("system.slice:docker:abc", "/system.slice/docker-abc.scope"),
            (":docker:abc", "/system.slice/docker-abc.scope"),
            ("-.slice:p:x", "/p-x.scope"),
            (
                "kubepods-besteffort-pod1.slice:cri-containerd:x",
                "/kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod1.slice/cri-containerd-x.scope",
            ),
        ] {
            assert_eq!(expand_systemd(path).unwrap(), expanded);
        }
        for bad in [
            "a:b:c",
            "system.slice:x",
            "a--b.slice:p:x",
            "system.slice:p:",
            "/a.slice:p:x",
            ".slice:p:x",
        ] {
            assert!(expand_systemd(bad).is_err(), "{bad}");
        }
    }
}
