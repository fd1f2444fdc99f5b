//! `gc`: removes everything of sandboxes whose supervisor is gone.

use super::{Outcome, print_text};
use crate::context::{BOOT, Context};
use bulkhead_model::{Failure, FailureKind, SandboxId};
use bulkhead_sandbox::Command;
use bulkhead_shim::{Client, launch};
use clap::Args;

/// Options of `gc`: none.
#[derive(Debug, Args)]
pub(crate) struct Gc {}

impl Gc {
    /// Runs the verb. Every sandbox is tried.
    ///
    /// # Errors
    /// The first sandbox that could not be removed; the others are logged.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut first = None;
        for sandbox in dead(context)? {
            match remove(context, &sandbox) {
                Ok(()) => {
                    print_text(&format!("{sandbox}\n"))?;
                }
                Err(failure) if first.is_none() => first = Some(failure),
                Err(failure) => context.report.warning(&format!("{sandbox}: {failure}")),
            }
        }
        unmapped(context)?;
        first.map_or(Ok(0), Err)
    }
}

/// Sandboxes nobody answers for.
fn dead(context: &Context) -> Result<Vec<SandboxId>, Failure> {
    let dir = context.layout.sandboxes();
    let fail =
        |e: std::io::Error| Failure::new(FailureKind::Internal, format!("reading {}: {e}", dir.display()));
    let entries = match std::fs::read_dir(&dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.map_err(fail)?,
    };
    let mut dead = Vec::new();
    for entry in entries {
        let name = entry.map_err(fail)?.file_name();
        let Some(id) = name.to_str().and_then(|name| SandboxId::new(name).ok()) else {
            continue;
        };
        if Client::connect(&context.layout.sandbox(&id).control_socket()).is_err() {
            dead.push(id);
        }
    }
    dead.sort();
    Ok(dead)
}

/// A fresh supervisor takes over what is left and takes it down.
fn remove(context: &Context, sandbox: &SandboxId) -> Result<(), Failure> {
    let mut client = launch::connect(&context.layout, sandbox)?;
    client.call(&Command::Shutdown, Some(BOOT)).map(drop)
}

/// Takes containers out of the map whose sandbox is gone.
fn unmapped(context: &Context) -> Result<(), Failure> {
    let fail = |e: &bulkhead_sandbox::map::MapError| Failure::from_chain(FailureKind::Internal, e);
    let map = context.map();
    for id in map.containers().map_err(|e| fail(&e))? {
        let here = map
            .sandbox_of(&id)
            .ok()
            .flatten()
            .is_some_and(|sandbox| context.layout.sandbox(&sandbox).dir.is_dir());
        if !here {
            map.remove(&id).map_err(|e| fail(&e))?;
        }
    }
    Ok(())
}
