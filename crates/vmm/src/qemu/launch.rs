//! From a [`Launch`] to a machine that answers QMP with its CPUs stopped, and taking over one that runs.
//!
//! ```text
//!  spawn ─► QMP handshake ────────────────► stopped             (boot)
//!    │                     ╲─► state loaded ─► stopped             (saved)
//!    └─► memory copied ───╱   beside QEMU's own start
//! ```
//!
//! Owns: descriptors, environment and surroundings of the process. Never: a device. Every failure ends the
//! process, also when the caller gives up in the middle.

use super::command_line::command_line;
use super::instance::Instance;
use super::process::{Starting, VmmProcess};
use super::snapshot;
use super::start::{CONSOLE_FD, CONTROL_FD, DATA_FD, MEMORY_FD, QMP_FD, Start};
use super::stderr::StderrTail;
use crate::qmp::QmpClient;
use crate::{Launch, MemoryReuse, Origin, VmmError};
use bulkhead_host::memory;
use bulkhead_host::process::{MARKER, Namespace, Spawn, SpawnError};
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{HostProcess, VmPlan};
use nix::libc::RLIMIT_CORE;
use serde_json::Value;
use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

/// Until QEMU answers: 30 ms on a quiet machine, and these are for a very busy one.
const ANSWER: Duration = Duration::from_secs(60);
/// Memory touched at start costs at most this much longer for each GiB.
const PREALLOC_PER_GIB: Duration = Duration::from_secs(4);
const STEP: &str = "starting the VMM";

/// Starts QEMU with its CPUs stopped.
pub(super) async fn launch(launch: Launch, tsc_khz: Option<u32>) -> Result<Instance, VmmError> {
    let Launch {
        plan,
        accelerator,
        qmp_listener,
        qmp,
        control_listener,
        data_listener,
        console_listener,
        stderr,
        marker,
        cgroup_procs,
        share,
        origin,
    } = launch;
    // QEMU's own words for it would not say what to do.
    for (what, path) in [("kernel", &plan.kernel), ("initrd", &plan.initrd)] {
        File::open(path).map_err(|source| VmmError::Asset {
            what,
            path: path.clone(),
            source,
        })?;
    }
    let (start, memory, copy, state) = match origin {
        Origin::Boot => (Start::Boot, None, None, None),
        Origin::BootInto(memory) => (Start::BootInto, Some(memory), None, None),
        Origin::Saved(saved) if saved.reuse == MemoryReuse::Copy => {
            let bytes = u64::from(plan.memory_mib) << 20;
            let own = memory::anonymous(c"guest", bytes).map_err(io_error("making the memory"))?;
            let to = own.try_clone().map_err(io_error("making the memory"))?;
            let start = Start::Saved { shared: true };
            (start, Some(own), Some((saved.memory, to)), Some(saved.state))
        }
        Origin::Saved(saved) => {
            let start = Start::Saved { shared: false };
            (start, Some(saved.memory), None, Some(saved.state))
        }
    };
    let args = command_line(&plan, accelerator, tsc_khz, start, share.as_ref())?;
    tracing::debug!(?args, "VMM");
    let (stderr_read, stderr_write) =
        nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).map_err(|e| io_error("making a pipe")(e.into()))?;
    let mut spawn = Spawn::new(&plan.hypervisor)
        .args(args)
        .env(MARKER, marker)
        .fd(stderr_write, 2)
        .fd(qmp_listener, QMP_FD)
        .fd(control_listener, CONTROL_FD)
        .fd(data_listener, DATA_FD)
        .fd(console_listener, CONSOLE_FD)
        .fds(memory.map(|memory| (memory, MEMORY_FD)))
        .directory("/")
        // A core file would hold the guest's memory.
        .limit(RLIMIT_CORE, 0, 0)
        .new_session()
        .unshare(Namespace::Ipc)
        .unshare(Namespace::Uts)
        // An empty one: cards get the descriptors of their taps.
        .unshare(Namespace::Network);
    for procs in cgroup_procs {
        spawn = spawn.cgroup(procs);
    }
    let copying = copy
        .map(|(from, to)| tokio::task::spawn_blocking(move || memory::copy_data(&from.into(), &to.into())));
    // Cloning waits for the child's exec. The guard travels with it: a caller that gives up meanwhile
    // leaves no process.
    let assets = plan.asset_hashes.clone();
    let started = tokio::task::spawn_blocking(move || {
        // Before each use (O-16): nothing is between this and the exec.
        crate::assets::verify(&assets)?;
        let started = spawn.spawn().map_err(spawn_error)?;
        for refusal in &started.cgroup_refusals {
            tracing::warn!(path = %refusal.path.display(), error = %refusal.source, "the VMM could not join a cgroup");
        }
        Ok(Starting::new(started.child))
    })
    .await
    .map_err(|e| io_error(STEP)(io::Error::other(e)))?;
    let starting: Starting = started?;
    let stderr = StderrTail::follow(stderr_read, Some(stderr)).map_err(io_error(STEP))?;
    let process = VmmProcess::of_child(starting.child(), stderr).map_err(io_error(STEP))?;
    let mut deadline = ANSWER;
    if plan.memory_prealloc {
        deadline += PREALLOC_PER_GIB * (plan.memory_mib / 1024);
    }
    let client = match copying {
        None => shake_hands(&process, qmp, deadline).await?,
        Some(copying) => {
            // QEMU writes nothing to a memory whose machine comes in later.
            let (client, copied) = tokio::join!(shake_hands(&process, qmp, deadline), copying);
            let copied = copied
                .map_err(io::Error::other)
                .flatten()
                .map_err(io_error("copying the memory"))?;
            tracing::debug!(bytes = copied, "the memory is copied");
            client?
        }
    };
    let instance = Instance::started(process, client, plan, accelerator);
    if let Some(state) = state {
        snapshot::load(&instance, state).await?;
    }
    starting.done();
    Ok(instance)
}

