//! `exec`: starts a further process in a container (C-16).

use super::Outcome;
use crate::bring_up::{in_runc_words, refuse_preserved};
use crate::console::{Console, ConsoleFlags};
use crate::context::{CALL, Context, Found};
use crate::exec_process::{self, ProcessFlags};
use crate::exit_status::VerbClass;
use crate::interrupt::{self, Interrupts};
use crate::{foreground, pid_file};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ExecId, Failure, FailureKind, ProcessKey, State};
use bulkhead_sandbox::Command;
use bulkhead_shim::stub::{self, StubRequest};
use clap::Args;
use std::path::PathBuf;
use std::time::{SystemTime, UNIX_EPOCH};

/// Options of `exec`. They are accepted before the id and between the id and the command.
#[derive(Debug, Args)]
pub(crate) struct Exec {
    /// Terminal.
    #[command(flatten)]
    pub(crate) console: ConsoleFlags,
    /// The process.
    #[command(flatten)]
    pub(crate) process: ProcessFlags,
    /// Return once the process runs
    #[arg(long, short)]
    pub(crate) detach: bool,
    /// File to write the process id to
    #[arg(long, value_name = "FILE")]
    pub(crate) pid_file: Option<PathBuf>,
    /// Must be 0: descriptors do not cross into a virtual machine
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
    pub(crate) preserve_fds: u32,
    /// Sub-cgroup to run in; the container's own ("" or "/") only
    #[arg(long, value_name = "[CONTROLLER:]CGROUP")]
    pub(crate) cgroup: Vec<String>,
    /// Do not refuse a paused container
    #[arg(long)]
    pub(crate) ignore_paused: bool,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
    /// Program and its arguments
    #[arg(value_name = "COMMAND", trailing_var_arg = true)]
    pub(crate) command: Vec<String>,
}

impl Exec {
    /// Runs the verb.
    ///
    /// # Errors
    /// A process that cannot be built or started, a container that does not run.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        refuse_preserved(self.preserve_fds)?;
        self.refuse_cgroup()?;
        let interrupts = if self.detach {
            Interrupts::deadly()
        } else {
            Interrupts::all()
        }?;
        let result = self.to_the_end(context, &interrupts);
        interrupts.conclude(result, VerbClass::Exec, &context.report)
    }

    fn to_the_end(&self, context: &Context, interrupts: &Interrupts) -> Outcome {
        let mut found = context.find(&self.id)?;
        self.executable(found.container.state)?;
        let own = exec_process::own(&found.container.bundle)?;
        let (process, warnings) = exec_process::build(&self.process, &own, &self.command)?;
        for warning in &warnings {
            context.report.warning(warning);
        }
        let console = Console::open(&self.console, &process, self.detach)?;
        let key = ProcessKey {
            container: found.id.clone(),
            exec: Some(new_id()?),
        };
        let request = request(context, &found, key.clone(), console.stdio)?;
        let spawning = || stub::spawn(request).map_err(|e| e.to_failure());
        let stub = context.watch.time(Lane::Stub, "start the stub", spawning)?;
        context.watch.tell(&mut found.client, "exec", &key, false);
        let command = Command::Exec {
            key,
            process: Box::new(process),
        };
        match interrupts
            .call(&mut found.client, &command, CALL)
            .map_err(in_runc_words)?
        {
            interrupt::Outcome::Answered => {}
            interrupt::Outcome::Interrupted(signal) => return Err(Interrupts::failure(signal)),
        }
        if let Some(path) = &self.pid_file {
            pid_file::write(path, stub.process().pid)?;
        }
        if self.detach {
            stub.leave();
            return Ok(0);
        }
        foreground::stand_in(&stub, console.master, interrupts)
    }

    fn refuse_cgroup(&self) -> Result<(), Failure> {
        let named = |text: &str| {
            text.rsplit(':')
                .next()
                .is_some_and(|path| !matches!(path, "" | "/"))
        };
        match self.cgroup.iter().find(|text| named(text)) {
            None => Ok(()),
            Some(text) => Err(Failure::new(
                FailureKind::Unsupported,
                format!(
                    "--cgroup {text:?} is not supported: the container's own cgroup is in the guest, expected /"
                ),
            )),
        }
    }

    fn executable(&self, state: State) -> Result<(), Failure> {
        let why = match state {
            State::Ready | State::Running => return Ok(()),
            State::Paused if self.ignore_paused => return Ok(()),
            State::Paused => "cannot exec in a paused container (use --ignore-paused to override)",
            State::Stopped => "cannot exec in a stopped container",
        };
        Err(Failure::new(FailureKind::FailedPrecondition, why))
    }
}

fn request(
    context: &Context,
    found: &Found,
    key: ProcessKey,
    stdio: stub::Stdio,
) -> Result<StubRequest, Failure> {
    let container_stub = found.container.init.host.ok_or_else(|| {
        Failure::new(
            FailureKind::FailedPrecondition,
            format!("container {} has no process on the host to join", found.id),
        )
    })?;
    let paths = context.layout.sandbox(&context.sandbox_of(&found.id)?);
    let socket = paths.control_socket();
    let mut request = StubRequest::for_exec(key, container_stub, socket, &paths.marker, stdio);
    request.log_to(&paths.log());
    Ok(request)
}

/// Unique on the host: this process and now.
fn new_id() -> Result<ExecId, Failure> {
    let now = SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .map_or(0, |since| since.as_nanos());
    ExecId::new(format!("exec-{}-{now:x}", std::process::id()))
        .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))
}
