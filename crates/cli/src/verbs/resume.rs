//! `resume`: thaws all processes of a container (C-21).

use super::Outcome;
use crate::context::{CALL, Context};
use bulkhead_model::{Failure, FailureKind, State};
use bulkhead_sandbox::Command;
use clap::Args;

/// Options of `resume`.
#[derive(Debug, Args)]
pub(crate) struct Resume {
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Resume {
    /// Runs the verb.
    ///
    /// # Errors
    /// A container that is not paused.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut found = context.find(&self.id)?;
        let state = found.container.state;
        if state != State::Paused {
            return Err(Failure::new(
                FailureKind::FailedPrecondition,
                format!("container not paused: {} is {}", found.id, state.oci_name()),
            ));
        }
        found.done(&Command::Resume { id: found.id.clone() }, CALL)?;
        Ok(0)
    }
}
