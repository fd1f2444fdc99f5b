//! A fresh supervisor in place of a dead one (C-09).
//!
//! ```text
//!  saved state ─► VM alive? ─ yes ─► QMP, agent (new epoch) ─► processes watched again, stubs attach anew
//!                           └ no ──► every process killed, containers stopped; delete and state answer
//! ```
//!
//! Owns: the way back from saved state and journal. Never: a boot. Called once, before the engine's task.

use crate::container::Container;
use crate::error::SandboxError;
use crate::journal::Resource;
use crate::saved::{SavedError, SavedSandbox};
use crate::world::World;
use bulkhead_model::State;
use bulkhead_model::snapshot::Phase;

impl World {
    /// Restores what the last supervisor left.
    ///
    /// # Errors
    /// [`SandboxError::Gone`] when nothing was saved: whatever the journal held has been undone then. Any
    /// other failure to read the state is returned as it is.
    pub async fn recover(&mut self) -> Result<(), SandboxError> {
        let path = self.paths.state();
        let saved = match SavedSandbox::read(&path) {
            Ok(saved) => saved,
            Err(SavedError::Absent { .. }) => {
                tracing::warn!("nothing was saved: undoing what was begun");
                self.tear_down().await;
                return Err(SandboxError::Gone {
                    id: self.plan.id.clone(),
                });
            }
            Err(error) => {
                return Err(SandboxError::Host {
                    step: "restoring",
                    path: Some(path),
                    source: std::io::Error::other(error),
                });
            }
        };
        self.next_stream = saved.next_stream;
        self.state = saved.state;
        self.phase = saved.phase;
        for (id, one) in saved.containers {
            let mut container = Container::restored(
                one.plan,
                one.state,
                one.shares,
                one.init.restore(),
                one.created_ns,
            );
            container.execs = one.execs.into_iter().map(|(id, p)| (id, p.restore())).collect();
            self.containers.insert(id, container);
        }
        self.end_leftovers();
        self.save()?;
        self.publish();
        Ok(())
    }

    /// Without a connection to the VM nothing of it may go on running.
    fn end_leftovers(&mut self) {
        for (entry, resource) in self.journal.held() {
            if !matches!(resource, Resource::Process { .. }) {
                continue;
            }
            match self.platform.undo(&resource) {
                Ok(()) => {
                    if let Err(error) = self.journal.release(entry) {
                        tracing::error!(%error, "writing the journal");
                    }
                }
                Err(error) => tracing::error!(%error, ?resource, "undoing"),
            }
        }
        self.state = State::Stopped;
        self.phase = Phase::Gone;
        self.all_exited();
    }
}
