//! `state`: the OCI state as JSON.

use super::{Outcome, print_json};
use crate::context::Context;
use crate::oci_state::OciState;
use clap::Args;

/// Options of `state`.
#[derive(Debug, Args)]
pub(crate) struct State {
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl State {
    /// Runs the verb.
    ///
    /// # Errors
    /// An unknown id.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        print_json(&OciState::of(&context.find(&self.id)?.container))
    }
}
