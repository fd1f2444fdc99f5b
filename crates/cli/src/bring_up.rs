//! From a bundle to a created container: what `create` and `run` have in common.
//!
//! ```text
//!  id free? bundle there? ─► plan ─► console ─► supervisor (boots) ─► stub ─► hooks ─► Create ─► pid file
//!       (K-02)                                     └───────────── on failure or signal: taken down ◄┘
//! ```
//! Owns: that order, and that a failure leaves nothing. Never: what a sandbox is made of. Called by the
//! `create` and `run` verbs.

use crate::console::{Console, ConsoleFlags};
use crate::context::{BOOT, Context, QUICK};
use crate::interrupt::{Interrupts, Outcome};
use crate::pid_file;
use bulkhead_config::{Config, PlanKind, Plans, Source};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, ContainerPlan, Failure, FailureKind, ProcessKey, SandboxId, SandboxPlan};
use bulkhead_sandbox::Command;
use bulkhead_shim::hooks::{self, HookKind};
use bulkhead_shim::host_facts;
use bulkhead_shim::oci_state::OciState;
use bulkhead_shim::stub::{self, Stub, StubRequest};
use bulkhead_shim::{Client, launch, offline};
use clap::Args;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Options that `create` and `run` share.
#[derive(Debug, Args)]
pub(crate) struct BundleFlags {
    /// Directory with config.json and the root file system
    #[arg(
        long,
        short,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub(crate) bundle: PathBuf,
    /// Terminal.
    #[command(flatten)]
    pub(crate) console: ConsoleFlags,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Use MS_MOVE and chroot in place of pivot_root
    #[arg(long)]
    pub(crate) no_pivot: bool,
    /// Do not make a new session keyring for the container
    #[arg(long)]
    pub(crate) no_new_keyring: bool,
    /// Must be 0: descriptors do not cross into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) preserve_fds: u32,
}

/// What follows the create.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Next {
    /// A verb of its own.
    Whatever,
    /// The start, at once: both are asked for in one where nothing has to happen between them.
    Start,
}

/// A container in state created.
pub(crate) struct Created {
    /// Connected to its supervisor.
    pub(crate) client: Client,
    /// What stands for it on the host. Dropped, it takes the process with it.
    pub(crate) stub: Stub,
    /// The plan.
    pub(crate) plan: Box<ContainerPlan>,
    /// The master of its terminal when this process serves it.
    pub(crate) master: Option<OwnedFd>,
    /// Its process runs already.
    pub(crate) started: bool,
}

/// Refuses `--preserve-fds` above 0.
///
/// # Errors
/// `Unsupported` naming the number.
pub(crate) fn refuse_preserved(count: u32) -> Result<(), Failure> {
    if count == 0 {
        return Ok(());
    }
    Err(Failure::new(
        FailureKind::Unsupported,
        format!("--preserve-fds {count} is not supported: a virtual machine lies between, expected 0"),
    ))
}

/// Makes the container. The checks come in the order of K-02: id, id in use, bundle missing, bundle invalid.
///
/// # Errors
/// The first failure; nothing is left then. `Cancelled` when a signal called it off.
pub(crate) fn bring_up(
    context: &Context,
    flags: &BundleFlags,
    id: &str,
    detach: bool,
    next: Next,
    interrupts: &Interrupts,
) -> Result<Created, Failure> {
    let id = Context::id(id)?;
    if context.look_up(&id)?.is_some() {
        return Err(Failure::new(
            FailureKind::AlreadyExists,
            format!("container with id {id} already in use: expected a new id"),
        ));
    }
    let bundle = resolve_bundle(&flags.bundle)?;
    refuse_preserved(flags.preserve_fds)?;
    let reading = || plan(context, flags, &id, &bundle);
    let planned = context
        .watch
        .time(Lane::Cli, "read configuration and bundle", reading)?;
    for warning in &planned.warnings {
        context.report.warning(warning);
    }
    let (joins, mut container) = match planned.kind {
        PlanKind::Sandbox { sandbox, container } => (Place::Own(sandbox), container),
        PlanKind::Container { sandbox, container } => (Place::Join(sandbox), container),
    };
    container.no_pivot = flags.no_pivot;
    container.no_new_keyring = flags.no_new_keyring;
    let process =
        container.spec.process().clone().ok_or_else(|| {
            Failure::new(FailureKind::InvalidArgument, "process property must not be empty")
        })?;
    let console = Console::open(&flags.console, &process, detach)?;
    let opening = || Site::open(context, joins, id);
    let mut site = context.watch.time(Lane::Cli, "reach the supervisor", opening)?;
    // Poststart hooks follow a start; and the supervisor of another's sandbox may be of an older version.
    let started = next == Next::Start && site.own && container.spec.hooks().is_none();
    let command = if started { run } else { create };
    let result = build(
        context, flags, &mut site, &container, console, command, interrupts,
    );
    match result {
        Ok((stub, master)) => Ok(Created {
            client: site.client,
            stub,
            plan: container,
            master,
            started,
        }),
        Err(failure) => {
            let failure = site.cause(failure);
            site.take_down(context);
            Err(failure)
        }
    }
}

