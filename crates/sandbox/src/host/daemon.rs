//! The shared-filesystem daemon as a child: this binary again, by its hidden verb `fsd`, or another virtiofsd.
//!
//! Owns: its start and the watch on its end. Never: the file system itself. Called by the real host.

use crate::platform::{Daemon, FsdLaunch};
use async_trait::async_trait;
use bulkhead_host::process::{Child, MARKER, Spawn, open_exact};
use bulkhead_model::HostProcess;
use bulkhead_model::vm::SharedFs;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;

struct RunningDaemon {
    process: HostProcess,
    ended: watch::Receiver<bool>,
}

#[async_trait]
impl Daemon for RunningDaemon {
    fn process(&self) -> HostProcess {
        self.process
    }

    async fn exited(&self) {
        // An error means that the watching task is gone, which it is only after the end.
        let _ = self.ended.clone().wait_for(|ended| *ended).await;
    }
}

/// Starts it.
pub(super) fn spawn(launch: FsdLaunch) -> io::Result<Box<dyn Daemon>> {
    let SharedFs::VirtioFs { daemon, cache, .. } = &launch.shared_fs else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("shared file system {:?}: expected virtio-fs", launch.shared_fs),
        ));
    };
    let spawn = match daemon {
        None => Spawn::new("/proc/self/exe")
            .args(["fsd", "--socket-fd", "3", "--cache", cache, "--shared-dir"])
            .arg(&launch.share)
            .args(launch.plain.then_some("--plain")),
        Some(program) => Spawn::new(program)
            .args(["--fd=3", "-o"])
            .arg(options(&launch, cache)),
    };
    let mut spawn = spawn
        .env(MARKER, &launch.marker)
        .fd(launch.listener, 3)
        .fd(launch.stderr, 2)
        .new_session();
    for procs in launch.cgroup_procs {
        spawn = spawn.cgroup(procs);
    }
    let started = spawn.spawn().map_err(io::Error::other)?;
    for refused in &started.cgroup_refusals {
        tracing::warn!(path = %refused.path.display(), error = %refused.source, "the daemon could not join a cgroup");
    }
    let process = HostProcess {
        pid: started.child.pid(),
        start_time: started.child.start_time(),
    };
    let pidfd = started.child.as_fd().try_clone_to_owned()?;
    watched(process, Some(started.child), pidfd)
}

/// Options of virtiofsd(1), in the form that both its C and its Rust versions take. In a chroot of this mount
/// namespace it sees what is bound into the share later.
fn options(launch: &FsdLaunch, cache: &str) -> OsString {
    let cache = if cache == "never" { "none" } else { cache };
    let mut options = OsString::from("source=");
    options.push(&launch.share);
    options.push(format!(",cache={cache},sandbox=chroot,xattr"));
    options
}

/// Watches one that an earlier supervisor started: whoever is its parent now reaps it.
pub(super) fn adopt(process: HostProcess) -> io::Result<Box<dyn Daemon>> {
    let pidfd = open_exact(process.pid, process.start_time).map_err(io::Error::other)?;
    watched(process, None, pidfd)
}

fn watched(process: HostProcess, child: Option<Child>, pidfd: OwnedFd) -> io::Result<Box<dyn Daemon>> {
    let pidfd = AsyncFd::new(pidfd)?;
    let (sender, ended) = watch::channel(false);
    tokio::spawn(async move {
        // A pidfd is readable from its process's end on.
        let _ = pidfd.readable().await;
        match child.as_ref().map(Child::try_wait) {
            Some(Err(error)) => tracing::warn!(%error, "reaping the shared-filesystem daemon"),
            exit => tracing::info!(?exit, "the shared-filesystem daemon ended"),
        }
        sender.send_replace(true);
    });
    Ok(Box::new(RunningDaemon { process, ended }))
}
