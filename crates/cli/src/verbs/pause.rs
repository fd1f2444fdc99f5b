//! `pause`: freezes all processes of a container (C-21).

use super::Outcome;
use crate::context::{CALL, Context};
use bulkhead_model::{Failure, FailureKind, State};
use bulkhead_sandbox::Command;
use clap::Args;

/// Options of `pause`.
#[derive(Debug, Args)]
pub(crate) struct Pause {
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Pause {
    /// Runs the verb.
    ///
    /// # Errors
    /// A container that is not running.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut found = context.find(&self.id)?;
        let state = found.container.state;
        if state != State::Running {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                format!("container not running: {} is {}", found.id, state.oci_name()),
            ));
        }
        found.done(&Command::Pause { id: found.id.clone() }, CALL)?;
        Ok(0)
    }
}
