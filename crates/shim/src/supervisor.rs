//! The supervisor process: one per sandbox, started by `launch`, ends with its sandbox.
//!
//! ```text
//!  minder ─ fork ─► (replaced when it is killed)
//!  lock state dir ─► own mount namespace ─► log ─► socket ─► "listening" ─► engine ─► gone (why, if the boot failed)
//!                                                    └─ containerd's: its services too, nobody minds it
//! ```
//!
//! Owns: the process-wide set-up. Never: what a sandbox does. Called by `main` for the hidden verb.

use crate::containerd::{Server, Settings};
use crate::launch::{LOCK_FD, write_json};
use crate::logfile::Detail;
use crate::words::{Ready, Voice};
use crate::{accelerator, logfile, server};
use bulkhead_host::process::{Minded, Run, mind};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{Failure, FailureKind, HostProcess, ProcessKey, SandboxId, SandboxPlan};
use bulkhead_sandbox::host::RealHost;
use bulkhead_sandbox::{Beginning, Engine, Handle, Journal, Layout, Platform, Resource, SandboxPaths, World};
use bulkhead_vmm::qemu::Qemu;
use std::ffi::OsString;
use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;
use tokio::net::UnixStream;
use tokio_util::sync::CancellationToken;

/// How often a supervisor that is killed is replaced before its sandbox is left to the next verb.
const MOST_REPLACEMENTS: u32 = 100;

/// What the hidden verb was given.
struct Arguments {
    root: PathBuf,
    sandbox: SandboxId,
    recover: bool,
    began_ns: u64,
}

