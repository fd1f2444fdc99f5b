//! The shared-filesystem daemon as a child: this binary again, by its hidden verb `fsd`.
//!
//! Owns: its start and the watch on its end. Never: the file system itself. Called by the real host.

use crate::platform::{Daemon, FsdLaunch};
use async_trait::async_trait;
use bulkhead_host::process::{Child, MARKER, Spawn};
use bulkhead_model::HostProcess;
use bulkhead_model::vm::SharedFs;
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
    let SharedFs::VirtioFs { daemon: None, cache, .. } = &launch.shared_fs else {
        return Err(io::Error::new(
            io::ErrorKind::Unsupported,
            format!("shared file system {:?}: expected virtio-fs with the built-in daemon", launch.shared_fs),
        ));
    };
    let mut spawn = Spawn::new("/proc/self/exe")
        .args(["fsd", "--socket-fd", "3", "--cache", cache, "--shared-dir"])
        .arg(&launch.share)
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
    let process = HostProcess { pid: started.child.pid(), start_time: started.child.start_time() };
    let (sender, ended) = watch::channel(false);
    let pidfd: OwnedFd = started.child.as_fd().try_clone_to_owned()?;
    tokio::spawn(watch_end(started.child, pidfd, sender));
    Ok(Box::new(RunningDaemon { process, ended }))
}

async fn watch_end(child: Child, pidfd: OwnedFd, ended: watch::Sender<bool>) {
    // A pidfd that epoll refuses cannot be watched; then the VM's end is what ends the daemon.
    if let Ok(watched) = AsyncFd::new(pidfd) {
        let _ = watched.readable().await;
        match child.try_wait() {
            Ok(exit) => tracing::info!(?exit, "the shared-filesystem daemon ended"),
            Err(error) => tracing::warn!(%error, "reaping the shared-filesystem daemon"),
        }
        ended.send_replace(true);
    }
}
