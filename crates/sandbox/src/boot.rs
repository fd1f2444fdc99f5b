//! The boot of a sandbox as a chain of values; each step consumes the last.
//!
//! ```text
//!  Planned ──prepare──► Prepared ──launch──► Booted ──meet──► Ready
//!                                  (boots, or goes on from a template)
//!     └─────────────take──────────────────┘ (went on already, and waited: see `take`)
//!     │                    │                   │
//!     └──── failure: the caller runs the journal backwards, every entry ────┘
//! ```
//! No flag says "are we booted": the type does. Every acquisition is in the journal first, so that the undo
//! list and a process with no memory do the same thing.
//!
//! Owns: the order of a start. Never: containers. Called by the engine.

use crate::error::SandboxError;
use crate::journal::{Journal, Resource};
use crate::layout::SandboxPaths;
use crate::meet::meet;
use crate::platform::{Daemon, FsdLaunch, Platform};
use crate::take::take;
use crate::template::{Template, Waiting, reuse, shape};
use crate::timeline::{CPUS_GO, Recorder};
use bulkhead_model::SandboxPlan;
use bulkhead_model::timeline::Lane;
use bulkhead_model::vm::SharedFs;
use bulkhead_protocol::Guest;
use bulkhead_vmm::{DeviceRequest, Launch, Origin, SavedMachine, Vm, VmExit, Vmm, VmmError};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

/// Where the guest mounts the share (C-36's "guest share").
pub const GUEST_SHARE: &str = "/run/bulkhead/share";
/// Mount tag of the share.
pub const SHARE_TAG: &str = "bulkhead";
/// Device id of the share.
pub const SHARE_DEVICE: &str = "fs0";

/// Names of the VM's sockets.
pub const SOCKETS: [&str; 5] = ["qmp", "control", "data", "console", "fs"];

/// A guest that goes on answers within a tenth of a second; one that is silent for this long is given up.
pub(crate) const GOES_ON: Duration = Duration::from_secs(20);

/// What every step needs.
#[derive(Clone, Copy)]
pub struct Yard<'a> {
    /// The plan.
    pub plan: &'a SandboxPlan,
    /// Where things lie.
    pub paths: &'a SandboxPaths,
    /// The host.
    pub platform: &'a dyn Platform,
    /// The VMM driver.
    pub vmm: &'a dyn Vmm,
    /// Where its time goes.
    pub timeline: &'a Recorder,
}

/// A listening socket and a client that is connected before anyone accepts.
struct SocketPair {
    listener: OwnedFd,
    client: OwnedFd,
}

/// Sockets and directories are there; nothing runs.
pub struct Prepared {
    qmp: SocketPair,
    control: SocketPair,
    data: SocketPair,
    console: SocketPair,
    fs: Option<OwnedFd>,
    cgroup_procs: Vec<PathBuf>,
}

/// The VM runs; its agent has not reported in.
pub struct Booted {
    pub(crate) vm: Arc<dyn Vm>,
    pub(crate) fsd: Option<Arc<dyn Daemon>>,
    pub(crate) control: OwnedFd,
    pub(crate) data: OwnedFd,
    pub(crate) cgroup_procs: Vec<PathBuf>,
    /// Somebody has talked to its agent before.
    pub(crate) reattach: bool,
    pub(crate) deadline: Duration,
}

/// Where a VM comes from.
#[derive(Debug)]
pub enum Source {
    /// Its kernel boots.
    Boot,
    /// It goes on from a template.
    Template(Template),
    /// The first of these that nobody else takes.
    Waiting(Vec<Waiting>),
}

/// The agent answers and knows who it is.
pub struct Ready {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// The shared-filesystem daemon, if files are shared.
    pub fsd: Option<Arc<dyn Daemon>>,
    /// The agent.
    pub guest: Arc<dyn Guest>,
    /// `cgroup.procs` files of the sandbox, for its stubs.
    pub cgroup_procs: Vec<PathBuf>,
}

