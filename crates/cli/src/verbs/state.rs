//! `state`: the OCI state as JSON.

use super::{Outcome, print_json};
use crate::context::Context;
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
        let id = Context::id(&self.id)?;
        let sandbox = context.present(&context.sandbox_of(&id)?)?;
        print_json(&context.oci_state(&sandbox, &id))
    }
}
