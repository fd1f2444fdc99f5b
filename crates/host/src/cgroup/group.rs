//! One cgroup: its directories in all hierarchies it is in.
//!
//! Owns: making, limiting and removing them. Never: kills what is inside.

use super::{CgroupError, Hierarchy};
use crate::deadline::{self, Deadline};
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A limit the host did not take: for the log, not an error (as runc does where the host lacks a controller).
#[derive(Debug)]
pub struct LimitRefusal {
    /// The file written.
    pub path: PathBuf,
    /// What was to be written.
    pub value: String,
    /// Why it was not taken.
    pub source: io::Error,
}

/// What [`Cgroup::create`] did.
#[derive(Debug, Default)]
pub struct Created {
    /// Directories made, parents first: what undoing it removes, in reverse.
    pub directories: Vec<PathBuf>,
    /// Settings the host refused on the way.
    pub refusals: Vec<LimitRefusal>,
}

/// A cgroup by its directories, one per version 1 controller or a single one in version 2.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Cgroup {
    /// Directories and where each hierarchy begins.
    directories: Vec<Place>,
    version2: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
struct Place {
    resource: String,
    directory: PathBuf,
}

impl Cgroup {
    /// Of the spec's path for the resources present in it (K-03). Resources that are not mounted are left
    /// out; no resources, or none mounted, give a cgroup without directories.
    ///
    /// # Errors
    /// [`CgroupError::Empty`], [`CgroupError::Escape`].
    pub fn plan(
        hierarchy: &Hierarchy,
        path: &str,
        spec_mount: Option<&Path>,
        resources: &[&str],
    ) -> Result<Self, CgroupError> {
        let mut directories: Vec<Place> = Vec::new();
        for resource in resources {
            let Some(directory) = hierarchy.directory(resource, path, spec_mount)? else {
                continue;
            };
            if !directories.iter().any(|place| place.directory == directory) {
                directories.push(Place {
                    resource: (*resource).to_owned(),
                    directory,
                });
            }
        }
        Ok(Self {
            directories,
            version2: matches!(hierarchy, Hierarchy::V2 { .. }),
        })
    }

    /// Its directories.
    pub fn directories(&self) -> impl Iterator<Item = &Path> {
        self.directories.iter().map(|place| place.directory.as_path())
    }

    /// The `cgroup.procs` files a process joins it by.
    #[must_use]
    pub fn procs(&self) -> Vec<PathBuf> {
        self.directories().map(|dir| dir.join("cgroup.procs")).collect()
    }

    /// Makes the directories, parents included; what is there already stays.
    ///
    /// # Errors
    /// [`CgroupError::Io`]; what was made before is removed again.
    pub fn create(&self) -> Result<Created, CgroupError> {
        let mut created = Created::default();
        for place in &self.directories {
            if let Err(error) = self.create_one(place, &mut created) {
                for directory in created.directories.iter().rev() {
                    let _ = std::fs::remove_dir(directory);
                }
                return Err(error);
            }
        }
        Ok(created)
    }

    fn create_one(&self, place: &Place, created: &mut Created) -> Result<(), CgroupError> {
        let mut missing = Vec::new();
        let mut at = place.directory.as_path();
        while !at.is_dir() {
            missing.push(at.to_owned());
            let Some(parent) = at.parent() else { break };
            at = parent;
        }
        for directory in missing.into_iter().rev() {
            if self.version2
                && let Some(parent) = directory.parent()
            {
                delegate(parent, &mut created.refusals);
            }
            match std::fs::create_dir(&directory) {
                Ok(()) => created.directories.push(directory),
                // A neighbour that shares the parent was faster.
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                Err(source) => {
                    return Err(CgroupError::Io {
                        call: "creating",
                        path: directory,
                        source,
                    });
                }
            }
        }
        Ok(())
    }

