//! exec (C-16).

use super::create::Attachment;
use crate::container::Process;
use crate::error::SandboxError;
use crate::world::World;
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ProcessKey, State, oci};

impl World {
    /// Starts a further process: sandbox running, container ready or running.
    ///
    /// # Errors
    /// State errors, a taken exec id, the agent's.
    pub async fn exec(
        &mut self,
        key: &ProcessKey,
        process: &oci::Process,
        attachment: Option<Attachment>,
    ) -> Result<(), SandboxError> {
        self.must_run("exec")?;
        let live = self.live()?;
        let Some(exec) = &key.exec else {
            return Err(SandboxError::Invalid {
                what: "exec id",
                value: "none".into(),
                expected: "an id unique in the container",
            });
        };
        let container = self.container(&key.container)?;
        if !matches!(container.state(), State::Ready | State::Running) {
            return Err(SandboxError::ContainerState {
                operation: "exec in",
                state: container.state(),
                expected: "created or running",
            });
        }
        if container.execs.get(exec).is_some_and(|old| !old.delivered) {
            return Err(SandboxError::InUse {
                what: "exec",
                id: exec.to_string(),
            });
        }
        let mut record = Process::default();
        self.connect(&mut record, attachment)?;
        let json = serde_json::to_vec(process).map_err(|e| SandboxError::Host {
            step: "encoding the process",
            path: None,
            source: e.into(),
        })?;
        self.settled = false;
        let starting = self.timeline.span(Lane::Supervisor, "start it in the guest");
        record.guest_pid = Some(live.guest.exec(key, json, record.stdio).await?);
        self.timeline.answered(starting, live.guest.take_steps());
        self.pending.clear();
        record.started_ns = Some(self.platform.now_ns());
        let stdio = record.stdio;
        let container = self.container_mut(&key.container)?;
        container.execs.insert(exec.clone(), record);
        container.forget_old_execs();
        self.watch(key.clone(), stdio)?;
        self.save()?;
        self.publish();
        Ok(())
    }
}
