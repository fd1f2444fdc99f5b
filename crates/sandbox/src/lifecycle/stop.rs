//! stop (C-13).

use crate::error::SandboxError;
use crate::world::{World, libc_sigkill};
use bulkhead_model::{ContainerId, ExitStatus, ProcessKey, State};

impl World {
    /// Stops a container. Already stopped: success, nothing done. An illegal move: an error before anything
    /// is done. Without `force` the first failure is returned; with it every step runs.
    ///
    /// # Errors
    /// See above; under force only a failure to record `stopped`.
    pub async fn stop(&mut self, id: &ContainerId, force: bool) -> Result<(), SandboxError> {
        let container = self.container(id)?;
        if container.state() == State::Stopped {
            return Ok(());
        }
        container.state().moved(State::Stopped)?;
        let key = ProcessKey {
            container: id.clone(),
            exec: None,
        };
        let mut first: Option<SandboxError> = None;
        if let Ok(live) = self.live() {
            // These two never count.
            if let Err(error) = live.guest.signal(&key, libc_sigkill(), true).await {
                tracing::debug!(%error, container = %id, "stop: killing all processes");
            }
            let waited = tokio::time::timeout(super::KILL_DEADLINE, live.guest.wait(&key)).await;
            if !matches!(waited, Ok(Ok(_))) {
                tracing::debug!(?waited, container = %id, "stop: waiting for the exit");
            }
            if let Err(error) = live.guest.remove_container(id).await {
                tracing::warn!(%error, container = %id, "stop: the agent");
                first.get_or_insert(error.into());
            }
        }
        if (first.is_none() || force) && !self.unshare(id) {
            first.get_or_insert(SandboxError::Host {
                step: "taking the container's files out of the share",
                path: None,
                source: std::io::Error::other("see the sandbox log"),
            });
        }
        if let Some(error) = first
            && !force
        {
            self.save_logged();
            return Err(error);
        }
        let now = self.platform.now_ns();
        let container = self.container_mut(id)?;
        if container.state() != State::Stopped {
            container.advance(State::Stopped)?;
        }
        if container.init.exit.is_none() {
            container.init.exit = Some(ExitStatus::Signal(libc_sigkill() as u8));
            container.init.exited_ns = Some(now);
        }
        self.save()?;
        self.publish();
        Ok(())
    }
}
