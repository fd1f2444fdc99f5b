//! `create`: makes a container and leaves it in state created.

use super::Outcome;
use crate::bring_up::{BundleFlags, Next, bring_up, in_runc_words};
use crate::context::Context;
use crate::exit_status::VerbClass;
use crate::interrupt::Interrupts;
use clap::Args;

/// Options of `create`.
#[derive(Debug, Args)]
pub(crate) struct Create {
    /// Bundle and terminal.
    #[command(flatten)]
    pub(crate) flags: BundleFlags,
    /// Id of the container; unique on the host
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
}

impl Create {
    /// Runs the verb.
    ///
    /// # Errors
    /// See [`bring_up`].
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let interrupts = Interrupts::deadly()?;
        let created = bring_up(context, &self.flags, &self.id, true, Next::Whatever, &interrupts)
            .map(|created| created.stub.leave())
            .map_err(in_runc_words);
        interrupts.conclude(created.map(|_| 0), VerbClass::Create, &context.report)
    }
}