fn create(plan: Box<ContainerPlan>) -> Command {
    Command::Create { plan }
}

fn run(plan: Box<ContainerPlan>) -> Command {
    Command::Run { plan }
}

fn build(
    context: &Context,
    flags: &BundleFlags,
    site: &mut Site,
    container: &ContainerPlan,
    console: Console,
    command: fn(Box<ContainerPlan>) -> Command,
    interrupts: &Interrupts,
) -> Result<(Stub, Option<OwnedFd>), Failure> {
    context
        .map()
        .add(&site.id, &site.sandbox)
        .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))?;
    let paths = context.layout.sandbox(&site.sandbox);
    let mut request =
        StubRequest::for_container(container, paths.control_socket(), &paths.marker, console.stdio);
    request.log_to(&paths.log());
    let spawning = || stub::spawn(request).map_err(|e| e.to_failure());
    let stub = context.watch.time(Lane::Stub, "start the stub", spawning)?;
    for refusal in &stub.refusals {
        context.report.debug(refusal);
    }
    if let Some(hooks) = container.spec.hooks() {
        let state = creating(container, &stub);
        for kind in [
            HookKind::Prestart,
            HookKind::CreateRuntime,
            HookKind::CreateContainer,
        ] {
            if kind.any(hooks) {
                let running = || hooks::run(kind, hooks, &state, Some(stub.process()));
                context.watch.time(Lane::Hooks, kind.name(), running)?;
            }
        }
    }
    let command = command(Box::new(container.clone()));
    let key = ProcessKey {
        container: site.id.clone(),
        exec: None,
    };
    context.watch.tell(&mut site.client, "create", &key, false);
    match interrupts.call(&mut site.client, &command, BOOT)? {
        Outcome::Answered => {}
        Outcome::Interrupted(signal) => return Err(Interrupts::failure(signal)),
    }
    if let Some(path) = &flags.pid_file {
        pid_file::write(path, stub.process().pid)?;
    }
    Ok((stub, console.master))
}

/// The bundle directory: there, a directory, symlinks resolved.
fn resolve_bundle(path: &Path) -> Result<PathBuf, Failure> {
    let bad = |why: String| Failure::new(FailureKind::InvalidArgument, why);
    if path.as_os_str().is_empty() {
        return Err(bad("the bundle is missing: expected a directory".to_owned()));
    }
    let resolved = std::fs::canonicalize(path).map_err(|e| bad(format!("bundle {}: {e}", path.display())))?;
    if !resolved.is_dir() {
        return Err(bad(format!(
            "bundle {} is no directory: expected one with config.json in it",
            path.display()
        )));
    }
    Ok(resolved)
}

fn plan(context: &Context, flags: &BundleFlags, id: &ContainerId, bundle: &Path) -> Result<Plans, Failure> {
    let bad = |message: String| Failure::new(FailureKind::InvalidArgument, message);
    let config = Config::load(&Source::named(context.config.as_deref()))
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).map_err(|e| match e.kind() {
        std::io::ErrorKind::NotFound => bad(format!(
            "JSON specification file config.json not found in the bundle {}",
            flags.bundle.display()
        )),
        _ => bad(format!("reading {}: {e}", path.display())),
    })?;
    let mut plans = bulkhead_config::plan(bundle, &text, id, &config, &host_facts::read())
        .map_err(|e| Failure::from_chain(e.kind(), &e))?;
    if let PlanKind::Sandbox { sandbox, .. } = &mut plans.kind {
        sandbox.systemd_cgroup = context.systemd_cgroup;
        sandbox.debug |= context.report.debug;
    }
    Ok(plans)
}

