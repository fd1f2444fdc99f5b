//! The agent of a VM that is no sandbox's yet.
//!
//! Owns: what is asked of it before it waits or is saved, each for as long as its VM lives. Never: a name, a share or a
//! stream. Called by `make` and `fill`.

use super::error::TemplateError;
use crate::platform::{GuestPorts, Platform};
use bulkhead_protocol::{Guest, GuestError, GuestIdentity};
use bulkhead_vmm::{Vm, VmmError};
use std::sync::Arc;

/// Waits for its hello.
pub(super) async fn hear(
    host: &dyn Platform,
    vm: &Arc<dyn Vm>,
    ports: GuestPorts<'_>,
) -> Result<Arc<dyn Guest>, TemplateError> {
    let streams = ports.streams;
    host.make_dir(streams)
        .map_err(TemplateError::io("making", streams))?;
    let guest = alive(vm, "waiting for the agent", host.connect_guest(ports)).await??;
    // No stream is ever opened: what is remembered of none goes.
    let _ = std::fs::remove_dir_all(streams);
    Ok(guest)
}

/// Has a guest do once what every start does: what that brings about is there then, not in every start.
pub(super) async fn warm_up(vm: &Arc<dyn Vm>, guest: &dyn Guest) -> Result<(), TemplateError> {
    let first = guest.configure(GuestIdentity::default());
    alive(vm, "warming up", first).await??;
    match alive(vm, "rehearsing", guest.rehearse()).await? {
        Ok(()) => {}
        // A guest that refuses does as well, only later.
        Err(error @ GuestError::Refused { .. }) => tracing::warn!(%error, "the guest did not rehearse"),
        Err(error) => return Err(error.into()),
    }
    Ok(())
}

/// Has a guest overwrite what nobody uses any more.
pub(super) async fn settle(vm: &Arc<dyn Vm>, guest: &dyn Guest) -> Result<(), TemplateError> {
    let last = guest.configure(GuestIdentity {
        settle: true,
        ..GuestIdentity::default()
    });
    Ok(alive(vm, "settling", last).await??)
}

/// Waits for `work`, at most as long as the VM lives.
pub(super) async fn alive<T>(
    vm: &Arc<dyn Vm>,
    step: &'static str,
    work: impl Future<Output = T>,
) -> Result<T, TemplateError> {
    tokio::select! {
        done = work => Ok(done),
        exit = vm.exited() => Err(VmmError::Ended { step, exit, stderr: String::new() }.into()),
    }
}