    /// Limits memory, in bytes; `None` is no limit. Without a memory controller nothing is done.
    pub fn set_memory_limit(&self, bytes: Option<u64>) -> Result<(), LimitRefusal> {
        let (file, unlimited) = if self.version2 {
            ("memory.max", "max")
        } else {
            ("memory.limit_in_bytes", "-1")
        };
        let place = self
            .directories
            .iter()
            .find(|place| self.version2 || place.resource == "memory");
        match place {
            None => Ok(()),
            Some(place) => {
                let value = bytes.map_or_else(|| unlimited.to_owned(), |bytes| bytes.to_string());
                write(&place.directory.join(file), &value)
            }
        }
    }

    /// Removes it and the empty cgroups below it, waiting at most `within` in all for processes in it to end.
    /// Every directory is tried.
    ///
    /// # Errors
    /// The first [`CgroupError::Busy`] or [`CgroupError::Io`].
    pub fn remove(&self, within: Duration) -> Result<(), CgroupError> {
        let deadline = Deadline::after(within);
        let results: Vec<_> = self
            .directories()
            .map(|dir| remove_until(dir, deadline))
            .collect();
        results.into_iter().collect()
    }
}

/// Moves a running process into the cgroups of these `cgroup.procs` files; returns what the host refused.
#[must_use]
pub fn join(procs: &[PathBuf], pid: i32) -> Vec<LimitRefusal> {
    let value = pid.to_string();
    procs
        .iter()
        .filter_map(|file| write(file, &value).err())
        .collect()
}

/// Removes one cgroup directory and the empty ones below it, waiting at most `within` for the processes in it
/// to end (by their pidfds). What is not there is success.
///
/// # Errors
/// [`CgroupError::Busy`], [`CgroupError::Io`].
pub fn remove(directory: &Path, within: Duration) -> Result<(), CgroupError> {
    remove_until(directory, Deadline::after(within))
}

/// Removes a cgroup directory if nothing is in it; true when it is gone.
///
/// # Errors
/// [`CgroupError::Io`], not for one in use.
pub fn remove_if_empty(directory: &Path) -> Result<bool, CgroupError> {
    match std::fs::remove_dir(directory) {
        Ok(()) => Ok(true),
        Err(error) => match error.raw_os_error() {
            Some(libc::ENOENT) => Ok(true),
            Some(libc::EBUSY | libc::ENOTEMPTY) => Ok(false),
            _ => Err(CgroupError::Io {
                call: "removing",
                path: directory.to_owned(),
                source: error,
            }),
        },
    }
}

fn remove_until(directory: &Path, deadline: Deadline) -> Result<(), CgroupError> {
    loop {
        if remove_if_empty(directory)? {
            return Ok(());
        }
        for child in children(directory) {
            remove_until(&child, deadline)?;
        }
        if remove_if_empty(directory)? {
            return Ok(());
        }
        let pids = pids(directory);
        for pid in &pids {
            let Ok(Some(start_time)) = crate::process::start_time(*pid) else {
                continue;
            };
            if let Ok(pidfd) = crate::process::open_exact(*pid, start_time) {
                let _ = deadline::readable(pidfd.as_fd(), deadline);
            }
        }
        if deadline.passed() {
            return Err(CgroupError::Busy {
                path: directory.to_owned(),
                pids,
            });
        }
        if pids.is_empty() {
            // A process on its way out has left the list but not yet the group: the kernel gives no event for
            // that in version 1, and it is a matter of microseconds.
            std::thread::yield_now();
        }
    }
}

fn children(directory: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(directory)
        .into_iter()
        .flatten()
        .flatten()
        .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
        .map(|entry| entry.path())
        .collect()
}

fn pids(directory: &Path) -> Vec<i32> {
    std::fs::read_to_string(directory.join("cgroup.procs"))
        .unwrap_or_default()
        .lines()
        .filter_map(|line| line.trim().parse().ok())
        .collect()
}

/// Version 2: lets the children of `parent` have the controllers we use, as far as the host allows.
fn delegate(parent: &Path, refusals: &mut Vec<LimitRefusal>) {
    let available = std::fs::read_to_string(parent.join("cgroup.controllers")).unwrap_or_default();
    let control = parent.join("cgroup.subtree_control");
    let enabled = std::fs::read_to_string(&control).unwrap_or_default();
    for controller in ["memory", "cpu", "pids", "io"] {
        let has = |list: &str| list.split_whitespace().any(|name| name == controller);
        if has(&available) && !has(&enabled) {
            refusals.extend(write(&control, &format!("+{controller}")).err());
        }
    }
}