fn creating(container: &ContainerPlan, stub: &Stub) -> OciState {
    OciState {
        pid: stub.process().pid,
        rootfs: container.rootfs.path.clone(),
        annotations: container.annotations(),
        ..OciState::creating(&container.id, container.bundle.clone())
    }
}

/// Which sandbox the container goes into.
enum Place {
    Own(Box<SandboxPlan>),
    Join(SandboxId),
}

/// A sandbox the container is being made in.
struct Site {
    client: Client,
    id: ContainerId,
    sandbox: SandboxId,
    own: bool,
}

impl Site {
    fn open(context: &Context, place: Place, id: ContainerId) -> Result<Self, Failure> {
        let (client, sandbox, own) = match place {
            Place::Own(plan) => {
                let client = launch::supervisor(&context.layout, &plan)?;
                (client, plan.id, true)
            }
            Place::Join(sandbox) => {
                let client = launch::connect(&context.layout, &sandbox).map_err(|failure| {
                    let message = match failure.kind {
                        FailureKind::NotFound => format!(
                            "sandbox {sandbox} does not exist: the annotations of container {id} name it, create it first"
                        ),
                        _ => failure.message,
                    };
                    Failure { message, ..failure }
                })?;
                (client, sandbox, false)
            }
        };
        Ok(Self {
            client,
            id,
            sandbox,
            own,
        })
    }

    /// Why it failed, if `failure` only says that the supervisor is gone: the boot failed before it was asked.
    fn cause(&mut self, failure: Failure) -> Failure {
        match failure.kind {
            FailureKind::Unavailable | FailureKind::NotFound | FailureKind::Internal => {
                self.client.last_words().unwrap_or(failure)
            }
            _ => failure,
        }
    }

    /// Removes what was made for the container: the whole sandbox if it was made for it. Failures are
    /// logged: the first cause is what the caller is told.
    fn take_down(&self, context: &Context) {
        let paths = context.layout.sandbox(&self.sandbox);
        let command = if self.own {
            Command::Shutdown
        } else {
            Command::Delete {
                id: self.id.clone(),
                force: true,
            }
        };
        let done = match Client::connect(&paths.control_socket()) {
            Ok(mut client) => match client.call(&command, Some(BOOT)) {
                Err(failure) if gone(&failure) => Ok(()),
                other => other.map(drop),
            },
            Err(_) => self.sweep(context),
        };
        if let Err(failure) = done {
            context
                .report
                .warning(&format!("taking {} down: {failure}", self.id));
        }
        if self.own && paths.dir.exists() {
            self.await_end(context);
        }
        if let Err(error) = context.map().remove(&self.id) {
            let failure = Failure::from_chain(FailureKind::Internal, &error);
            context.report.warning(&failure.message);
        }
    }

    /// Nobody answers: it took itself down, or it died and what it had is still there.
    fn sweep(&self, context: &Context) -> Result<(), Failure> {
        if !self.own || !context.layout.sandbox(&self.sandbox).dir.exists() {
            return Ok(());
        }
        match offline::remove(&context.layout, self.sandbox.clone(), Duration::ZERO) {
            // One is at work after all, on its way out.
            None => Ok(()),
            Some(one) if one.left.is_empty() => Ok(()),
            Some(one) => Err(Failure::new(
                FailureKind::Internal,
                format!("left {}", one.left.join("; ")),
            )),
        }
    }

    /// The supervisor answers before it has ended: its id is free once its directory is gone.
    fn await_end(&self, context: &Context) {
        let paths = context.layout.sandbox(&self.sandbox);
        if let Ok(mut client) = Client::connect(&paths.control_socket()) {
            // The connection ends with the supervisor; whatever is read before that is of no interest.
            while client.receive(Some(QUICK)).is_ok() {}
        }
    }
}

fn gone(failure: &Failure) -> bool {
    matches!(failure.kind, FailureKind::Unavailable | FailureKind::NotFound)
}

/// The program of a process could not be started: in the words engines look for.
#[must_use]
pub(crate) fn in_runc_words(failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::ProgramNotFound | FailureKind::ProgramNotExecutable => Failure {
            message: format!("unable to start container process: {}", failure.message),
            ..failure
        },
        _ => failure,
    }
}
