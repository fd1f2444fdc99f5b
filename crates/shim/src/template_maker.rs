//! The process that makes a template after a cold start, and the same work in the foreground.
//!
//! ```text
//!  supervisor ─ order on a descriptor ─► template-maker: lowest priority ─► log ─► make ─► fill the pool ─► end
//! ```
//!
//! Owns: the process-wide set-up. Never: how a template is made (`sandbox::template`). Called by `main` for the
//! hidden verb and by the template verb.

use crate::{accelerator, logfile};
use bulkhead_host::inherited::take_inherited;
use bulkhead_host::process::give_way;
use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::host::{ORDER_FD, RealHost};
use bulkhead_sandbox::template::{Order, Outcome, fill, make};
use bulkhead_vmm::qemu::Qemu;
use std::fs::{DirBuilder, File};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::process::ExitCode;

/// Runs the hidden verb `template-maker`: its order is on [`ORDER_FD`], its words go to `log` beside the templates.
pub fn main() -> ExitCode {
    match ordered() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!(%error, "making a template");
            ExitCode::FAILURE
        }
    }
}

fn ordered() -> io::Result<()> {
    let order = File::from(take_inherited(ORDER_FD)?);
    let order: Order = serde_json::from_reader(&order)?;
    give_way()?;
    let dir = &order.factory.template_path;
    DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
    logfile::start(&dir.join("log"), None, order.plan.debug, false)?;
    match carry_out(&order) {
        Ok(outcome) => tracing::info!(?outcome, "template"),
        Err(failure) => return Err(io::Error::other(failure.message)),
    }
    Ok(())
}

/// Carries out an order in this process.
///
/// # Errors
/// What failed first; nothing is left then.
pub fn carry_out(order: &Order) -> Result<Outcome, Failure> {
    let fail = |message: String| Failure::new(FailureKind::Internal, message);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(4)
        .build()
        .map_err(|e| fail(format!("starting the runtime: {e}")))?;
    // VMs that wait are its children, too.
    if let Err(error) = bulkhead_host::memory::prefer_small_pages() {
        tracing::warn!(%error, "huge pages stay");
    }
    let host = RealHost::new(order.accelerator, accelerator::cache());
    let vmm = Qemu::new(accelerator::probe().tsc_khz);
    runtime.block_on(async {
        let made = make(order, &host, &vmm)
            .await
            .map_err(|error| fail(format!("making a template: {}", chain(&error))))?;
        let started = fill(order, &host, &vmm)
            .await
            .map_err(|error| fail(format!("having VMs wait: {}", chain(&error))))?;
        tracing::info!(started, "VMs that wait");
        Ok(made)
    })
}
