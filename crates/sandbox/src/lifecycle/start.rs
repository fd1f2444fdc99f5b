//! start (C-12).

use crate::error::SandboxError;
use crate::world::World;
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, State};

impl World {
    /// Lets a container's process run: sandbox running, container ready. If the agent fails, the container is
    /// force-stopped and the start error returned.
    ///
    /// # Errors
    /// State errors and the agent's.
    pub async fn start(&mut self, id: &ContainerId) -> Result<(), SandboxError> {
        self.must_run("start")?;
        let live = self.live()?;
        let state = self.container(id)?.state();
        if state != State::Ready {
            return Err(SandboxError::ContainerState {
                operation: "start",
                state,
                expected: "created and not started",
            });
        }
        // Engines that fill the namespace between create and start expect the program to find it filled.
        self.sync_network().await?;
        let starting = self.timeline.span(Lane::Supervisor, "start it in the guest");
        let started = live.guest.start_container(id).await;
        self.timeline.answered(starting, live.guest.take_steps());
        if let Err(error) = started {
            if let Err(stop) = self.stop(id, true).await {
                tracing::error!(error = %stop, container = %id, "stopping after a failed start");
            }
            return Err(error.into());
        }
        let now = self.platform.now_ns();
        let container = self.container_mut(id)?;
        container.init.started_ns = Some(now);
        container.advance(State::Running)?;
        self.save()?;
        self.publish();
        self.order_template();
        Ok(())
    }

    /// Once the first container runs: making a template is not to delay it.
    pub(crate) fn order_template(&mut self) {
        if std::mem::take(&mut self.order_template)
            && let Err(error) = self.platform.order_template(&self.plan)
        {
            tracing::warn!(%error, "having a template made");
        }
    }
}
