//! Starting and finding supervisors.
//!
//! ```text
//!  create ──► supervisor() ──► `bulkhead supervisor` (daemonised) ──► ready line ──► Client
//!                                          └─ its boot failed: another line says why, before its socket closes
//!  verb   ──► connect() ──► socket answers ──► Client
//!                       └─► nobody there ──► lock free? ──► `bulkhead supervisor --recover` ──► Client
//! ```
//!
//! Owns: how a supervisor is started. Never: the sandbox itself. Called by `cli`.

use crate::client::Client;
use crate::containerd::Settings;
use crate::offline::{RETRY, lock};
use crate::words::{Ready, Words};
use bulkhead_host::process::{MARKER, Spawn};
use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind, SandboxId, SandboxPlan};
use bulkhead_sandbox::Layout;
use nix::fcntl::OFlag;
use serde::Serialize;
use std::fs::File;
use std::os::unix::fs::DirBuilderExt;
use std::path::Path;
use std::time::{Duration, Instant};

/// How long a supervisor may take until its socket listens.
const START_DEADLINE: Duration = Duration::from_secs(30);

/// Where programs are looked for when the caller has no PATH.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// Descriptor on which a supervisor inherits the lock of its state directory.
pub(crate) const LOCK_FD: i32 = 3;

/// Makes the state directory of a new sandbox, starts its supervisor and connects. The boot goes on
/// while the caller continues. On failure nothing is left.
///
/// # Errors
/// `InvalidArgument` for a network namespace that cannot be had, `AlreadyExists` when the id is in use, otherwise what the supervisor said.
pub fn supervisor(layout: &Layout, plan: &SandboxPlan) -> Result<Client, Failure> {
    start(layout, plan, None)
}

/// [`supervisor`] for one that serves containerd as `shim` says.
///
/// # Errors
/// As [`supervisor`].
pub fn shim(layout: &Layout, plan: &SandboxPlan, shim: &Settings) -> Result<Client, Failure> {
    start(layout, plan, Some(shim))
}

/// Starts a supervisor whose sandbox `id` is ordered over containerd's Sandbox service later. On failure nothing is left.
///
/// # Errors
/// As [`supervisor`].
pub(crate) fn awaiting(layout: &Layout, id: &SandboxId, shim: &Settings) -> Result<(), Failure> {
    make(layout, id, None, Some(shim)).map(drop)
}

fn start(layout: &Layout, plan: &SandboxPlan, shim: Option<&Settings>) -> Result<Client, Failure> {
    bulkhead_sandbox::host::check_network(plan)?;
    let paths = layout.sandbox(&plan.id);
    let mut words = make(layout, &plan.id, Some(plan), shim)?;
    match Client::connect(&paths.control_socket()) {
        Ok(client) => Ok(client.hearing(words)),
        // It may have come and gone meanwhile.
        Err(e) => Err(words
            .last()
            .unwrap_or_else(|| io_failure("connecting to", &paths.control_socket(), &e))),
    }
}

/// Makes the state directory of a sandbox and starts its supervisor; returns what that says on.
fn make(
    layout: &Layout,
    id: &SandboxId,
    plan: Option<&SandboxPlan>,
    shim: Option<&Settings>,
) -> Result<Words, Failure> {
    let paths = layout.sandbox(id);
    make_dir(&layout.sandboxes(), true)?;
    match std::fs::DirBuilder::new().mode(0o700).create(&paths.dir) {
        Ok(()) => {}
        Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {
            return Err(Failure::new(
                FailureKind::AlreadyExists,
                format!("container with id {id} already in use"),
            ));
        }
        Err(e) => return Err(io_failure("creating", &paths.dir, &e)),
    }
    let started = plan
        .map_or(Ok(()), |plan| write_json(&paths.plan(), plan))
        .and_then(|()| shim.map_or(Ok(()), |shim| write_json(&paths.shim(), shim)))
        .and_then(|()| lock(&paths).map_err(|e| io_failure("locking", &paths.lock(), &e)))
        .and_then(|held| spawn(layout, id, &held, false));
    if started.is_err() {
        // A supervisor that failed has undone what it acquired; the directory is ours to remove.
        let _ = std::fs::remove_dir_all(&paths.dir);
    }
    started
}

