//! Meeting the agent of a VM that runs: its hello, then who it is.
//!
//! Owns: what a guest is told first, and what its silence means. Never: how its VM came to run. Called by `boot`.

use crate::boot::{Booted, GUEST_SHARE, Ready, SHARE_TAG, Yard, ended};
use crate::clock;
use crate::error::SandboxError;
use crate::platform::{Daemon, GuestPorts};
use bulkhead_model::timeline::Lane;
use bulkhead_model::vm::SharedFs;
use bulkhead_protocol::{GuestError, GuestIdentity, GuestStorage};
use bulkhead_vmm::Vm;
use std::sync::Arc;
use std::time::Duration;

/// A VM whose connection ended is expected to end within this.
const FOLLOWS: Duration = Duration::from_secs(2);

/// Booted → Ready: the agent's hello, then its identity. Ends with the VM or the deadline.
pub(crate) async fn meet(yard: &Yard<'_>, booted: Booted) -> Result<Ready, SandboxError> {
    let _meeting = yard.timeline.span(Lane::Supervisor, "boot the guest");
    let Yard { paths, platform, .. } = *yard;
    let Booted {
        vm,
        fsd,
        control,
        data,
        cgroup_procs,
        reattach,
        deadline,
    } = booted;
    let streams = paths.streams();
    platform
        .make_dir(&streams)
        .map_err(|e| SandboxError::host("creating", &streams, e))?;
    let ports = GuestPorts {
        control,
        data,
        streams: &streams,
        reattach,
        deadline,
    };
    let waiting = yard.timeline.span(Lane::Supervisor, "wait for the agent's hello");
    let hello = platform.connect_guest(ports);
    let guest = tokio::select! {
        guest = hello => match guest {
            Ok(guest) => guest,
            Err(error) => return Err(cause(vm.as_ref(), "waiting for the agent", error).await),
        },
        exit = vm.exited() => return Err(ended("waiting for the agent", exit)),
        () = end_of(fsd.as_ref()) => return Err(SandboxError::DaemonEnded),
    };
    drop(waiting);
    let mut told = identity(yard)?;
    for attempt in 0..clock::TRIES {
        let what = if attempt == 0 {
            "configure the guest"
        } else {
            "set its clock again"
        };
        let configuring = yard.timeline.span(Lane::Supervisor, what);
        let sent_ns = told.time_ns;
        let again = GuestIdentity {
            tracing: told.tracing,
            ..GuestIdentity::default()
        };
        tokio::select! {
            done = guest.configure(told) => {
                if let Err(error) = done {
                    return Err(cause(vm.as_ref(), "configuring the guest", error).await);
                }
            }
            exit = vm.exited() => return Err(ended("configuring the guest", exit)),
            () = end_of(fsd.as_ref()) => return Err(SandboxError::DaemonEnded),
        }
        let time_ns = platform.now_ns();
        let steps = guest.take_steps();
        let after_it_ns = steps.as_ref().map_or(0, clock::since_set);
        if attempt == 0 {
            yard.timeline.came_up(configuring, steps, guest.hello());
        }
        // What the guest's clock was set to was over by at most as much as it took until then. The first time takes long
        // where it is translated.
        if time_ns.saturating_sub(sent_ns).saturating_sub(after_it_ns) < clock::WITHIN_NS {
            break;
        }
        told = GuestIdentity { time_ns, ..again };
    }
    Ok(Ready {
        vm,
        fsd,
        guest,
        cgroup_procs,
    })
}

/// A connection that ended is, most of all, one whose VM did: its exit says more.
async fn cause(vm: &dyn Vm, step: &'static str, error: GuestError) -> SandboxError {
    if !matches!(error, GuestError::Gone { .. }) {
        return error.into();
    }
    match tokio::time::timeout(FOLLOWS, vm.exited()).await {
        Ok(exit) => ended(step, exit),
        Err(_) => error.into(),
    }
}

/// Waits for the daemon's end; for ever without one.
async fn end_of(fsd: Option<&Arc<dyn Daemon>>) {
    match fsd {
        Some(fsd) => fsd.exited().await,
        None => std::future::pending().await,
    }
}

fn identity(yard: &Yard<'_>) -> Result<GuestIdentity, SandboxError> {
    let Yard { plan, platform, .. } = *yard;
    let storages = match &plan.vm.shared_fs {
        SharedFs::None => Vec::new(),
        SharedFs::VirtioFs { .. } => vec![GuestStorage {
            driver: "virtiofs".into(),
            source: SHARE_TAG.into(),
            fstype: "virtiofs".into(),
            options: Vec::new(),
            mount_point: GUEST_SHARE.into(),
        }],
        SharedFs::Virtio9p { msize } => vec![GuestStorage {
            driver: "9p".into(),
            source: SHARE_TAG.into(),
            fstype: "9p".into(),
            options: vec![
                "trans=virtio".into(),
                "version=9p2000.L".into(),
                format!("msize={msize}"),
            ],
            mount_point: GUEST_SHARE.into(),
        }],
    };
    Ok(GuestIdentity {
        hostname: plan.hostname.clone().unwrap_or_default(),
        domainname: plan.domainname.clone().unwrap_or_default(),
        time_ns: platform.now_ns(),
        entropy: platform
            .entropy()
            .map_err(|e| SandboxError::host("reading", "/dev/urandom", e))?,
        storages,
        kernel_modules: plan.kernel_modules.clone(),
        shm_bytes: plan.shm_bytes,
        debug: plan.vm.debug,
        tracing: plan.agent.tracing,
        settle: false,
        keep_share: false,
    })
}
