//! `inspect`: the live tree of a sandbox, as JSON.

use super::{Outcome, print_json};
use crate::context::{Context, QUICK, unexpected};
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::{Command, Reply};
use bulkhead_shim::{Client, offline};
use clap::Args;

/// Options of `inspect`.
#[derive(Debug, Args)]
pub(crate) struct Inspect {
    /// Id of a container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Inspect {
    /// Runs the verb. A sandbox whose supervisor does not answer is shown from its files.
    ///
    /// # Errors
    /// An unknown id.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let sandbox = context.sandbox_of(&Context::id(&self.id)?)?;
        // Not through `launch`: looking must not start anything.
        let socket = context.layout.sandbox(&sandbox).control_socket();
        let asked = Client::connect(&socket)
            .map_err(|e| Failure::new(FailureKind::Unavailable, e.to_string()))
            .and_then(|mut client| client.call(&Command::Inspect, Some(QUICK)));
        match asked {
            Ok(Reply::Tree { tree }) => print_json(&tree),
            Ok(other) => Err(unexpected(&other)),
            Err(failure) => {
                context
                    .report
                    .debug(&format!("the supervisor of {sandbox}: {failure}"));
                print_json(&offline::tree(&context.layout, &sandbox))
            }
        }
    }
}