/// Connects to the supervisor of a known sandbox; a dead one is replaced by a fresh one that recovers
/// what is left.
///
/// # Errors
/// `NotFound` when there is no such sandbox.
pub fn connect(layout: &Layout, id: &SandboxId) -> Result<Client, Failure> {
    let paths = layout.sandbox(id);
    if !paths.dir.is_dir() {
        return Err(Failure::new(
            FailureKind::NotFound,
            format!("container {id} does not exist"),
        ));
    }
    if let Ok(client) = Client::connect(&paths.control_socket()) {
        return Ok(client);
    }
    if paths.shim().exists() {
        // containerd is told that its shim died and cleans up; a successor would be in its way.
        return Err(Failure::new(
            FailureKind::Unavailable,
            format!("the shim of sandbox {id} has ended: expected containerd to remove what is left"),
        ));
    }
    let end = Instant::now() + START_DEADLINE;
    loop {
        match lock(&paths) {
            Ok(held) => drop(spawn(layout, id, &held, true)?),
            // Somebody else is starting or replacing it.
            Err(e) if e.kind() == std::io::ErrorKind::WouldBlock => std::thread::sleep(RETRY),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
                return Err(Failure::new(
                    FailureKind::NotFound,
                    format!("container {id} does not exist"),
                ));
            }
            Err(e) => return Err(io_failure("locking", &paths.lock(), &e)),
        }
        match Client::connect(&paths.control_socket()) {
            Ok(client) => return Ok(client),
            Err(e) if Instant::now() > end => {
                return Err(io_failure("connecting to", &paths.control_socket(), &e));
            }
            Err(_) => {}
        }
    }
}

pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<(), Failure> {
    let json = serde_json::to_vec(value)
        .map_err(|e| Failure::new(FailureKind::Internal, format!("encoding {}: {e}", path.display())))?;
    std::fs::write(path, json).map_err(|e| io_failure("writing", path, &e))
}

/// Starts a supervisor, which inherits the lock; returns what it says on.
fn spawn(layout: &Layout, id: &SandboxId, held: &File, recover: bool) -> Result<Words, Failure> {
    let this = Path::new("/proc/self/exe");
    let fail = |e: &dyn std::error::Error| {
        Failure::new(
            FailureKind::Internal,
            format!("starting the supervisor of {id}: {}", chain(e)),
        )
    };
    let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).map_err(|e| fail(&e))?;
    let mut spawn = Spawn::new(this)
        .arg("supervisor")
        .arg("--root")
        .arg(layout.root())
        .arg("--sandbox")
        .arg(id.as_str())
        .env(MARKER, format!("{}/supervisor", layout.sandbox(id).marker))
        .env(
            "PATH",
            std::env::var_os("PATH").unwrap_or_else(|| DEFAULT_PATH.into()),
        )
        .fd(write, 1)
        .fd(held.try_clone().map_err(|e| fail(&e))?.into(), LOCK_FD)
        .directory("/")
        .new_session();
    if let Some(config) = std::env::var_os("BULKHEAD_CONFIG") {
        spawn = spawn.env("BULKHEAD_CONFIG", config);
    }
    if recover {
        spawn = spawn.arg("--recover");
    }
    // The child is not waited for: it outlives this process, or ends with its sandbox and is reaped by
    // whoever inherits it.
    spawn.spawn().map_err(|e| fail(&e))?;
    let mut words = Words::from(read);
    match words.next(START_DEADLINE)? {
        Some(Ready::Listening) => Ok(words),
        Some(Ready::Failed(failure)) => Err(failure),
        None => Err(Failure::new(
            FailureKind::Unavailable,
            format!("the supervisor of {id} ended before its socket was there"),
        )),
    }
}

fn make_dir(path: &Path, recursive: bool) -> Result<(), Failure> {
    std::fs::DirBuilder::new()
        .recursive(recursive)
        .mode(0o700)
        .create(path)
        .map_err(|e| io_failure("creating", path, &e))
}

fn io_failure(action: &str, path: &Path, error: &std::io::Error) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("{action} {}: {error}", path.display()),
    )
}
