//! The container that stands for a pod: a process on the host in the pod's network namespace, and nothing in the guest.
//!
//! Its pid is what engines look the pod's namespaces up by (`/proc/<pid>/ns/net`). It does nothing and any deadly
//! signal ends it.
//!
//! Owns: that process. Never: the pod's VM, which is the sandbox's. Called by the task service.

use bulkhead_host::netns::Netns;
use bulkhead_host::process::{Child, Code, Exit, MARKER, Namespace, Spawn};
use bulkhead_model::{ExitStatus, Failure, FailureKind, NetworkPlan};
use std::io;
use std::os::fd::AsFd;
use std::process::ExitCode;
use std::time::Duration;
use tokio::io::unix::AsyncFd;

/// A killed process is gone at once unless the kernel holds it.
const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// Runs the hidden verb `pause`: until a signal ends it.
#[must_use]
pub fn main() -> ExitCode {
    // It is for nothing but its namespaces.
    if let Ok(code) = Code::of_this_process() {
        code.forget();
    }
    loop {
        nix::unistd::pause();
    }
}

/// The process. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Pause {
    child: Child,
}

impl Pause {
    /// Starts it in the namespaces of the pod.
    ///
    /// # Errors
    /// A network namespace that cannot be entered, by its path.
    pub(super) fn start(network: &NetworkPlan, marker: &str) -> Result<Self, Failure> {
        let mut spawn = Spawn::new("/proc/self/exe")
            .arg("pause")
            .env(MARKER, format!("{marker}/pause"))
            .directory("/")
            .new_session()
            .unshare(Namespace::Ipc)
            .unshare(Namespace::Uts);
        spawn = match network {
            NetworkPlan::Existing { path } => {
                let netns =
                    Netns::open(path).map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
                let fd = netns
                    .to_fd()
                    .map_err(|e| Failure::new(FailureKind::Internal, format!("{}: {e}", path.display())))?;
                spawn.enter(Namespace::Network, fd)
            }
            NetworkPlan::New => spawn.unshare(Namespace::Network),
            NetworkPlan::None => spawn,
        };
        let started = spawn
            .spawn()
            .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))?;
        Ok(Self { child: started.child })
    }

    /// Its pid.
    pub(super) fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Sends it a signal.
    ///
    /// # Errors
    /// What pidfd_send_signal(2) reports.
    pub(super) fn signal(&self, signal: i32) -> io::Result<()> {
        self.child.signal(signal)
    }

    /// Waits for its end. Needs a tokio runtime with I/O.
    ///
    /// # Errors
    /// What epoll and waitid(2) report.
    pub(super) async fn ended(&self) -> io::Result<ExitStatus> {
        let pidfd = AsyncFd::new(self.child.as_fd().try_clone_to_owned()?)?;
        loop {
            let mut ready = pidfd.readable().await?;
            match self.child.try_wait()? {
                Some(Exit::Code(code)) => return Ok(ExitStatus::Code(u8::try_from(code).unwrap_or(u8::MAX))),
                Some(Exit::Signal(signal)) => {
                    return Ok(ExitStatus::Signal(u8::try_from(signal).unwrap_or(u8::MAX)));
                }
                None => ready.clear_ready(),
            }
        }
    }
}

impl Drop for Pause {
    fn drop(&mut self) {
        // One that has ended already is success; one the kernel does not let die carries the sandbox's marker.
        let _ = self.child.kill_and_wait(KILL_DEADLINE);
    }
}
