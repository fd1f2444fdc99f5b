//! `inspect`: the live tree of a sandbox, as JSON.

use super::{Outcome, print_json};
use crate::context::{Context, QUICK, unexpected};
use bulkhead_model::{Failure, SandboxId};
use bulkhead_sandbox::{Command, Reply};
use bulkhead_shim::launch;
use clap::Args;
use serde_json::{Value, json};

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
        let asked = launch::connect(&context.layout, &sandbox)
            .and_then(|mut client| client.call(&Command::Inspect, Some(QUICK)));
        match asked {
            Ok(Reply::Tree { tree }) => print_json(&tree),
            Ok(other) => Err(unexpected(&other)),
            Err(failure) => print_json(&from_files(context, &sandbox, &failure)),
        }
    }
}

fn from_files(context: &Context, sandbox: &SandboxId, failure: &Failure) -> Value {
    let paths = context.layout.sandbox(sandbox);
    let read = |path: std::path::PathBuf| -> Value {
        std::fs::read(&path)
            .ok()
            .and_then(|text| serde_json::from_slice(&text).ok())
            .unwrap_or(Value::Null)
    };
    let journal: Vec<Value> = std::fs::read_to_string(paths.journal())
        .unwrap_or_default()
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    json!({
        "supervisor_error": failure.message,
        "plan": read(paths.plan()),
        "state": read(paths.state()),
        "journal": journal,
        "paths": {"state": paths.dir, "sockets": paths.sockets},
    })
}
