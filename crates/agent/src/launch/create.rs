//! A worker's job: making a container with `libcontainer`.
//!
//! Owns: the call, and how the reason for a missing program gets out of the container (a pipe: the
//! library only hands text on). Never: cgroup limits, devices, seccomp of execs.

use super::order::{CreateOrder, Launched, Refusal};
use super::server::three;
use super::userns::UserNamespace;
use super::verdict::{self, Verdict};
use crate::program::{Program, ProgramError};
use crate::sys::{keyring, rights, signals};
use bulkhead_model::FailureKind;
use bulkhead_model::oci::Spec;
use libcontainer::container::builder::ContainerBuilder;
use libcontainer::syscall::syscall::SyscallType;
use libcontainer::workload::{Executor, ExecutorError, ExecutorSetEnvsError, ExecutorValidationError};
use std::collections::HashMap;
use std::ffi::CString;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

/// Runs as the container's own process, inside it.
#[derive(Clone)]
struct OwnProcess {
    verdict: Verdict,
}

impl OwnProcess {
    fn program(&self, spec: &Spec) -> Result<Program, ProgramError> {
        let process = spec.process().as_ref().ok_or(ProgramError::Empty)?;
        Program::resolve(process)
    }
}

impl Executor for OwnProcess {
    fn validate(&self, spec: &Spec) -> Result<(), ExecutorValidationError> {
        self.program(spec).map(drop).map_err(|error| {
            let message = error.to_string();
            self.verdict.program(Refusal {
                kind: error.kind(),
                message: message.clone(),
            });
            ExecutorValidationError::ArgValidationError(message)
        })
    }

    fn setup_envs(&self, _envs: HashMap<String, String>) -> Result<(), ExecutorSetEnvsError> {
        // The environment is given to execve in the spec's order; a map has none.
        Ok(())
    }

    fn exec(&self, spec: &Spec) -> Result<(), ExecutorError> {
        let program = self
            .program(spec)
            .map_err(|error| ExecutorError::Other(error.to_string()))?;
        signals::reset();
        let error = program.run();
        // Its standard error is the user's: say there what went wrong, as runc does.
        let text = format!(
            "exec {}: {}\n",
            program.path.to_string_lossy(),
            error.desc().to_lowercase()
        );
        let _ = std::io::stderr().write_all(text.as_bytes());
        Err(ExecutorError::Other(text))
    }
}

pub(super) fn run(order: &CreateOrder, descriptors: Vec<OwnedFd>) -> Result<Launched, Refusal> {
    let trouble = |what: &'static str| move |error: std::io::Error| Refusal::internal(what, &error);
    if let Some(name) = &order.keyring
        && let Ok(name) = CString::new(name.as_str())
    {
        // A kernel without keyrings runs containers too.
        let _ = keyring::join_new_session(&name);
    }
    let _users = match &order.users {
        Some((maps, file)) => Some(
            UserNamespace::make(file, &maps.uids, &maps.gids)
                .map_err(trouble("making the user namespace"))?,
        ),
        None => None,
    };
    let (reasons, verdict) = verdict::channel().map_err(trouble("pipe"))?;
    let library = |error: &dyn std::error::Error| Refusal::internal("container setup", error);
    let mut builder = ContainerBuilder::new(order.name.clone(), SyscallType::default())
        .with_root_path(&order.state)
        .map_err(|error| library(&error))?
        .with_executor(OwnProcess { verdict });
    let mut console = None;
    if order.terminal {
        let path = order.bundle.join("console.sock");
        console = Some(UnixListener::bind(&path).map_err(trouble("console socket"))?);
        builder = builder.with_console_socket(Some(path));
    } else {
        let [stdin, stdout, stderr] = three(descriptors)?;
        builder = builder.with_stdin(stdin).with_stdout(stdout).with_stderr(stderr);
    }
    let built = builder
        .as_init(&order.bundle)
        .with_systemd(false)
        .with_detach(true)
        .with_no_pivot(order.no_pivot)
        .build();
    let container = match built {
        Ok(container) => container,
        Err(error) => return Err(reasons.first().unwrap_or_else(|| library(&error))),
    };
    let pid = container.pid().ok_or_else(|| Refusal {
        kind: FailureKind::Internal,
        message: "container setup: no pid".to_owned(),
    })?;
    let terminal = match console {
        Some(console) => Some(receive_master(&console).map_err(trouble("console"))?),
        None => None,
    };
    Ok(Launched {
        pid: pid.as_raw(),
        terminal,
    })
}

/// The library connects and sends before its build returns, so nothing here can wait for long.
fn receive_master(console: &UnixListener) -> std::io::Result<OwnedFd> {
    let (socket, _) = console.accept()?;
    rights::receive_bare(&socket)?.ok_or_else(|| std::io::Error::from(std::io::ErrorKind::UnexpectedEof))
}
