//! Undoing one acquired thing, from its journal entry alone.
//!
//! Owns: the way back for each kind of resource. Never: which ones (the journal's). Called by a live engine and
//! by processes with no memory of the acquisition.

use crate::journal::Resource;
use bulkhead_host::process::{marked, signal_exact, wait_gone};
use bulkhead_host::{cgroup, mount};
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::time::Duration;

/// How long a killed process may take to be gone, and a cgroup to be empty.
const END_DEADLINE: Duration = Duration::from_secs(20);

const SIGKILL: i32 = 9;

/// Undoes `resource`; what is not there any more is success.
///
/// # Errors
/// What the host says.
pub fn undo(resource: &Resource) -> io::Result<()> {
    match resource {
        Resource::Directory { path } => remove_tree(path),
        Resource::Cgroup { paths } => remove_cgroups(paths),
        Resource::Process {
            process: Some(process),
            ..
        } => end(process.pid, process.start_time),
        // Known by what its environment says: the start was not recorded.
        Resource::Process { role, process: None } => end_unrecorded(role),
        Resource::Claim { place, marker } => {
            if place.is_dir() {
                end_marked(marker, None)?;
            }
            remove_tree(place)
        }
        Resource::Mount { path, namespace, .. } => unmount(path, *namespace),
        Resource::Link { .. } | Resource::Redirect { .. } => super::network::undo(resource),
        Resource::RootMount { path, namespace, .. } => unmount_here(path, *namespace),
    }
}

fn end(pid: i32, start_time: u64) -> io::Result<()> {
    // Also of one that is ending: what it holds goes with its last thread.
    signal_exact(pid, start_time, SIGKILL).map_err(io::Error::other)?;
    reap(pid);
    if wait_gone(pid, start_time, END_DEADLINE).map_err(io::Error::other)? {
        return Ok(());
    }
    Err(io::Error::new(
        io::ErrorKind::TimedOut,
        format!("process {pid} is still there after SIGKILL"),
    ))
}

/// If it is our child and nobody watches it any more, its status is taken here.
fn reap(pid: i32) {
    let _ = nix::sys::wait::waitpid(
        nix::unistd::Pid::from_raw(pid),
        Some(nix::sys::wait::WaitPidFlag::WNOHANG),
    );
}

fn end_unrecorded(role: &str) -> io::Result<()> {
    // Only a supervisor between intent and record, or one that takes over, comes here: its own marker says
    // which sandbox it is.
    let Ok(mine) = std::env::var(bulkhead_host::process::MARKER) else {
        return Ok(());
    };
    let sandbox = mine.split('/').next().unwrap_or_default();
    end_marked(sandbox, Some(role))
}

/// Ends the processes that carry a sandbox's marker, or those of one role.
///
/// # Errors
/// The first process that could not be ended; the others are tried all the same.
pub fn end_marked(marker: &str, role: Option<&str>) -> io::Result<()> {
    let me = nix::unistd::getpid().as_raw();
    let mut first = Ok(());
    for (pid, start_time, value) in marked(None)? {
        let (sandbox, its_role) = value.split_once('/').unwrap_or((value.as_str(), ""));
        if sandbox != marker || role.is_some_and(|role| role != its_role) || pid == me {
            continue;
        }
        if let Err(error) = end(pid, start_time)
            && first.is_ok()
        {
            first = Err(error);
        }
    }
    first
}

/// The sandbox's own go with what is in them; those above them, which others may have moved into meanwhile, if nothing is.
fn remove_cgroups(paths: &[std::path::PathBuf]) -> io::Result<()> {
    let mut first = Ok(());
    for path in paths {
        let above = paths.iter().any(|other| other != path && other.starts_with(path));
        let removed = if above {
            cgroup::remove_if_empty(path).map(drop)
        } else {
            cgroup::remove(path, END_DEADLINE)
        };
        if let Err(error) = removed
            && first.is_ok()
        {
            first = Err(io::Error::other(error));
        }
    }
    first
}

/// In another namespace it ends with that namespace's last process.
fn unmount_here(path: &Path, namespace: (u64, u64)) -> io::Result<()> {
    let ours = std::fs::metadata("/proc/self/ns/mnt")?;
    if (ours.dev(), ours.ino()) == namespace {
        unmount_all(path)?;
    }
    Ok(())
}

fn unmount(path: &Path, namespace: (u64, u64)) -> io::Result<()> {
    unmount_here(path, namespace)?;
    // The empty mount point goes here.
    let removed = match std::fs::symlink_metadata(path) {
        Ok(meta) if meta.is_dir() => std::fs::remove_dir(path),
        Ok(_) => std::fs::remove_file(path),
        Err(error) => Err(error),
    };
    match removed {
        Err(error)
            if !matches!(
                error.kind(),
                io::ErrorKind::NotFound | io::ErrorKind::DirectoryNotEmpty
            ) =>
        {
            Err(error)
        }
        _ => Ok(()),
    }
}

