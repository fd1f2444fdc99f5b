//! One cgroup per container, below `/sys/fs/cgroup/bulkhead` (cgroup v2, cgroup-v2.rst).
//!
//! Owns: the directory, its limits, its device program, freezing, killing and removal. Never: the
//! meaning of OCI fields (see `limits`, `devices`). Called by `container`.

use crate::devices::{self, DeviceError};
use crate::limits::{self, LimitError};
use crate::programs::Programs;
use crate::sys::bpf;
use bulkhead_model::oci::{LinuxDevice, LinuxDeviceCgroup, LinuxResources};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::fs::{self, File};
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Where cgroup v2 is mounted.
pub(crate) const MOUNT: &str = "/sys/fs/cgroup";
/// Parent of all containers' groups, relative to [`MOUNT`].
pub(crate) const PARENT: &str = "bulkhead";

/// Why something with a cgroup failed.
#[derive(Debug, thiserror::Error)]
pub(crate) enum CgroupError {
    /// A file could not be read or written.
    #[error("cgroup file {path}")]
    File {
        /// Its path.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A limit was refused by the kernel.
    #[error("cannot set {file} to {value:?}")]
    Set {
        /// Which file.
        file: String,
        /// The value.
        value: String,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A limit that cannot be converted.
    #[error(transparent)]
    Limit(#[from] LimitError),
    /// A device rule that cannot be understood.
    #[error(transparent)]
    Device(#[from] DeviceError),
    /// The device program was refused.
    #[error("device rules of {path}")]
    Program {
        /// The cgroup.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: io::Error,
    },
    /// A state was not reached in time.
    #[error("{path} did not become {state} within {seconds} s")]
    Deadline {
        /// The cgroup.
        path: PathBuf,
        /// What was waited for.
        state: &'static str,
        /// The deadline.
        seconds: u64,
    },
}

/// A container's cgroup.
#[derive(Debug)]
pub(crate) struct Cgroup {
    path: PathBuf,
    program: Mutex<Option<Arc<OwnedFd>>>,
}

fn file_error(path: &Path) -> impl FnOnce(io::Error) -> CgroupError + '_ {
    move |source| CgroupError::File {
        path: path.to_owned(),
        source,
    }
}

/// Mounts are done: turns every controller on for the groups of containers.
///
/// # Errors
/// [`CgroupError::File`] if the tree cannot be made; a controller that cannot be turned on is left out.
pub(crate) fn prepare() -> Result<(), CgroupError> {
    let root = Path::new(MOUNT);
    let parent = root.join(PARENT);
    fs::create_dir_all(&parent).map_err(file_error(&parent))?;
    let list = root.join("cgroup.controllers");
    let controllers = fs::read_to_string(&list).map_err(file_error(&list))?;
    for directory in [root, parent.as_path()] {
        let control = directory.join("cgroup.subtree_control");
        let all: Vec<String> = controllers
            .split_whitespace()
            .map(|name| format!("+{name}"))
            .collect();
        if fs::write(&control, all.join(" ")).is_err() {
            // One that refuses must not keep the others off.
            for one in all {
                let _ = fs::write(&control, one);
            }
        }
    }
    Ok(())
}

/// Whether a process of any container lives; also when that cannot be told.
#[must_use]
pub(crate) fn populated() -> bool {
    let events = Path::new(MOUNT).join(PARENT).join("cgroup.events");
    fs::read_to_string(events).map_or(true, |text| !text.lines().any(|line| line == "populated 0"))
}

impl Cgroup {
    /// Makes the group of container `id`.
    ///
    /// # Errors
    /// [`CgroupError::File`], also if it exists.
    pub(crate) fn create(id: &str) -> Result<Self, CgroupError> {
        let path = Path::new(MOUNT).join(PARENT).join(id);
        fs::create_dir(&path).map_err(file_error(&path))?;
        Ok(Self {
            path,
            program: Mutex::new(None),
        })
    }

    /// Its path below the mount, as `/proc/<pid>/cgroup` has it.
    #[must_use]
    pub(crate) fn name(&self) -> String {
        let below = self.path.strip_prefix(MOUNT).unwrap_or(&self.path);
        format!("/{}", below.display())
    }

    /// Its directory.
    #[must_use]
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    fn read(&self, file: &str) -> Result<String, CgroupError> {
        let path = self.path.join(file);
        fs::read_to_string(&path).map_err(file_error(&path))
    }

    /// Applies limits in order; returns a line for each that this kernel does not have.
    ///
    /// # Errors
    /// The first limit that cannot be converted or is refused.
    pub(crate) fn apply(&self, resources: &LinuxResources) -> Result<Vec<String>, CgroupError> {
        let mut missing = Vec::new();
        for setting in limits::settings(resources)? {
            let path = self.path.join(&setting.file);
            match File::options()
                .write(true)
                .open(&path)
                .and_then(|mut file| io::Write::write_all(&mut file, setting.value.as_bytes()))
            {
                Ok(()) => {}
                Err(source) if setting.optional => {
                    missing.push(format!(
                        "{} = {:?} was not applied: {source}",
                        setting.file, setting.value
                    ));
                }
                Err(source) => {
                    return Err(CgroupError::Set {
                        file: setting.file,
                        value: setting.value,
                        source,
                    });
                }
            }
        }
        Ok(missing)
    }

    /// Restricts devices to what `rules` allow; replaces former rules at once.
    ///
    /// # Errors
    /// [`CgroupError::Device`] or [`CgroupError::Program`].
    pub(crate) fn restrict_devices(
        &self,
        rules: &[LinuxDeviceCgroup],
        devices: &[LinuxDevice],
        port_major: Option<u32>,
        programs: &Programs,
    ) -> Result<(), CgroupError> {
        let program = devices::program(rules, devices, port_major)?;
        let refused = |source| CgroupError::Program {
            path: self.path.clone(),
            source,
        };
        let loaded = programs.load(program).map_err(refused)?;
        let mut former = self.program.lock().unwrap_or_else(PoisonError::into_inner);
        if former.as_ref().is_some_and(|former| Arc::ptr_eq(former, &loaded)) {
            return Ok(());
        }
        let directory = File::open(&self.path).map_err(refused)?;
        bpf::attach(
            directory.as_fd(),
            loaded.as_fd(),
            former.as_ref().map(|former| former.as_fd()),
        )
        .map_err(refused)?;
        *former = Some(loaded);
        Ok(())
    }

    /// Every process in it and below.
    ///
    /// # Errors
    /// [`CgroupError::File`].
    pub(crate) fn processes(&self) -> Result<Vec<i32>, CgroupError> {
        let mut pids = Vec::new();
        for directory in self.tree() {
            let path = directory.join("cgroup.procs");
            match fs::read_to_string(&path) {
                Ok(text) => pids.extend(text.lines().filter_map(|line| line.parse::<i32>().ok())),
                // A child group that went away meanwhile, or one of threads.
                Err(_) if directory != self.path => {}
                Err(source) => return Err(CgroupError::File { path, source }),
            }
        }
        Ok(pids)
    }

    /// This directory and all below, parents first.
    fn tree(&self) -> Vec<PathBuf> {
        let mut all = vec![self.path.clone()];
        let mut next = 0;
        while let Some(directory) = all.get(next).cloned() {
            next += 1;
            let Ok(entries) = fs::read_dir(&directory) else {
                continue;
            };
            all.extend(
                entries
                    .flatten()
                    .filter(|entry| entry.file_type().is_ok_and(|kind| kind.is_dir()))
                    .map(|entry| entry.path()),
            );
        }
        all
    }

    /// Freezes or thaws it and waits until the kernel says so.
    ///
    /// # Errors
    /// [`CgroupError::File`], [`CgroupError::Deadline`].
    pub(crate) fn freeze(&self, frozen: bool, deadline: Duration) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.freeze");
        fs::write(&path, if frozen { "1" } else { "0" }).map_err(file_error(&path))?;
        let (line, state) = if frozen {
            ("frozen 1", "frozen")
        } else {
            ("frozen 0", "thawed")
        };
        self.wait_for(line, state, deadline)
    }

    /// Kills every process in it and waits until none is left.
    ///
    /// # Errors
    /// [`CgroupError::File`], [`CgroupError::Deadline`].
    pub(crate) fn kill(&self, deadline: Duration) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.kill");
        match fs::write(&path, "1") {
            // The whole group is gone.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.map_err(file_error(&path))?,
        }
        self.wait_for("populated 0", "empty", deadline)
    }

    fn wait_for(&self, line: &str, state: &'static str, deadline: Duration) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let mut events = File::open(&path).map_err(file_error(&path))?;
        let end = Instant::now() + deadline;
        loop {
            let mut text = String::new();
            events.rewind().map_err(file_error(&path))?;
            events.read_to_string(&mut text).map_err(file_error(&path))?;
            if text.lines().any(|found| found == line) {
                return Ok(());
            }
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Err(CgroupError::Deadline {
                    path: self.path.clone(),
                    state,
                    seconds: deadline.as_secs(),
                });
            }
            let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
            // The kernel raises POLLPRI on every change of cgroup.events.
            let _ = poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLPRI)], timeout);
        }
    }

    /// How often the kernel killed something in it for want of memory.
    #[must_use]
    pub(crate) fn oom_kills(&self) -> u64 {
        self.read("memory.events")
            .ok()
            .and_then(|text| {
                text.lines()
                    .find_map(|line| line.strip_prefix("oom_kill ")?.parse().ok())
            })
            .unwrap_or(0)
    }

    /// Removes it and all groups below. One that is gone is success.
    ///
    /// # Errors
    /// [`CgroupError::File`], for example while a process is left in it.
    pub(crate) fn remove(&self) -> Result<(), CgroupError> {
        for directory in self.tree().iter().rev() {
            match fs::remove_dir(directory) {
                Err(source) if source.kind() != io::ErrorKind::NotFound => {
                    return Err(CgroupError::File {
                        path: directory.clone(),
                        source,
                    });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
