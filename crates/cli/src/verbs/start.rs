//! `start`: lets the process of a created container run (C-12), then the poststart hooks (K-06).

use super::Outcome;
use crate::context::{CALL, Context};
use bulkhead_model::{ContainerSnapshot, Failure, FailureKind, ProcessKey, State};
use bulkhead_sandbox::Command;
use bulkhead_shim::hooks::HookKind;
use clap::Args;

/// Options of `start`.
#[derive(Debug, Args)]
pub(crate) struct Start {
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Start {
    /// Runs the verb.
    ///
    /// # Errors
    /// A container that is not in state created, a program that cannot be started, a failed poststart hook.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut found = context.find(&self.id)?;
        startable(&found.container)?;
        let key = ProcessKey {
            container: found.id.clone(),
            exec: None,
        };
        context.watch.tell(&mut found.client, "start", &key, false);
        found.done(&Command::Start { id: found.id.clone() }, CALL)?;
        let mut container = found.container;
        container.state = State::Running;
        context.run_hooks(HookKind::Poststart, &container);
        context.watch.tell(&mut found.client, "start", &key, true);
        Ok(0)
    }
}

fn startable(container: &ContainerSnapshot) -> Result<(), Failure> {
    let why = match container.state {
        State::Ready => return Ok(()),
        State::Running | State::Paused => "cannot start an already running container",
        State::Stopped => "cannot start a container that has stopped",
    };
    Err(Failure::new(
        FailureKind::FailedPrecondition,
        format!("{why}: {}", container.id),
    ))
}