/// Takes away every mount at `path`, the topmost first. The kernel is asked, not the mount table: that is as
/// long as there are mounts. A busy one is detached and goes when its last user lets go.
fn unmount_all(path: &Path) -> io::Result<()> {
    use nix::errno::Errno;
    use nix::mount::{MntFlags, umount2};
    let mut flags = MntFlags::UMOUNT_NOFOLLOW;
    loop {
        match umount2(path, flags) {
            Ok(()) => {}
            Err(Errno::EINVAL | Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if !flags.contains(MntFlags::MNT_DETACH) => flags |= MntFlags::MNT_DETACH,
            Err(errno) => return Err(errno.into()),
        }
    }
}

/// Removes a directory of ours; refuses while anything is mounted at or below it, since that would remove
/// what belongs to others.
fn remove_tree(path: &Path) -> io::Result<()> {
    let all = mount::read(None).map_err(io::Error::other)?;
    if let Some(mounted) = all.iter().find(|mount| mount.target.starts_with(path)) {
        return Err(io::Error::new(
            io::ErrorKind::ResourceBusy,
            format!(
                "{} is still mounted: expected nothing below {}",
                mounted.target.display(),
                path.display()
            ),
        ));
    }
    match std::fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_host::process::{Spawn, alive};
    use bulkhead_model::HostProcess;

    #[test]
    fn what_is_not_there_is_success() {
        undo(&Resource::Directory {
            path: "/run/bulkhead-absent/x".into(),
        })
        .unwrap();
        undo(&Resource::Cgroup {
            paths: vec!["/sys/fs/cgroup/absent/absent".into()],
        })
        .unwrap();
        let gone = HostProcess {
            pid: i32::MAX - 1,
            start_time: 1,
        };
        undo(&Resource::Process {
            role: "vmm".into(),
            process: Some(gone),
        })
        .unwrap();
        undo(&Resource::Mount {
            path: "/absent/m".into(),
            namespace: (0, 0),
            container: None,
        })
        .unwrap();
    }

    /// The sandbox was the first below a parent, in which there is another's by now: made, and not yet in use.
    #[test]
    fn the_cgroup_of_another_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let parent = dir.path().join("pods");
        let [own, other] = ["own", "other"].map(|name| parent.join(name));
        for made in [&own, &other] {
            std::fs::create_dir_all(made.join("below")).unwrap();
        }
        let resource = Resource::Cgroup {
            paths: vec![own.clone(), parent.clone()],
        };
        undo(&resource).unwrap();
        assert!(!own.exists() && other.join("below").exists());
        std::fs::remove_dir_all(&other).unwrap();
        undo(&resource).unwrap();
        assert!(!parent.exists());
    }

    /// One that another sandbox was faster to claim is at another place: it is left alone.
    #[test]
    fn a_claim_is_undone_where_it_was_made() {
        let dir = tempfile::tempdir().unwrap();
        let marker = format!("p-undo-{}", std::process::id());
        let child = Spawn::new("/bin/sleep")
            .arg("600")
            .env(bulkhead_host::process::MARKER, format!("{marker}/vmm"))
            .spawn()
            .unwrap()
            .child;
        let place = dir.path().join("n-s");
        let claim = Resource::Claim {
            place: place.clone(),
            marker,
        };
        undo(&claim).unwrap();
        assert!(child.try_wait().unwrap().is_none());
        std::fs::create_dir(&place).unwrap();
        std::fs::write(place.join("qmp"), "").unwrap();
        undo(&claim).unwrap();
        assert!(!alive(child.pid(), child.start_time()).unwrap());
        assert!(!place.exists());
    }

    #[test]
    fn a_process_is_ended_only_if_it_is_the_same() {
        let child = Spawn::new("/bin/sleep").arg("600").spawn().unwrap().child;
        let other = HostProcess {
            pid: child.pid(),
            start_time: child.start_time() + 1,
        };
        undo(&Resource::Process {
            role: "vmm".into(),
            process: Some(other),
        })
        .unwrap();
        assert!(
            child.try_wait().unwrap().is_none(),
            "another process's entry must not end this one"
        );
        let same = HostProcess {
            pid: child.pid(),
            start_time: child.start_time(),
        };
        undo(&Resource::Process {
            role: "vmm".into(),
            process: Some(same),
        })
        .unwrap();
        assert!(!alive(same.pid, same.start_time).unwrap());
    }
}
