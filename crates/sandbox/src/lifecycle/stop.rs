//! stop (C-13).
//!
//! ```text
//!  SIGKILL all, wait (never count) ─► agent ─► host mounts ─► rootfs ─► vCPUs ─► state = stopped ─► save
//!                                       └── first failure: returned; under force every step runs
//! ```
//! The agent lets go of what it knows of the share before the host unmounts it, so that nothing stale stays in
//! the guest.
//!
//! With patience (C-14) a wait comes before, and the stub's end after:
//!
//! ```text
//!  wait ─ in time ──────────────────────► its exit ─► output delivered ─► stop ─► stub ended, else killed
//!      └─ not ─► SIGKILL all, wait again ─┘   └─ any failure ─────────────────────┘
//! ```

use super::sharing::Part;
use crate::command::Notice;
use crate::error::SandboxError;
use crate::journal::Resource;
use crate::size::Surplus;
use crate::world::{World, libc_sigkill};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, ExitStatus, ProcessKey, Share, State};
use std::time::Duration;

/// How long the last output of a process may take to reach its sinks.
const OUTPUT_DEADLINE: Duration = Duration::from_secs(10);

/// How long a stub may take to end once it was told how its process did.
const STUB_DEADLINE: Duration = Duration::from_secs(5);

impl World {
    /// Stops a container. Already stopped: success, nothing done. An illegal move: an error before anything
    /// is done. Without `force` the first failure is returned; with it every step runs. The state is saved
    /// whatever happened.
    ///
    /// # Errors
    /// See above; under force only a failure to record `stopped`.
    pub async fn stop(&mut self, id: &ContainerId, force: bool) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        if container.state() == State::Stopped {
            return Ok(());
        }
        container.state().moved(State::Stopped)?;
        if let Err(error) = self.release(id, force).await {
            self.save_logged();
            self.publish();
            return Err(error);
        }
        let now = self.platform.now_ns();
        let container = self.container_mut(id)?;
        // Its exit may have been recorded meanwhile.
        if container.state() != State::Stopped {
            container.advance(State::Stopped)?;
        }
        if container.init.exit.is_none() {
            container.init.exit = Some(ExitStatus::Signal(libc_sigkill() as u8));
            container.init.exited_ns = Some(now);
        }
        let saved = self.save();
        self.publish();
        saved
    }

    /// Gives a container's process `patience` to end by itself, kills it if it does not, then stops the container.
    /// On every way out no process on the host stands for it any more (C-14).
    ///
    /// # Errors
    /// A sandbox that is neither ready nor running, an illegal move, then what [`Self::stop`] reports.
    pub(crate) async fn stop_patiently(
        &mut self,
        id: &ContainerId,
        patience: Duration,
    ) -> Result<(), SandboxError> {
        if !matches!(self.state, State::Ready | State::Running) {
            return Err(SandboxError::SandboxState {
                operation: "stop",
                id: self.plan.id.clone(),
                state: self.state,
            });
        }
        let container = self.container(id)?;
        if container.state() != State::Stopped {
            container.state().moved(State::Stopped)?;
            self.see_it_end(id, patience).await;
        }
        let stopped = self.stop(id, false).await;
        self.end_stub_of(id).await;
        stopped
    }

    /// Waits for the end of a container's process, which is helped along when it takes longer than `patience`, and
    /// for the last of its output.
    async fn see_it_end(&mut self, id: &ContainerId, patience: Duration) {
        let Ok(live) = self.live() else { return };
        let key = ProcessKey {
            container: id.clone(),
            exec: None,
        };
        let exit = match tokio::time::timeout(patience, live.guest.wait(&key)).await {
            Ok(exit) => exit.ok(),
            Err(_) => {
                tracing::info!(container = %id, ?patience, "stop: it did not end by itself");
                if let Err(error) = live.guest.signal(&key, libc_sigkill(), true).await {
                    tracing::warn!(%error, container = %id, "stop: killing all processes");
                }
                let waited = tokio::time::timeout(super::KILL_DEADLINE, live.guest.wait(&key)).await;
                waited.ok().and_then(Result::ok)
            }
        };
        let Some(exit) = exit else {
            tracing::warn!(container = %id, "stop: its end was not seen");
            return;
        };
        let now = self.platform.now_ns();
        let Some(process) = self.containers.get_mut(id).map(|container| &mut container.init) else {
            return;
        };
        // Its state is for the stop that follows: what is stopped already would keep what it holds.
        process.exit.get_or_insert(exit.status);
        process.exited_ns.get_or_insert(now);
        let stdio = process.stdio;
        let output = async {
            // A sink that is gone takes nothing: that is not ours to report.
            let _ = live.guest.delivered(stdio.stdout, exit.stdout_offset).await;
            let _ = live.guest.delivered(stdio.stderr, exit.stderr_offset).await;
        };
        if tokio::time::timeout(OUTPUT_DEADLINE, output).await.is_err() {
            tracing::warn!(container = %id, "stop: nobody takes the last of its output");
        }
    }

    /// Tells the stub of a container's process how that ended, and kills it if that does not end it.
    async fn end_stub_of(&mut self, id: &ContainerId) {
        let Some(process) = self.containers.get(id).map(|container| &container.init) else {
            return;
        };
        let Some(stub) = process.host else { return };
        if let Some(status) = process.exit {
            process.tell(Notice::Exited { status });
        }
        if self.platform.ended(stub, STUB_DEADLINE).await {
            return;
        }
        let stub = Resource::Process {
            role: "stub".into(),
            process: Some(stub),
        };
        if let Err(error) = self.undo(stub).await {
            tracing::error!(%error, container = %id, "stop: ending its stub");
        }
    }

    /// What it holds in the guest and on the host.
    async fn release(&mut self, id: &ContainerId, force: bool) -> Result<(), SandboxError> {
        let counts = |step: &'static str, result: Result<(), SandboxError>| match result {
            Err(error) if force => {
                tracing::warn!(%error, container = %id, "stop: {step}");
                Ok(())
            }
            other => other,
        };
        if let Ok(live) = self.live() {
            let key = ProcessKey {
                container: id.clone(),
                exec: None,
            };
            // These two never count.
            let killing = self.timeline.span(Lane::Guest, "kill its processes");
            if let Err(error) = live.guest.signal(&key, libc_sigkill(), true).await {
                tracing::debug!(%error, container = %id, "stop: killing all processes");
            }
            let waited = tokio::time::timeout(super::KILL_DEADLINE, live.guest.wait(&key)).await;
            if !matches!(waited, Ok(Ok(_))) {
                tracing::debug!(?waited, container = %id, "stop: waiting for the exit");
            }
            drop(killing);
            let removing = self.timeline.span(Lane::Supervisor, "remove it in the guest");
            let removed = live.guest.remove_container(id).await.map_err(SandboxError::from);
            self.timeline.answered(removing, live.guest.take_steps());
            counts("the agent", removed)?;
        }
        let unsharing = self.timeline.span(Lane::Supervisor, "unbind its shares");
        let unmounted = self.unshare_part(id, Part::Mounts).await;
        counts("unmounting host mounts", unmounted)?;
        let unshared = self.unshare_part(id, Part::Rootfs).await;
        counts("unsharing the rootfs", unshared)?;
        drop(unsharing);
        if self.live().is_err() {
            return Ok(());
        }
        let _fitting = self.timeline.span(Lane::Supervisor, "fit the VM's size");
        let fitted = self.fit(Some((id, Share::default())), Surplus::Keep).await;
        counts("removing vCPUs", fitted)
    }
}