fn step<T>(yard: &Yard<'_>, step: &'static str, result: Result<T, SandboxError>) -> Result<T, SandboxError> {
    result.map_err(|source| SandboxError::Boot {
        id: yard.plan.id.clone(),
        step,
        source: Box::new(source),
        console: yard.platform.console_tail(),
    })
}

pub(crate) fn hold(
    journal: &mut Journal,
    paths: &SandboxPaths,
    resource: Resource,
) -> Result<crate::journal::Entry, SandboxError> {
    journal
        .intend(resource)
        .map_err(|e| SandboxError::host("writing the journal", paths.journal(), e))
}

/// Runs the whole chain.
///
/// # Errors
/// [`SandboxError::Boot`] naming the step; what was acquired is in the journal.
pub async fn boot(yard: Yard<'_>, journal: &mut Journal, source: Source) -> Result<Ready, SandboxError> {
    let began = Instant::now();
    let at = |step: &str| tracing::info!(ms = began.elapsed().as_millis(), "{step}");
    let template = match source {
        Source::Boot => None,
        Source::Template(template) => Some(template),
        Source::Waiting(all) => {
            let booted = take(&yard, journal, all).await;
            return finish(&yard, step(&yard, "taking a waiting VM", booted)?, began).await;
        }
    };
    let prepared = step(&yard, "preparing the host", prepare(&yard, journal))?;
    at("the host is prepared");
    let booted = step(
        &yard,
        "starting the VM",
        launch(&yard, journal, prepared, template).await,
    )?;
    finish(&yard, booted, began).await
}

async fn finish(yard: &Yard<'_>, booted: Booted, began: Instant) -> Result<Ready, SandboxError> {
    let at = |step: &str| tracing::info!(ms = began.elapsed().as_millis(), "{step}");
    at("the VM runs");
    let ready = step(yard, "booting the guest", meet(yard, booted).await)?;
    tracing::info!(
        ms = began.elapsed().as_millis(),
        kernel = ready.guest.hello().kernel_release,
        guest_boot_ms = ready.guest.hello().ready_boottime_ns / 1_000_000,
        boot_nonce = ready.guest.hello().boot_nonce,
        "the guest is ready"
    );
    Ok(ready)
}

/// Planned → Prepared: directories, cgroups, listening sockets, the share.
fn prepare(yard: &Yard<'_>, journal: &mut Journal) -> Result<Prepared, SandboxError> {
    let _preparing = yard.timeline.span(Lane::Supervisor, "prepare the host");
    let Yard {
        plan,
        paths,
        platform,
        ..
    } = *yard;
    platform
        .check_network(plan)
        .map_err(|source| SandboxError::Namespace { source })?;
    let cgroup_procs = prepare_cgroup(yard, journal)?;
    let pair = |name: &str| {
        let listener = listen(yard, name)?;
        let path = paths.vm_socket(name);
        let client = platform
            .connect(&path)
            .map_err(|e| SandboxError::host("connecting to", path, e))?;
        Ok::<_, SandboxError>(SocketPair { listener, client })
    };
    let [qmp, control, data, console] = [pair("qmp")?, pair("control")?, pair("data")?, pair("console")?];
    Ok(Prepared {
        qmp,
        control,
        data,
        console,
        fs: prepare_share(yard, journal)?,
        cgroup_procs,
    })
}

fn listen(yard: &Yard<'_>, name: &str) -> Result<OwnedFd, SandboxError> {
    let path = yard.paths.vm_socket(name);
    yard.platform
        .listen(&path)
        .map_err(|e| SandboxError::host("listening on", path, e))
}

