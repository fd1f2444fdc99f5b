//! `stop`: SIGTERM, patience, SIGKILL (C-14). Runc leaves this to engines; operators have it here.

use super::Outcome;
use crate::context::{BOOT, Context};
use crate::{go_duration, signal};
use bulkhead_model::{Failure, FailureKind, ProcessKey, State};
use bulkhead_sandbox::Command;
use clap::Args;

/// Options of `stop`.
#[derive(Debug, Args)]
pub(crate) struct Stop {
    /// How long the container's process may take to end by itself, such as 10s or 500ms
    #[arg(long, short, value_name = "DURATION", default_value = "10s")]
    pub(crate) time: String,
    /// Name or number of the signal that asks it to
    #[arg(long, short, value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Stop {
    /// Runs the verb. A container that is stopped already is left alone.
    ///
    /// # Errors
    /// A bad duration or signal, an unknown id, what the stop reports.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let patience = go_duration::parse(&self.time)
            .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let signal =
            signal::parse(&self.signal).map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let mut found = context.find(&self.id)?;
        let key = ProcessKey {
            container: found.id.clone(),
            exec: None,
        };
        // A process that was not started yet, or is frozen, hears nothing: it is only waited for.
        if found.container.state == State::Running && signal != 0 {
            let command = Command::Signal {
                key,
                signal,
                all: false,
            };
            match found.done(&command, BOOT) {
                // It ended a moment ago.
                Err(failure) if failure.kind == FailureKind::FailedPrecondition => {}
                other => other?,
            }
        }
        let command = Command::Stop {
            id: found.id.clone(),
            patience_ms: u64::try_from(patience.as_millis()).unwrap_or(u64::MAX),
        };
        found.done(&command, BOOT.saturating_add(patience))?;
        Ok(0)
    }
}
