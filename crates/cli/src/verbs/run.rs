//! `run`: create, start, and unless detached stay until the process ends, then delete.

use super::{Outcome, delete};
use crate::bring_up::{BundleFlags, Created, Next, bring_up, in_runc_words};
use crate::context::{CALL, Context, snapshot};
use crate::exit_status::VerbClass;
use crate::foreground;
use crate::interrupt::{self, Interrupts};
use bulkhead_model::{Failure, FailureKind, ProcessKey};
use bulkhead_sandbox::Command;
use bulkhead_shim::hooks::HookKind;
use clap::Args;

/// Options of `run`.
#[derive(Debug, Args)]
pub(crate) struct Run {
    /// Bundle and terminal.
    #[command(flatten)]
    pub(crate) flags: BundleFlags,
    /// Return once the process runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// Do not delete the container when its process has ended
    #[arg(long)]
    pub(crate) keep: bool,
    /// Accepted: there is nothing to reap, the container's processes are in the virtual machine
    #[arg(long)]
    pub(crate) no_subreaper: bool,
    /// Id of the container; unique on the host
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Run {
    /// Runs the verb.
    ///
    /// # Errors
    /// See [`bring_up`]; a failed start. Nothing is left then.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let interrupts = Interrupts::all()?;
        let result = self.to_the_end(context, &interrupts);
        interrupts.conclude(result, VerbClass::Run, &context.report)
    }

    fn to_the_end(&self, context: &Context, interrupts: &Interrupts) -> Outcome {
        let mut created = bring_up(
            context,
            &self.flags,
            &self.id,
            self.detach,
            Next::Start,
            interrupts,
        )
        .map_err(in_runc_words)?;
        if !created.started
            && let Err(failure) = start(context, &mut created, interrupts)
        {
            remove(context, created);
            return Err(in_runc_words(failure));
        }
        if self.detach {
            created.stub.leave();
            return Ok(0);
        }
        let status = foreground::stand_in(&created.stub, created.master.take(), interrupts);
        if self.keep {
            created.stub.leave();
            return status;
        }
        let removed = delete::remove(context, &created.plan.id, true);
        match (status, removed) {
            // Someone else deleted it.
            (Ok(status), Err(failure)) if failure.kind == FailureKind::NotFound => Ok(status),
            (Ok(status), Err(failure)) => {
                context
                    .report
                    .failure(&format!("deleting {}: {failure}", created.plan.id), &[]);
                Ok(status)
            }
            (status, _) => status,
        }
    }
}

fn start(context: &Context, created: &mut Created, interrupts: &Interrupts) -> Result<(), Failure> {
    let id = created.plan.id.clone();
    if let Some(signal) = interrupts.pending() {
        return Err(Interrupts::failure(signal));
    }
    let command = Command::Start { id: id.clone() };
    match interrupts.call(&mut created.client, &command, CALL)? {
        interrupt::Outcome::Answered => {}
        interrupt::Outcome::Interrupted(signal) => return Err(Interrupts::failure(signal)),
    }
    if created.plan.spec.hooks().is_some()
        && let Some(container) = snapshot(&mut created.client)?.containers.get(&id)
    {
        context.run_hooks(HookKind::Poststart, container);
        let key = ProcessKey {
            container: id,
            exec: None,
        };
        context.watch.tell(&mut created.client, "start", &key, true);
    }
    Ok(())
}

/// After a failed start; the failure itself is what the user is told.
fn remove(context: &Context, created: Created) {
    let id = created.plan.id.clone();
    drop(created);
    match delete::remove(context, &id, true) {
        Err(failure) if failure.kind != FailureKind::NotFound => {
            context.report.warning(&format!("deleting {id}: {failure}"));
        }
        _ => {}
    }
}
