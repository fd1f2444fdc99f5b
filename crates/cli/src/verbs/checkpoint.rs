//! `checkpoint` and `restore`: refused. A sandbox is a virtual machine; criu does not reach into it.

use super::Outcome;
use crate::context::Context;
use bulkhead_model::{Failure, FailureKind};
use clap::Args;
use std::ffi::OsString;

/// Takes any words.
#[derive(Debug, Args)]
pub(crate) struct Refused {
    /// Ignored.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) words: Vec<OsString>,
}

impl Refused {
    /// Says no.
    ///
    /// # Errors
    /// Always `Unsupported`.
    pub(crate) fn run(self, verb: &str, _: &Context) -> Outcome {
        Err(Failure::new(
            FailureKind::Unsupported,
            format!("{verb} is not supported: the container's processes are inside a virtual machine"),
        ))
    }
}