/// Runs the hidden verb `supervisor`; `arguments` are those after the verb.
pub fn main(arguments: impl Iterator<Item = OsString>) -> ExitCode {
    let result = parse(arguments).and_then(|mut arguments| {
        let paths = Layout::new(&arguments.root).sandbox(&arguments.sandbox);
        if paths.shim().exists() {
            // containerd is told of a dead shim and cleans up; nobody takes over.
            return Ok(work(&arguments));
        }
        let minded = mind(MOST_REPLACEMENTS).map_err(|error| {
            Failure::new(FailureKind::Internal, format!("forking the supervisor: {error}"))
        })?;
        match minded {
            // A worker that was killed is replaced by one that takes over.
            Minded::Worker(Run(run_number)) => {
                arguments.recover |= run_number > 0;
                Ok(work(&arguments))
            }
            Minded::Over { status } => Ok(ExitCode::from(status)),
        }
    });
    match result {
        Ok(code) => code,
        Err(failure) => {
            Voice::take().say(&Ready::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn work(arguments: &Arguments) -> ExitCode {
    let mut voice = Voice::take();
    match run(arguments, &mut voice) {
        Ok(()) => ExitCode::SUCCESS,
        Err(failure) => {
            voice.say(&Ready::Failed(failure));
            ExitCode::FAILURE
        }
    }
}

fn parse(arguments: impl Iterator<Item = OsString>) -> Result<Arguments, Failure> {
    let bad = |what: String| Failure::new(FailureKind::InvalidArgument, format!("supervisor: {what}"));
    let (mut root, mut sandbox, mut recover) = (None, None, false);
    let mut arguments = arguments;
    while let Some(argument) = arguments.next() {
        match argument.to_str() {
            Some("--root") => root = arguments.next().map(PathBuf::from),
            Some("--sandbox") => sandbox = arguments.next().and_then(|id| id.into_string().ok()),
            Some("--recover") => recover = true,
            _ => return Err(bad(format!("unknown argument {argument:?}"))),
        }
    }
    let sandbox = SandboxId::new(sandbox.unwrap_or_default()).map_err(|e| bad(e.to_string()))?;
    let root = root.ok_or_else(|| bad("--root is missing".into()))?;
    Ok(Arguments {
        root,
        sandbox,
        recover,
        began_ns: bulkhead_host::clock::boottime_ns(),
    })
}

fn run(arguments: &Arguments, voice: &mut Voice) -> Result<(), Failure> {
    let layout = Layout::new(&arguments.root);
    let paths = layout.sandbox(&arguments.sandbox);
    let fail = |step: &str, error: io::Error| {
        Failure::new(
            FailureKind::Internal,
            format!("sandbox {}: {step}: {error}", arguments.sandbox),
        )
    };
    // The lock was taken by the launcher; it lives as long as this descriptor.
    let _lock =
        bulkhead_host::inherited::take_inherited(LOCK_FD).map_err(|e| fail("inheriting its lock", e))?;
    let shim = Settings::read(&paths).map_err(|e| fail("reading its settings", e))?;
    let plan = match &shim {
        // It comes over the socket.
        Some(shim) if shim.ordered => None,
        _ => Some(read_plan(&paths).map_err(|e| fail("reading its plan", e))?),
    };
    let outside =
        bulkhead_sandbox::host::own_mounts(&paths).map_err(|e| fail("making its mount namespace", e))?;
    let bundle = shim.as_ref().map(|shim| shim.bundle.as_path());
    let (debug, spans) = plan.as_ref().map_or((false, false), detail);
    let log = logfile::start(&paths.log(), bundle, debug, spans).map_err(|e| fail("opening its log", e))?;
    // For its children too, the VMM and the daemon.
    if let Err(error) = bulkhead_host::memory::prefer_small_pages() {
        tracing::warn!(%error, "huge pages stay");
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(16)
        .build()
        .map_err(|e| fail("starting its runtime", e))?;
    let failures = runtime.block_on(supervise(arguments, voice, &log, plan, paths, shim, outside))?;
    for failure in &failures {
        tracing::error!(failure, "left behind");
    }
    Ok(())
}

fn read_plan(paths: &SandboxPaths) -> io::Result<SandboxPlan> {
    Ok(serde_json::from_slice(&std::fs::read(paths.plan())?)?)
}

/// Whether its log has what is traced at debug level, and the ends of spans.
fn detail(plan: &SandboxPlan) -> (bool, bool) {
    (
        plan.vm.debug || plan.debug || plan.agent.debug,
        plan.trace || plan.agent.tracing,
    )
}

fn this_process() -> io::Result<HostProcess> {
    let pid = nix::unistd::getpid().as_raw();
    let start_time = bulkhead_host::process::start_time(pid)
        .map_err(io::Error::other)?
        .ok_or_else(|| io::Error::other("this process has no start time"))?;
    Ok(HostProcess { pid, start_time })
}

async fn supervise(
    arguments: &Arguments,
    voice: &mut Voice,
    log: &Detail,
    plan: Option<SandboxPlan>,
    paths: SandboxPaths,
    shim: Option<Settings>,
    outside: OwnedFd,
) -> Result<Vec<String>, Failure> {
    let fail = |step: &str, error: io::Error| {
        Failure::new(
            FailureKind::Internal,
            format!("sandbox {}: {step}: {error}", arguments.sandbox),
        )
    };
    let verdict = accelerator::probe();
    tracing::info!(accelerator = ?verdict.accelerator, reason = verdict.reason, "how guest code runs");
    let host = RealHost::new(verdict.accelerator, accelerator::cache()).from_outside(outside);
    let platform: Arc<dyn Platform> = Arc::new(host);
    let mut journal = Journal::open(&paths.journal()).map_err(|e| fail("opening its journal", e))?;
    let sockets = Resource::Directory {
        path: paths.sockets.clone(),
    };
    // One that takes over may take over from a supervisor that was killed before it had written this down.
    if !journal.held().iter().any(|(_, held)| *held == sockets) {
        journal
            .intend(sockets)
            .map_err(|e| fail("writing its journal", e))?;
    }
    platform
        .make_dir(&paths.sockets)
        .map_err(|e| fail("making its socket directory", e))?;
    let mut services = match shim {
        Some(shim) => Some(
            Server::listen(&arguments.sandbox, &paths, shim)
                .await
                .map_err(|e| fail("listening for containerd", e))?,
        ),
        None => None,
    };
    let plan = match (plan, &mut services) {
        (Some(plan), _) => plan,
        (None, Some(waiting)) => {
            voice.say(&Ready::Listening);
            match waiting.ordered().await {
                Some(plan) => {
                    let (debug, spans) = detail(&plan);
                    log.set(debug, spans);
                    write_json(&paths.plan(), &plan)?;
                    plan
                }
                None => return Ok(withdraw(services, &paths).await),
            }
        }
        // `run` leaves a plan out only where there are services.
        (None, None) => return Err(fail("reading its plan", io::Error::other("there is none"))),
    };
    let socket = paths.control_socket();
    if arguments.recover {
        // We hold the lock: whoever bound it is gone.
        let _ = std::fs::remove_file(&socket);
    }
    let listener = bulkhead_host::fdpass::listen(&socket)
        .map_err(io::Error::other)
        .and_then(|listener| {
            listener.set_nonblocking(true)?;
            tokio::net::UnixListener::from_std(listener)
        })
        .map_err(|e| fail("listening", e))?;
    let (stub_paths, shim_plan) = (paths.clone(), plan.clone());
    let process = this_process().map_err(|e| fail("looking at itself", e))?;
    let (mut world, published, events) = World::new(
        plan,
        paths,
        platform,
        Arc::new(Qemu::new(verdict.tsc_khz)),
        journal,
        process,
    );
    world.timeline.since(
        Lane::Supervisor,
        "come up, until the socket listens",
        arguments.began_ns,
    );
    let beginning = if arguments.recover {
        world.recover().await.map_err(|error| error.failure())?;
        Beginning::Restored
    } else {
        Beginning::Boot
    };
    let (engine, handle) = Engine::new(world, published, events);
    let stubs = known_stubs(&handle, &stub_paths).await;
    if let Some(services) = &services {
        services.open(handle.clone(), stub_paths, shim_plan);
    }
    let gone = CancellationToken::new();
    let asked = handle.clone();
    let serving = tokio::spawn(server::serve(listener, stubs, handle, gone.clone()));
    voice.say(&Ready::Listening);
    let failures = engine.run(beginning).await;
    if let Some(failure) = asked.failure() {
        voice.say(&Ready::Failed(failure));
    }
    gone.cancel();
    if let Err(error) = serving.await {
        tracing::error!(%error, "the server task");
    }
    if let Some(services) = services {
        services.finish().await;
    }
    Ok(failures)
}

/// A sandbox that was never ordered goes as it came.
async fn withdraw(services: Option<Server>, paths: &SandboxPaths) -> Vec<String> {
    tracing::info!("no sandbox was ordered");
    if let Some(services) = services {
        services.close().await;
    }
    let dirs = [&paths.sockets, &paths.dir];
    let removed = dirs.map(|dir| std::fs::remove_dir_all(dir).map_err(|e| format!("{}: {e}", dir.display())));
    removed.into_iter().filter_map(Result::err).collect()
}

/// Connects to the stubs that outlived the last supervisor; one that did not is reported as gone.
async fn known_stubs(handle: &Handle, paths: &SandboxPaths) -> Vec<UnixStream> {
    let mut streams = Vec::new();
    for (id, container) in handle.snapshot().containers {
        for process in std::iter::once(container.init).chain(container.execs) {
            let (Some(stub), false) = (process.host, process.delivered) else {
                continue;
            };
            let key = ProcessKey {
                container: id.clone(),
                exec: process.exec,
            };
            match UnixStream::connect(paths.stub_socket(&key)).await {
                Ok(stream) => streams.push(stream),
                Err(error) => {
                    tracing::warn!(%error, process = %key, "its stub is gone");
                    handle.stub_gone(key, stub);
                }
            }
        }
    }
    streams
}