async fn shake_hands(process: &VmmProcess, qmp: OwnedFd, deadline: Duration) -> Result<QmpClient, VmmError> {
    // The end of the process, not that of the connection, is what carries the cause; it is looked at first.
    tokio::select! {
        biased;
        exit = process.exited() => Err(process.ended(STEP, exit)),
        client = QmpClient::connect(qmp, deadline) => match client {
            Ok(client) => Ok(client),
            Err(error) => Err(super::instance::vmm_error(process, STEP, error).await),
        },
    }
}

/// Takes over a QEMU that runs.
pub(super) async fn adopt(identity: HostProcess, plan: VmPlan, qmp: OwnedFd) -> Result<Instance, VmmError> {
    let step = "taking over the VMM";
    let process =
        VmmProcess::of_stranger(identity, StderrTail::reopen(identity.pid)).map_err(io_error(step))?;
    let client = match QmpClient::connect(qmp, ANSWER).await {
        Ok(client) => client,
        Err(error) => return Err(super::instance::vmm_error(&process, step, error).await),
    };
    let instance = Instance::started(process, client, plan, Accelerator::Tcg);
    let kvm = instance.command("query-kvm", Value::Null).await?;
    let kvm = kvm["enabled"].as_bool() == Some(true);
    let instance = if kvm {
        instance.on(Accelerator::Kvm)
    } else {
        instance
    };
    instance.recall().await?;
    Ok(instance)
}

fn spawn_error(error: SpawnError) -> VmmError {
    match error {
        SpawnError::Program {
            program: path,
            source,
        } => VmmError::Binary { path, source },
        other => io_error(STEP)(io::Error::other(other)),
    }
}

fn io_error(step: &'static str) -> impl FnOnce(io::Error) -> VmmError {
    move |source| VmmError::Io { step, source }
}
