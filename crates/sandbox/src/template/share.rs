//! The share's device while a template is made: there from the boot on, known to the guest, and no part of what is saved.
//!
//! ```text
//!  daemon on an empty directory ─► plugged ─► boot ─► the guest keeps the device ─► saved without it
//!                                                └─ refuses ─► unplugged: each start has it found anew
//! ```
//! A clone's guest does not have to find its share then: it gives what it kept to the device that was plugged into the same
//! place (see `storage::kept` of the agent). That takes some 10,000 blocks of code off a start, which a translator would translate; a
//! processor goes through them in no time, and its share has message-signalled interrupts, which are more to keep. So it is
//! done for translated guests.
//!
//! Owns: that daemon, and how it is asked. Never: what the guest keeps. Called by `make`.

use super::agent::alive;
use super::error::TemplateError;
use super::order::Order;
use crate::boot::{SHARE_DEVICE, SHARE_TAG};
use crate::platform::{Daemon, FsdLaunch, Platform};
use bulkhead_model::vm::{Accelerator, SharedFs};
use bulkhead_protocol::{Guest, GuestError, GuestIdentity};
use bulkhead_vmm::{DeviceRequest, Hotplug, Vm, VmmError};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// For a guest to let go of what it did not keep.
const UNPLUG: Duration = Duration::from_secs(60);

/// Whether the machine of `order` is to know its share.
pub(super) fn is_known(order: &Order) -> bool {
    matches!(order.plan.shared_fs, SharedFs::VirtioFs { .. }) && order.accelerator == Accelerator::Tcg
}

fn hotplug(vm: &Arc<dyn Vm>) -> Result<&dyn Hotplug, VmmError> {
    vm.hotplug().ok_or_else(|| VmmError::Unsupported {
        option: "shared_fs",
        value: "virtio-fs".into(),
        expected: "a VMM that can plug devices",
    })
}

/// Starts a daemon that serves the empty directory `share`, with its socket in `sockets`.
pub(super) async fn serve(
    order: &Order,
    host: &dyn Platform,
    sockets: &Path,
    share: &Path,
    marker: String,
) -> Result<Box<dyn Daemon>, TemplateError> {
    host.make_dir(share).map_err(TemplateError::io("making", share))?;
    let socket = sockets.join("fs");
    let listener = host
        .listen(&socket)
        .map_err(TemplateError::io("listening on", &socket))?;
    let launch = FsdLaunch {
        listener,
        share: share.to_owned(),
        plain: true,
        shared_fs: order.plan.shared_fs.clone(),
        marker,
        cgroup_procs: Vec::new(),
        stderr: host
            .log_pipe("fsd")
            .map_err(TemplateError::io("opening a log pipe for", share))?,
    };
    host.spawn_fsd(launch)
        .await
        .map_err(TemplateError::io("starting a daemon for", share))
}

/// Plugs what that daemon serves into a machine that has not run.
pub(super) async fn plug(vm: &Arc<dyn Vm>, sockets: &Path) -> Result<(), TemplateError> {
    let request = DeviceRequest::SharedFs {
        id: SHARE_DEVICE.into(),
        tag: SHARE_TAG.into(),
        socket: sockets.join("fs"),
        cache_size_mib: 0,
    };
    hotplug(vm)?.plug(request, Vec::new()).await?;
    Ok(())
}

/// Has the guest keep the device; from one that refuses it is taken, so that it does not miss it.
pub(super) async fn keep(vm: &Arc<dyn Vm>, guest: &dyn Guest) -> Result<(), TemplateError> {
    let keeping = guest.configure(GuestIdentity {
        keep_share: true,
        ..GuestIdentity::default()
    });
    match alive(vm, "keeping the share's device", keeping).await? {
        Ok(()) => Ok(()),
        Err(error @ GuestError::Refused { .. }) => {
            tracing::warn!(%error, "every start will have its share found anew");
            Ok(hotplug(vm)?.unplug(SHARE_DEVICE, UNPLUG).await?)
        }
        Err(error) => Err(error.into()),
    }
}
