//! `timeline`: where the time of a sandbox's start and stop went.
//!
//! ```text
//!  sandbox there? ─ yes ─► its supervisor ─ no answer ─► its file
//!                 └ no ──────────────────────────────────► kept from its end (the newest 16)
//! ```
//! Looking starts nothing.

use super::{Outcome, print_json, print_text};
use crate::context::{Context, QUICK};
use crate::timeline::{picture, table};
use bulkhead_model::{ContainerId, Failure, FailureKind, SandboxId, timeline};
use bulkhead_sandbox::timeline::{find, read};
use bulkhead_sandbox::{Command, Reply};
use bulkhead_shim::Client;
use clap::{Args, ValueEnum};
use std::path::PathBuf;

/// Output forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table: milliseconds since the first operation began.
    Table,
    /// Nanoseconds of the host's CLOCK_BOOTTIME.
    Json,
}

/// Options of `timeline`.
#[derive(Debug, Args)]
pub(crate) struct Timeline {
    /// Output form
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Draw a picture into this file too
    #[arg(long, value_name = "FILE")]
    pub(crate) svg: Option<PathBuf>,
    /// Id of a container, which may be gone
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Timeline {
    /// Runs the verb.
    ///
    /// # Errors
    /// An id that is unknown and of which nothing is kept; a file that cannot be written.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let id = Context::id(&self.id)?;
        let shown = recorded(context, &id)?.of(&id);
        if let Some(path) = &self.svg {
            std::fs::write(path, picture(&shown)).map_err(|e| {
                Failure::new(
                    FailureKind::InvalidArgument,
                    format!(
                        "--svg {}: {e}: expected a file that can be written",
                        path.display()
                    ),
                )
            })?;
        }
        match self.format {
            Format::Table => print_text(&table(&shown)),
            Format::Json => print_json(&shown),
        }
    }
}

fn recorded(context: &Context, id: &ContainerId) -> Result<timeline::Timeline, Failure> {
    let unreadable =
        |e: bulkhead_sandbox::timeline::TimelineError| Failure::from_chain(FailureKind::Internal, &e);
    if let Some(sandbox) = context.look_up(id)? {
        if let Some(live) = ask(context, &sandbox) {
            return Ok(live);
        }
        if let Some(saved) = read(&context.layout.sandbox(&sandbox).timeline()).map_err(unreadable)? {
            return Ok(saved);
        }
    }
    find(&context.layout, id).map_err(unreadable)?.ok_or_else(|| {
        Failure::new(
            FailureKind::NotFound,
            format!("container {id} does not exist, and no timeline of it is kept"),
        )
    })
}

/// What the supervisor knows, what goes on included.
fn ask(context: &Context, sandbox: &SandboxId) -> Option<timeline::Timeline> {
    let socket = context.layout.sandbox(sandbox).control_socket();
    let asked = Client::connect(&socket)
        .map_err(|e| Failure::new(FailureKind::Unavailable, e.to_string()))
        .and_then(|mut client| client.call(&Command::Timeline, Some(QUICK)));
    match asked {
        Ok(Reply::Timeline { timeline }) => Some(*timeline),
        other => {
            context
                .report
                .debug(&format!("the supervisor of {sandbox}: {other:?}"));
            None
        }
    }
}