/// The directory the guest is to see, and the socket of its daemon, if one serves it.
pub(crate) fn prepare_share(yard: &Yard<'_>, journal: &mut Journal) -> Result<Option<OwnedFd>, SandboxError> {
    let Yard {
        plan,
        paths,
        platform,
        ..
    } = *yard;
    if plan.vm.shared_fs == SharedFs::None {
        return Ok(None);
    }
    let share = paths.share();
    platform
        .make_dir(&share)
        .map_err(|e| SandboxError::host("creating", &share, e))?;
    let namespace = platform
        .mount_namespace()
        .map_err(|e| SandboxError::host("reading", "/proc/self/ns/mnt", e))?;
    hold(
        journal,
        paths,
        Resource::Mount {
            path: share.clone(),
            namespace,
            container: None,
        },
    )?;
    platform
        .share_root(&share)
        .map_err(|e| SandboxError::host("sharing", &share, e))?;
    match plan.vm.shared_fs {
        // The VMM is the one who connects to the daemon.
        SharedFs::VirtioFs { .. } => listen(yard, "fs").map(Some),
        // It serves the directory itself.
        SharedFs::Virtio9p { .. } | SharedFs::None => Ok(None),
    }
}

pub(crate) fn prepare_cgroup(yard: &Yard<'_>, journal: &mut Journal) -> Result<Vec<PathBuf>, SandboxError> {
    let _making = yard.timeline.span(Lane::Supervisor, "make the cgroups");
    let Yard {
        plan,
        paths,
        platform,
        ..
    } = *yard;
    let fail = SandboxError::during("preparing the cgroup");
    let wanted = platform.plan_cgroup(plan).map_err(fail)?;
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    hold(
        journal,
        paths,
        Resource::Cgroup {
            paths: wanted.clone(),
        },
    )?;
    let made = platform.make_cgroup(plan, &wanted).map_err(fail)?;
    for warning in &made.warnings {
        tracing::warn!(%warning, "the host refused a cgroup setting");
    }
    Ok(made.procs)
}

/// Prepared → Booted: the daemon and the VMM run, the share is plugged, the CPUs are let go.
async fn launch(
    yard: &Yard<'_>,
    journal: &mut Journal,
    ready: Prepared,
    template: Option<Template>,
) -> Result<Booted, SandboxError> {
    let _starting = yard.timeline.span(Lane::Supervisor, "start the VM");
    let Yard {
        plan,
        paths,
        platform,
        vmm,
        ..
    } = *yard;
    let pipe = |source: &'static str| {
        platform
            .log_pipe(source)
            .map_err(SandboxError::during("opening a log pipe"))
    };
    let writing = |e| SandboxError::host("writing the journal", paths.journal(), e);
    let of = |role: &str, process| Resource::Process {
        role: role.into(),
        process,
    };
    let mut roles = vec!["vmm"];
    roles.extend(ready.fs.is_some().then_some("fsd"));
    let entries = journal
        .intend_all(roles.iter().map(|role| of(role, None)).collect())
        .map_err(writing)?;
    platform
        .follow_console(ready.console.client)
        .map_err(SandboxError::during("following the console"))?;
    let deadline = match template {
        Some(_) => GOES_ON,
        None => Duration::from_secs(u64::from(plan.vm.boot_timeout_s)),
    };
    let (machine, origin) = match template {
        None => (plan.vm.clone(), Origin::Boot),
        Some(template) => {
            let saved = SavedMachine {
                state: template.state,
                memory: template.memory,
                reuse: reuse(&plan.vm.shared_fs),
            };
            (shape(&plan.vm), Origin::Saved(saved))
        }
    };
    let launch = Launch {
        plan: machine,
        accelerator: platform.accelerator(),
        qmp_listener: ready.qmp.listener,
        qmp: ready.qmp.client,
        control_listener: ready.control.listener,
        data_listener: ready.data.listener,
        console_listener: ready.console.listener,
        stderr: pipe("vmm")?,
        marker: format!("{}/vmm", paths.marker),
        cgroup_procs: ready.cgroup_procs.clone(),
        origin,
        share: match plan.vm.shared_fs {
            SharedFs::Virtio9p { .. } => Some((paths.share(), SHARE_TAG.to_owned())),
            SharedFs::VirtioFs { .. } | SharedFs::None => None,
        },
    };
    let launching = async {
        let _starting = yard.timeline.span(Lane::Vmm, "start QEMU, until it answers");
        vmm.launch(launch).await
    };
    let serving = serve(yard, ready.fs, &ready.cgroup_procs);
    // The daemon starts while the VMM does.
    let (vm, fsd) = tokio::join!(launching, serving);
    let vm: Result<Arc<dyn Vm>, _> = vm.map(Arc::from);
    let processes = [
        vm.as_ref().ok().map(|vm| vm.process()),
        fsd.as_ref()
            .ok()
            .and_then(Option::as_ref)
            .map(|fsd| fsd.process()),
    ];
    // What did start is written down whatever became of the other.
    let known = entries
        .iter()
        .zip(&roles)
        .zip(processes)
        .filter_map(|((entry, role), process)| Some((*entry, of(role, Some(process?)))))
        .collect();
    journal.fill_all(known).map_err(writing)?;
    let vm = vm?;
    let fsd = fsd?;
    go(yard, vm.as_ref(), fsd.is_some()).await?;
    Ok(Booted {
        vm,
        fsd,
        control: ready.control.client,
        data: ready.data.client,
        cgroup_procs: ready.cgroup_procs,
        reattach: false,
        deadline,
    })
}

