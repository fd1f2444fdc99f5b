//! `kill`: sends a signal to a container's process, or to all of them (C-17).

use super::Outcome;
use crate::context::{CALL, Context};
use crate::signal;
use bulkhead_model::{ContainerSnapshot, Failure, FailureKind, ProcessKey, State};
use bulkhead_sandbox::Command;
use clap::Args;

/// Options of `kill`.
#[derive(Debug, Args)]
pub(crate) struct Kill {
    /// Send the signal to every process of the container
    #[arg(long, short)]
    pub(crate) all: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
    /// Name or number of the signal
    #[arg(value_name = "SIGNAL", default_value = "SIGTERM")]
    pub(crate) signal: String,
}

impl Kill {
    /// Runs the verb.
    ///
    /// # Errors
    /// An unknown signal, a container that is not running.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let signal =
            signal::parse(&self.signal).map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
        let mut found = match context.find(&self.id) {
            // Still being created: a deadly signal calls that off.
            Err(failure) if failure.kind == FailureKind::FailedPrecondition => {
                return self.call_off(context, signal);
            }
            other => other?,
        };
        if let Err(refusal) = running(&found.container) {
            // As with runc: no process is left that `--all` could miss.
            return if self.all { Ok(0) } else { Err(refusal) };
        }
        if signal != 0 {
            let key = ProcessKey {
                container: found.id.clone(),
                exec: None,
            };
            found.done(
                &Command::Signal {
                    key,
                    signal,
                    all: self.all,
                },
                CALL,
            )?;
        }
        Ok(0)
    }

    fn call_off(&self, context: &Context, signal: i32) -> Outcome {
        let id = Context::id(&self.id)?;
        if signal != 0 {
            let key = ProcessKey {
                container: id.clone(),
                exec: None,
            };
            let command = Command::Signal {
                key,
                signal,
                all: self.all,
            };
            context.client(&id)?.call(&command, Some(CALL))?;
        }
        Ok(0)
    }
}

/// The words are those engines look for.
fn running(container: &ContainerSnapshot) -> Result<(), Failure> {
    match container.state {
        State::Ready | State::Running | State::Paused => Ok(()),
        State::Stopped => Err(Failure::new(
            FailureKind::FailedPrecondition,
            format!("container not running: {}", container.id),
        )),
    }
}