fn write(path: &Path, value: &str) -> Result<(), LimitRefusal> {
    // No create: on a cgroup file system a missing file means that the host lacks it.
    std::fs::File::options()
        .write(true)
        .open(path)
        .and_then(|mut file| io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|source| LimitRefusal {
            path: path.to_owned(),
            value: value.to_owned(),
            source,
        })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeMap;

    fn fake_v1(root: &Path) -> Hierarchy {
        let controllers: BTreeMap<String, PathBuf> = ["memory", "cpu"]
            .into_iter()
            .map(|name| (name.to_owned(), root.join(name)))
            .collect();
        for path in controllers.values() {
            std::fs::create_dir(path).unwrap();
        }
        Hierarchy::V1 {
            root: root.to_owned(),
            controllers,
        }
    }

    #[test]
    fn k_03_version_1_has_a_directory_per_mounted_resource() {
        let dir = tempfile::tempdir().unwrap();
        let h = fake_v1(dir.path());
        let group = Cgroup::plan(&h, "/pod/x", None, &super::super::RESOURCES).unwrap();
        let created = group.create().unwrap();
        let names = ["memory/pod", "memory/pod/x", "cpu/pod", "cpu/pod/x"];
        assert_eq!(created.directories, names.map(|name| dir.path().join(name)));
        assert_eq!(group.procs()[0], dir.path().join("memory/pod/x/cgroup.procs"));
        assert_eq!(group.create().unwrap().directories, Vec::<PathBuf>::new());
        // A plain directory in place of a cgroup has no limit file: refused, not created.
        let refusal = group.set_memory_limit(Some(1)).unwrap_err();
        assert_eq!(refusal.source.kind(), io::ErrorKind::NotFound);
        std::fs::write(dir.path().join("memory/pod/x/memory.limit_in_bytes"), "").unwrap();
        group.set_memory_limit(Some(4096)).unwrap();
        let written = std::fs::read_to_string(dir.path().join("memory/pod/x/memory.limit_in_bytes")).unwrap();
        assert_eq!(written, "4096");
    }

    #[test]
    fn k_03_no_resources_give_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let group = Cgroup::plan(&fake_v1(dir.path()), "/x", None, &[]).unwrap();
        assert!(group.procs().is_empty() && group.create().unwrap().directories.is_empty());
        group.set_memory_limit(Some(1)).unwrap();
        group.remove(Duration::ZERO).unwrap();
    }

    #[test]
    fn version_2_has_one_directory_and_asks_for_controllers_above_it() {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("cgroup.controllers"), "cpu memory").unwrap();
        std::fs::write(dir.path().join("cgroup.subtree_control"), "cpu").unwrap();
        let h = Hierarchy::V2 {
            root: dir.path().to_owned(),
        };
        let group = Cgroup::plan(&h, "pod/x", None, &["memory", "cpu", "pids"]).unwrap();
        let created = group.create().unwrap();
        assert_eq!(
            created.directories,
            ["pod", "pod/x"].map(|name| dir.path().join(name))
        );
        assert_eq!(created.refusals.len(), 0);
        let control = std::fs::read_to_string(dir.path().join("cgroup.subtree_control")).unwrap();
        assert!(control.starts_with("+memory"), "{control}");
        group.remove(Duration::ZERO).unwrap();
        group.remove(Duration::ZERO).unwrap();
        assert!(dir.path().join("pod").is_dir(), "only its own directory goes");
        assert!(remove_if_empty(&dir.path().join("pod")).unwrap());
    }

    #[test]
    fn a_failure_half_way_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let h = fake_v1(dir.path());
        std::fs::write(dir.path().join("cpu/pod"), "a file in the way").unwrap();
        let group = Cgroup::plan(&h, "/pod/x", None, &["memory", "cpu"]).unwrap();
        assert!(group.create().is_err());
        assert!(!dir.path().join("memory/pod").exists());
    }
}
