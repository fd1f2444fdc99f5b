//! The VMM process: watched by pidfd, ended by SIGKILL.
//!
//! ```text
//!  running ──pidfd readable──► reaped (if our child) ──standard error drained──► exit published
//! ```
//!
//! Owns: the wait for the end. Never: ends the process unasked, except a start that is given up halfway
//! ([`Starting`]). Called by `launch` and `instance`.

use super::stderr::StderrTail;
use crate::{VmExit, VmmError};
use bulkhead_host::process::{self, Child, Exit, IdentityError};
use bulkhead_model::HostProcess;
use nix::libc::SIGKILL;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::watch;
use tokio::task::JoinHandle;

/// How long after the end of the process its last words may take to arrive.
const DRAIN: Duration = Duration::from_secs(2);

/// A VMM process somebody watches.
#[derive(Debug)]
pub(super) struct VmmProcess {
    identity: HostProcess,
    exit: watch::Receiver<Option<VmExit>>,
    stderr: StderrTail,
}

impl VmmProcess {
    /// Watches a child of ours. Must be called in a tokio runtime.
    pub(super) fn of_child(child: Arc<Child>, stderr: (StderrTail, JoinHandle<()>)) -> io::Result<Self> {
        let pidfd = child.as_fd().try_clone_to_owned()?;
        let identity = HostProcess {
            pid: child.pid(),
            start_time: child.start_time(),
        };
        Self::watch(identity, pidfd, stderr, move || match child.try_wait() {
            Ok(Some(Exit::Code(code))) => VmExit::Code(code),
            Ok(Some(Exit::Signal(signal))) => VmExit::Signal(signal),
            Ok(None) | Err(_) => VmExit::Unknown,
        })
    }

    /// Watches a process somebody else started.
    pub(super) fn of_stranger(
        identity: HostProcess,
        stderr: (StderrTail, JoinHandle<()>),
    ) -> io::Result<Self> {
        let pidfd = process::open_exact(identity.pid, identity.start_time).map_err(|error| match error {
            IdentityError::Kernel { source, .. } => source,
            gone @ (IdentityError::Gone { .. } | IdentityError::NotAPid { .. }) => {
                io::Error::new(io::ErrorKind::NotFound, gone)
            }
        })?;
        Self::watch(identity, pidfd, stderr, || VmExit::Unknown)
    }

    fn watch(
        identity: HostProcess,
        pidfd: OwnedFd,
        (stderr, draining): (StderrTail, JoinHandle<()>),
        reap: impl FnOnce() -> VmExit + Send + 'static,
    ) -> io::Result<Self> {
        let pidfd = AsyncFd::with_interest(pidfd, Interest::READABLE)?;
        let (tx, exit) = watch::channel(None);
        tokio::spawn(async move {
            if let Err(error) = pidfd.readable().await {
                tracing::error!(%error, pid = identity.pid, "waiting for the VMM");
            }
            let exit = reap();
            let _ = tokio::time::timeout(DRAIN, draining).await;
            tracing::debug!(pid = identity.pid, ?exit, "the VMM ended");
            let _ = tx.send(Some(exit));
        });
        Ok(Self {
            identity,
            exit,
            stderr,
        })
    }

    pub(super) fn identity(&self) -> HostProcess {
        self.identity
    }

    /// Waits for the end; any number of callers.
    pub(super) async fn exited(&self) -> VmExit {
        match self.exit.clone().wait_for(Option::is_some).await {
            Ok(exit) => exit.unwrap_or(VmExit::Unknown),
            // The watcher went away with the runtime.
            Err(_) => VmExit::Unknown,
        }
    }

    /// The error for "it ended while it was needed".
    pub(super) fn ended(&self, step: &'static str, exit: VmExit) -> VmmError {
        VmmError::Ended {
            step,
            exit,
            stderr: self.stderr.text(),
        }
    }

    /// SIGKILL, then waits until it is reaped.
    pub(super) async fn kill(&self, deadline: Duration) -> Result<(), VmmError> {
        let HostProcess { pid, start_time } = self.identity;
        let step = "killing the VMM";
        process::signal_exact(pid, start_time, SIGKILL).map_err(|error| VmmError::Io {
            step,
            source: io::Error::other(error),
        })?;
        tokio::time::timeout(deadline, self.exited())
            .await
            .map_err(|_| VmmError::Deadline { step, deadline })?;
        Ok(())
    }
}

/// Ends a VMM whose start is given up, by an error or because the caller's future was dropped.
#[derive(Debug)]
pub(super) struct Starting {
    child: Arc<Child>,
    given_up: bool,
}

impl Starting {
    pub(super) fn new(child: Child) -> Self {
        Self {
            child: Arc::new(child),
            given_up: true,
        }
    }

    pub(super) fn child(&self) -> Arc<Child> {
        Arc::clone(&self.child)
    }

    /// The start succeeded.
    pub(super) fn done(mut self) {
        self.given_up = false;
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if self.given_up {
            // Stopped CPUs and no device yet: it dies at once. The limit only keeps a broken host from
            // blocking us.
            let _ = self.child.kill_and_wait(Duration::from_secs(5));
        }
    }
}
