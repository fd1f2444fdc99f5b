//! `gc`: removes everything of sandboxes whose supervisor is gone, the timelines of sandboxes that are gone, and
//! templates that are of no use.

use super::{Outcome, print_text, template};
use crate::context::Context;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::host::{end_marked, leave_pool_cgroup};
use bulkhead_sandbox::timeline;
use bulkhead_shim::offline;
use clap::Args;

/// Options of `gc`: none.
#[derive(Debug, Args)]
pub(crate) struct Gc {}

impl Gc {
    /// Runs the verb: prints the id of each sandbox and template it removed. Every one is tried.
    ///
    /// # Errors
    /// What could not be removed, sandbox by sandbox.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let mut left = Vec::new();
        for one in offline::collect(&context.layout)? {
            if one.left.is_empty() {
                print_text(&format!("{}\n", one.sandbox))?;
            } else {
                left.push(format!("sandbox {} left {}", one.sandbox, one.left.join("; ")));
            }
        }
        unmapped(context)?;
        // A configuration that cannot be read names no templates.
        if let Ok(store) = template::store(context) {
            let (removed, stuck) = store.collect(|mark| end_marked(mark, None));
            for key in removed {
                print_text(&format!("template {key}\n"))?;
            }
            left.extend(stuck);
            leave_pool_cgroup();
        }
        timeline::clear(&context.layout)
            .map_err(|e| Failure::new(FailureKind::Internal, format!("removing old timelines: {e}")))?;
        if left.is_empty() {
            return Ok(0);
        }
        Err(Failure::new(FailureKind::Internal, left.join("; ")))
    }
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
