//! `delete`: removes what is left of a container whose shim is gone or does not answer.
//!
//! | the sandbox's supervisor | the container made the sandbox | it joined |
//! | --- | --- | --- |
//! | answers | told to shut down, then killed | told to delete it |
//! | is gone | everything of the sandbox is swept | the same: nobody else is left to do it |
//! | is there and does not answer | killed, then swept | killed, then swept |
//!
//! Owns: that table and the answer on standard output. Called through the binary's name.

use super::Settings;
use super::invocation::{Invocation, encode};
use crate::client::Client;
use crate::offline;
use bulkhead_host::process::{marked, signal_exact, wait_gone};
use bulkhead_model::{ContainerId, Failure, FailureKind, SandboxId};
use bulkhead_sandbox::{Command, ContainerMap, Layout};
use containerd_shim_protos::api::DeleteResponse;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use std::time::{Duration, SystemTime};

/// What a live supervisor gets to take its sandbox down; containerd waits about as long.
const SHUTDOWN_DEADLINE: Duration = Duration::from_secs(20);

/// For a process that was killed.
const KILL_DEADLINE: Duration = Duration::from_secs(20);

/// Status of a process that nobody saw end: killed by signal 9.
const KILLED: u32 = 137;

pub(super) fn run(invocation: &Invocation) -> Result<Vec<u8>, Failure> {
    let id = ContainerId::new(invocation.id.as_str())
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let layout = Settings::layout(&invocation.namespace);
    let map = ContainerMap::new(layout.containers());
    // A damaged entry is replaced by the name it most likely stood for.
    let sandbox = map
        .sandbox_of(&id)
        .ok()
        .flatten()
        .unwrap_or_else(|| SandboxId::from(&id));
    remove(&layout, &id, &sandbox)?;
    let _ = map.remove(&id);
    encode(&DeleteResponse {
        exit_status: KILLED,
        exited_at: Some(Timestamp::from(SystemTime::now())).into(),
        ..DeleteResponse::default()
    })
}

fn remove(layout: &Layout, id: &ContainerId, sandbox: &SandboxId) -> Result<(), Failure> {
    let paths = layout.sandbox(sandbox);
    if !paths.dir.exists() && !paths.sockets.exists() {
        return Ok(());
    }
    let command = if *sandbox == SandboxId::from(id) {
        Command::Shutdown
    } else {
        Command::Delete {
            id: id.clone(),
            force: true,
        }
    };
    if let Ok(mut client) = Client::connect(&paths.control_socket()) {
        match client.call(&command, Some(SHUTDOWN_DEADLINE)) {
            Ok(_) => {
                if command == Command::Shutdown {
                    // Its end closes the connection; whom it would still answer has gone.
                    while client.receive(Some(SHUTDOWN_DEADLINE)).is_ok() {}
                    end_supervisor(&paths.marker)?;
                }
                return Ok(());
            }
            Err(failure) if failure.kind == FailureKind::NotFound => return Ok(()),
            Err(_) => {}
        }
    }
    end_supervisor(&paths.marker)?;
    match offline::remove(layout, sandbox.clone(), KILL_DEADLINE) {
        Some(one) if !one.left.is_empty() => Err(Failure::new(
            FailureKind::Internal,
            format!("sandbox {sandbox} left {}", one.left.join("; ")),
        )),
        None if paths.dir.exists() => Err(Failure::new(
            FailureKind::FailedPrecondition,
            format!(
                "sandbox {sandbox}: {} is locked: expected its supervisor to be gone",
                paths.lock().display()
            ),
        )),
        _ => Ok(()),
    }
}

/// One that does not answer holds the lock on its state directory.
fn end_supervisor(marker: &str) -> Result<(), Failure> {
    let fail = |error: &dyn std::error::Error| Failure::from_chain(FailureKind::Internal, error);
    let value = format!("{marker}/supervisor");
    for (pid, start_time, _) in marked(Some(&value)).map_err(|e| fail(&e))? {
        signal_exact(pid, start_time, nix::libc::SIGKILL).map_err(|e| fail(&e))?;
        if !wait_gone(pid, start_time, KILL_DEADLINE).map_err(|e| fail(&e))? {
            return Err(Failure::new(
                FailureKind::DeadlineExceeded,
                format!("supervisor {pid} is still there after SIGKILL"),
            ));
        }
    }
    Ok(())
}
