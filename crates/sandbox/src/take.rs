//! Taking a VM that waits: it went on from its template before there was a sandbox for it.
//!
//! ```text
//!  in the pool ─ rename ─► claimed ─ in our journal ─► sockets moved ─► QMP again ─► share plugged ─► CPUs go
//!                  └ gone: the next one
//! ```
//! Until its directory has our name it is nobody's concern; from then on whoever undoes our journal ends it.
//!
//! Owns: the order of the hand-over. Never: which VMs fit (the platform's). Called by `boot`.

use crate::boot::{Booted, GOES_ON, Yard, go, hold, prepare_cgroup, prepare_share, serve};
use crate::error::SandboxError;
use crate::journal::{Journal, Resource};
use crate::template::{Waiting, shape};
use bulkhead_model::HostProcess;
use bulkhead_model::timeline::Lane;
use bulkhead_vmm::Vm;
use std::sync::Arc;

/// Name by which the VMM knows the mount namespace it keeps for us: it was started outside of it.
const MOUNTS: &str = "mounts";

/// Planned → Booted, with the first of `all` that nobody else takes.
pub(crate) async fn take(
    yard: &Yard<'_>,
    journal: &mut Journal,
    all: Vec<Waiting>,
) -> Result<Booted, SandboxError> {
    let taking = yard.timeline.span(Lane::Supervisor, "take a waiting VM");
    let Yard {
        plan,
        paths,
        platform,
        vmm,
        ..
    } = *yard;
    let writing = |e| SandboxError::host("writing the journal", paths.journal(), e);
    platform
        .check_network(plan)
        .map_err(|source| SandboxError::Namespace { source })?;
    let cgroup_procs = prepare_cgroup(yard, journal)?;
    let process = claim(yard, journal, all)?;
    for refusal in platform.join_cgroup(&cgroup_procs, process) {
        tracing::warn!(refusal, "the waiting VM could not join a cgroup");
    }
    let connect = |name: &str| {
        let path = paths.vm_socket(name);
        platform
            .connect(&path)
            .map_err(|e| SandboxError::host("connecting to", path, e))
    };
    platform
        .follow_console(connect("console")?)
        .map_err(SandboxError::during("following the console"))?;
    let fs = prepare_share(yard, journal)?;
    let of_fsd = |process| Resource::Process {
        role: "fsd".into(),
        process,
    };
    let entry = match &fs {
        Some(_) => Some(hold(journal, paths, of_fsd(None))?),
        None => None,
    };
    drop(taking);
    let adopting = async {
        let _adopting = yard.timeline.span(Lane::Vmm, "QEMU answers again");
        vmm.adopt(process, shape(&plan.vm), connect("qmp")?)
            .await
            .map_err(SandboxError::from)
    };
    let (vm, fsd) = tokio::join!(adopting, serve(yard, fs, &cgroup_procs));
    if let (Some(entry), Ok(Some(fsd))) = (entry, &fsd) {
        journal
            .fill(entry, of_fsd(Some(fsd.process())))
            .map_err(writing)?;
    }
    let (vm, fsd): (Arc<dyn Vm>, _) = (Arc::from(vm?), fsd?);
    let namespace = platform
        .open_mount_namespace()
        .map_err(SandboxError::during("opening the mount namespace"))?;
    vm.hold(MOUNTS, namespace).await?;
    go(yard, vm.as_ref(), fsd.is_some()).await?;
    Ok(Booted {
        vm,
        fsd,
        control: connect("control")?,
        data: connect("data")?,
        cgroup_procs,
        reattach: true,
        deadline: GOES_ON,
    })
}

/// Makes one of them ours: its VMM and its sockets.
fn claim(yard: &Yard<'_>, journal: &mut Journal, all: Vec<Waiting>) -> Result<HostProcess, SandboxError> {
    let paths = yard.paths;
    let marker = paths.marker.as_str();
    let moving = |place: &std::path::Path| {
        let place = place.to_owned();
        move |e| SandboxError::host("taking over", place, e)
    };
    for one in all {
        let place = one.claimed(marker);
        let entry = hold(
            journal,
            paths,
            Resource::Claim {
                place: place.clone(),
                marker: one.marker().to_owned(),
            },
        )?;
        let released = |journal: &mut Journal| {
            journal
                .release(entry)
                .map_err(|e| SandboxError::host("writing the journal", paths.journal(), e))
        };
        if !one.claim(marker).map_err(moving(&place))? {
            released(journal)?;
            continue;
        }
        let process = one.record.process;
        hold(
            journal,
            paths,
            Resource::Process {
                role: "vmm".into(),
                process: Some(process),
            },
        )?;
        one.hand_over(marker, &paths.sockets).map_err(moving(&place))?;
        released(journal)?;
        return Ok(process);
    }
    Err(SandboxError::Host {
        step: "taking a waiting VM: others were faster",
        path: None,
        source: std::io::ErrorKind::NotFound.into(),
    })
}
