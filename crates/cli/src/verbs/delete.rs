//! `delete`: removes a container and everything it holds (C-15), then runs the poststop hooks (K-06).

use super::Outcome;
use crate::context::{BOOT, Context, QUICK, unfinished};
use bulkhead_model::{ContainerId, ContainerSnapshot, Failure, FailureKind, ProcessKey, SandboxId, State};
use bulkhead_sandbox::Command;
use bulkhead_shim::hooks::HookKind;
use bulkhead_shim::offline;
use clap::Args;

/// Options of `delete`.
#[derive(Debug, Args)]
pub(crate) struct Delete {
    /// Delete a container that is still running too, with SIGKILL; an unknown id is no error
    #[arg(long, short)]
    pub(crate) force: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Delete {
    /// Runs the verb.
    ///
    /// # Errors
    /// A container that is not stopped, without `--force`; an unknown id, without `--force`.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let id = Context::id(&self.id)?;
        match remove(context, &id, self.force) {
            Err(failure) if self.force && failure.kind == FailureKind::NotFound => Ok(0),
            other => other.map(|()| 0),
        }
    }
}

/// Removes a container; with `force` whatever its state.
///
/// # Errors
/// As the verb.
pub(crate) fn remove(context: &Context, id: &ContainerId, force: bool) -> Result<(), Failure> {
    let sandbox = context.sandbox_of(id)?;
    let (mut client, present) = match context.reach(&sandbox) {
        Err(failure) if force && failure.kind != FailureKind::NotFound => {
            return without_supervisor(context, sandbox, failure);
        }
        other => other?,
    };
    let container = present.containers.get(id).cloned();
    match &container {
        Some(container) if !force => deletable(container)?,
        // A create is under way: only force calls it off.
        None if !force => return Err(unfinished(id)),
        _ => {}
    }
    let key = ProcessKey {
        container: id.clone(),
        exec: None,
    };
    context.watch.tell(&mut client, "delete", &key, false);
    let command = Command::Delete {
        id: id.clone(),
        force,
    };
    let result = match (client.call(&command, Some(BOOT)), &container) {
        (Err(failure), None) if failure.kind == FailureKind::NotFound => {
            client.call(&Command::Shutdown, Some(BOOT)).map(drop)
        }
        (other, _) => other.map(drop),
    };
    result?;
    if let Some(mut container) = container {
        container.state = State::Stopped;
        context.run_hooks(HookKind::Poststop, &container);
    }
    Ok(())
}

/// Nobody can be asked, and nobody can be started who could be: the state directory says what there is.
fn without_supervisor(context: &Context, sandbox: SandboxId, why: Failure) -> Result<(), Failure> {
    context
        .report
        .debug(&format!("deleting without a supervisor: {why}"));
    match offline::remove(&context.layout, sandbox, QUICK) {
        None => Err(why),
        Some(one) if one.left.is_empty() => Ok(()),
        Some(one) => Err(Failure::new(
            FailureKind::Internal,
            format!("sandbox {} left {}", one.sandbox, one.left.join("; ")),
        )),
    }
}

/// A created container is deleted without force too, as runc and the contract (C-15) do.
fn deletable(container: &ContainerSnapshot) -> Result<(), Failure> {
    match container.state {
        State::Stopped | State::Ready => Ok(()),
        State::Running | State::Paused => Err(Failure::new(
            FailureKind::FailedPrecondition,
            format!(
                "cannot delete container {} that is not stopped: {}",
                container.id,
                container.state.oci_name()
            ),
        )),
    }
}
