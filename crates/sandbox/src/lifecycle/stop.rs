//! stop (C-13).
//!
//! ```text
//!  SIGKILL all, wait (never count) ─► agent ─► host mounts ─► rootfs ─► vCPUs ─► state = stopped ─► save
//!                                       └── first failure: returned; under force every step runs
//! ```
//! The agent lets go of what it knows of the share before the host unmounts it, so that nothing stale stays in
//! the guest.

use super::sharing::Part;
use crate::error::SandboxError;
use crate::size::Surplus;
use crate::world::{World, libc_sigkill};
use bulkhead_model::{ContainerId, ExitStatus, ProcessKey, Share, State};

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
            if let Err(error) = live.guest.signal(&key, libc_sigkill(), true).await {
                tracing::debug!(%error, container = %id, "stop: killing all processes");
            }
            let waited = tokio::time::timeout(super::KILL_DEADLINE, live.guest.wait(&key)).await;
            if !matches!(waited, Ok(Ok(_))) {
                tracing::debug!(?waited, container = %id, "stop: waiting for the exit");
            }
            let removed = live.guest.remove_container(id).await.map_err(SandboxError::from);
            counts("the agent", removed)?;
        }
        let unmounted = self.unshare_part(id, Part::Mounts).await;
        counts("unmounting host mounts", unmounted)?;
        let unshared = self.unshare_part(id, Part::Rootfs).await;
        counts("unsharing the rootfs", unshared)?;
        if self.live().is_err() {
            return Ok(());
        }
        let fitted = self.fit(Some((id, Share::default())), Surplus::Keep).await;
        counts("removing vCPUs", fitted)
    }
}
