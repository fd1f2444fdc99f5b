//! pause and resume (C-21).

use crate::error::SandboxError;
use crate::world::World;
use bulkhead_model::{ContainerId, State};

impl World {
    /// Freezes a running container.
    ///
    /// # Errors
    /// State errors, the agent's.
    pub async fn pause(&mut self, id: &ContainerId) -> Result<(), SandboxError> {
        self.must_run("pause")?;
        self.expect_state(id, "pause", State::Running, "running")?;
        self.live()?.guest.pause(id).await?;
        self.container_mut(id)?.advance(State::Paused)?;
        self.save()?;
        self.publish();
        Ok(())
    }

    /// Thaws a paused container.
    ///
    /// # Errors
    /// State errors, the agent's.
    pub async fn resume(&mut self, id: &ContainerId) -> Result<(), SandboxError> {
        self.must_run("resume")?;
        self.expect_state(id, "resume", State::Paused, "paused")?;
        self.live()?.guest.resume(id).await?;
        self.container_mut(id)?.advance(State::Running)?;
        self.save()?;
        self.publish();
        Ok(())
    }

    fn expect_state(
        &self,
        id: &ContainerId,
        operation: &'static str,
        wanted: State,
        expected: &'static str,
    ) -> Result<(), SandboxError> {
        let state = self.container(id)?.state();
        if state == wanted {
            return Ok(());
        }
        Err(SandboxError::ContainerState {
            operation,
            state,
            expected,
        })
    }
}