/// Starts the daemon that serves the share, if one is to listen on `fs`.
pub(crate) async fn serve(
    yard: &Yard<'_>,
    fs: Option<OwnedFd>,
    cgroup_procs: &[PathBuf],
) -> Result<Option<Arc<dyn Daemon>>, SandboxError> {
    let Some(listener) = fs else { return Ok(None) };
    let launch = FsdLaunch {
        listener,
        share: yard.paths.share(),
        plain: false,
        shared_fs: yard.plan.vm.shared_fs.clone(),
        marker: format!("{}/fsd", yard.paths.marker),
        cgroup_procs: cgroup_procs.to_vec(),
        stderr: yard
            .platform
            .log_pipe("fsd")
            .map_err(SandboxError::during("opening a log pipe"))?,
    };
    let _starting = yard.timeline.span(Lane::Fsd, "start the daemon");
    let fsd = yard.platform.spawn_fsd(launch).await;
    let fsd = fsd.map_err(SandboxError::during("starting the shared-filesystem daemon"))?;
    Ok(Some(Arc::from(fsd)))
}

/// Plugs the share, and lets the CPUs go.
pub(crate) async fn go(yard: &Yard<'_>, vm: &dyn Vm, share: bool) -> Result<(), SandboxError> {
    if share {
        plug_share(yard, vm).await?;
    }
    let _going = yard.timeline.span(Lane::Vmm, CPUS_GO);
    Ok(vm.resume().await?)
}

async fn plug_share(yard: &Yard<'_>, vm: &dyn Vm) -> Result<(), SandboxError> {
    let cache_size_mib = match yard.plan.vm.shared_fs {
        SharedFs::VirtioFs { cache_size_mib, .. } => cache_size_mib,
        SharedFs::Virtio9p { .. } | SharedFs::None => 0,
    };
    let hotplug = vm.hotplug().ok_or_else(|| VmmError::Unsupported {
        option: "shared_fs",
        value: "virtio-fs".into(),
        expected: "a VMM that can plug devices",
    })?;
    let request = DeviceRequest::SharedFs {
        id: SHARE_DEVICE.into(),
        tag: SHARE_TAG.into(),
        socket: yard.paths.vm_socket("fs"),
        cache_size_mib,
    };
    let _plugging = yard.timeline.span(Lane::Vmm, "plug the share");
    hotplug.plug(request, Vec::new()).await?;
    Ok(())
}

/// A VM that ended while it was needed.
#[must_use]
pub fn ended(step: &'static str, exit: VmExit) -> SandboxError {
    VmmError::Ended {
        step,
        exit,
        stderr: String::new(),
    }
    .into()
}
