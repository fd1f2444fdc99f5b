//! OCI hooks (K-06): programs of the bundle's author that run at fixed moments of a container's life.
//!
//! | kind | when | where | a failure |
//! | --- | --- | --- | --- |
//! | prestart, createRuntime | the stub is there, the VM still starts | host | ends the create |
//! | createContainer | after them | the stub's network, UTS and IPC namespaces | ends the create |
//! | startContainer | before the program | in the guest, by the agent | ends the start |
//! | poststart | after the program started | host | is logged |
//! | poststop | after the container is gone | host | is logged |
//!
//! Owns: running one kind of hooks of a spec: state on standard input, environment as given, time-out.
//! Never: which hooks a spec may have. Called by the verbs create, run, start and delete, and by the task
//! service.

use crate::oci_state::OciState;
use bulkhead_host::deadline::{Deadline, readable};
use bulkhead_host::process::{IdentityError, open_exact, start_time};
use bulkhead_model::failure::chain;
use bulkhead_model::{ContainerSnapshot, Failure, FailureKind, HostProcess, oci};
use nix::sched::{CloneFlags, setns};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::os::fd::AsFd;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// A hook without a time-out may take this long: every wait has an end.
const LONGEST: Duration = Duration::from_secs(600);

/// How long a killed hook may take to be gone.
const KILL_DEADLINE: Duration = Duration::from_secs(30);

/// How much of a hook's output goes into its error, in bytes.
const QUOTED_BYTES: u64 = 2048;

/// When a hook runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookKind {
    /// Deprecated by the specification, still in use.
    Prestart,
    /// Same moment and place as prestart.
    CreateRuntime,
    /// In the container's namespaces.
    CreateContainer,
    /// After the program started.
    Poststart,
    /// After the container is gone.
    Poststop,
}

impl HookKind {
    /// The name in config.json.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Prestart => "prestart",
            Self::CreateRuntime => "createRuntime",
            Self::CreateContainer => "createContainer",
            Self::Poststart => "poststart",
            Self::Poststop => "poststop",
        }
    }

    /// Whether there are any of this kind.
    #[must_use]
    pub fn any(self, hooks: &oci::Hooks) -> bool {
        !self.of(hooks).is_empty()
    }

    fn of(self, hooks: &oci::Hooks) -> &[oci::Hook] {
        #[allow(deprecated, reason = "prestart is deprecated and still what engines use")]
        let hooks = match self {
            Self::Prestart => hooks.prestart(),
            Self::CreateRuntime => hooks.create_runtime(),
            Self::CreateContainer => hooks.create_container(),
            Self::Poststart => hooks.poststart(),
            Self::Poststop => hooks.poststop(),
        };
        hooks.as_deref().unwrap_or_default()
    }
}

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
enum HookError {
    #[error("starting it")]
    Start(#[source] io::Error),
    #[error("entering the container's namespaces")]
    Namespaces(#[source] io::Error),
    #[error("preparing its standard input and output")]
    Stdio(#[source] io::Error),
    #[error("it did not end within {} s and was killed", .0.as_secs_f32())]
    TimedOut(Duration),
    #[error("waiting for it")]
    Wait(#[source] io::Error),
    #[error(transparent)]
    Identity(#[from] IdentityError),
    #[error("{status}{}", quoted(.output))]
    Ended { status: String, output: String },
}

fn quoted(output: &str) -> String {
    match output.trim() {
        "" => String::new(),
        text => format!(", output: {}", text.replace('\n', " ")),
    }
}

/// Runs all hooks of one kind, in order. `stub` names the process whose namespaces createContainer hooks
/// enter.
///
/// # Errors
/// The first hook that fails, by kind, position and path; the following ones do not run.
pub fn run(
    kind: HookKind,
    hooks: &oci::Hooks,
    state: &OciState,
    stub: Option<HostProcess>,
) -> Result<(), Failure> {
    for (index, hook) in kind.of(hooks).iter().enumerate() {
        one(kind, hook, state, stub).map_err(|error| {
            let kind = kind.name();
            let path = hook.path().display();
            Failure::new(
                FailureKind::InvalidArgument,
                format!("hook hooks.{kind}[{index}] {path}: {}", chain(&error)),
            )
        })?;
    }
    Ok(())
}

/// What became of the hooks of one kind.
#[derive(Debug, Default)]
#[must_use]
pub struct Ran {
    /// There were some.
    pub any: bool,
    /// Those that failed, a line each.
    pub failed: Vec<String>,
}

/// Runs all hooks of one kind of a container that exists or existed: every one runs, whatever became of the others.
pub fn run_each(kind: HookKind, container: &ContainerSnapshot) -> Ran {
    let hooks = match of_bundle(&container.bundle) {
        Ok(Some(hooks)) => hooks,
        Ok(None) => return Ran::default(),
        Err(why) => {
            return Ran {
                any: false,
                failed: vec![why],
            };
        }
    };
    let state = OciState::of(container);
    let failed = kind.of(&hooks).iter().enumerate().filter_map(|(index, hook)| {
        let error = one(kind, hook, &state, None).err()?;
        let (kind, path) = (kind.name(), hook.path().display());
        Some(format!("hook hooks.{kind}[{index}] {path}: {}", chain(&error)))
    });
    Ran {
        any: kind.any(&hooks),
        failed: failed.collect(),
    }
}

/// The hooks of a bundle whose config.json was valid when its container was created.
fn of_bundle(bundle: &Path) -> Result<Option<oci::Hooks>, String> {
    let path = bundle.join("config.json");
    let text = match std::fs::read(&path) {
        Ok(text) => text,
        // Engines may remove the bundle before the container.
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(format!("hooks: reading {}: {e}", path.display())),
    };
    serde_json::from_slice::<oci::Spec>(&text)
        .map(|spec| spec.hooks().clone())
        .map_err(|e| format!("hooks: {}: {e}", path.display()))
}

fn one(
    kind: HookKind,
    hook: &oci::Hook,
    state: &OciState,
    stub: Option<HostProcess>,
) -> Result<(), HookError> {
    let input = state_file(state).map_err(HookError::Stdio)?;
    let mut output = scratch("hook-output").map_err(HookError::Stdio)?;
    let mut command = command(hook, &state.bundle);
    let share = || output.try_clone().map(Stdio::from).map_err(HookError::Stdio);
    command
        .stdin(Stdio::from(input))
        .stdout(share()?)
        .stderr(share()?);
    let child = match (kind, stub) {
        (HookKind::CreateContainer, Some(stub)) => start_inside(command, stub)?,
        _ => command.spawn().map_err(HookError::Start)?,
    };
    let within = hook
        .timeout()
        .and_then(|seconds| u64::try_from(seconds).ok())
        .map_or(LONGEST, Duration::from_secs);
    let status = wait(child, within)?;
    if status.success() {
        return Ok(());
    }
    Err(HookError::Ended {
        status: describe(status),
        output: head(&mut output),
    })
}

fn command(hook: &oci::Hook, bundle: &Path) -> Command {
    let mut command = Command::new(hook.path());
    let args = hook.args().as_deref().unwrap_or_default();
    if let Some((name, rest)) = args.split_first() {
        command.arg0(name).args(rest);
    }
    command.env_clear();
    for entry in hook.env().as_deref().unwrap_or_default() {
        if let Some((name, value)) = entry.split_once('=').filter(|(name, _)| !name.is_empty()) {
            command.env(name, value);
        }
    }
    if bundle.is_dir() {
        command.current_dir(bundle);
    }
    // Killed as a group, so that what it started goes too.
    command.process_group(0);
    command
}

/// From a thread that entered the stub's namespaces; it ends with them, so nothing has to be restored.
fn start_inside(mut command: Command, stub: HostProcess) -> Result<Child, HookError> {
    let stub = open_exact(stub.pid, stub.start_time)?;
    let flags = CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWUTS | CloneFlags::CLONE_NEWIPC;
    std::thread::scope(|scope| {
        let started = scope.spawn(move || {
            setns(&stub, flags).map_err(|e| HookError::Namespaces(e.into()))?;
            command.spawn().map_err(HookError::Start)
        });
        started
            .join()
            .unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

/// Waits for a child of ours; one that is late is killed with its process group.
fn wait(mut child: Child, within: Duration) -> Result<ExitStatus, HookError> {
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    // Not reaped yet, so it has a start time even if it has ended.
    let handle = start_time(pid)?.map(|start| open_exact(pid, start)).transpose();
    let ended = match handle {
        Ok(Some(handle)) => readable(handle.as_fd(), Deadline::after(within)).map_err(HookError::Wait)?,
        // A zombie cannot be opened: it has ended.
        _ => true,
    };
    if ended {
        return child.wait().map_err(HookError::Wait);
    }
    let group = nix::unistd::Pid::from_raw(pid);
    // It may end by itself at this moment.
    let _ = nix::sys::signal::killpg(group, nix::sys::signal::Signal::SIGKILL);
    if let Ok(Some(start)) = start_time(pid)
        && let Ok(handle) = open_exact(pid, start)
    {
        // A process in uninterruptible sleep outlives this; it is not waited for.
        if !readable(handle.as_fd(), Deadline::after(KILL_DEADLINE)).unwrap_or(true) {
            return Err(HookError::TimedOut(within));
        }
    }
    let _ = child.wait();
    Err(HookError::TimedOut(within))
}

fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("exit status {code}"),
        (None, Some(signal)) => format!("ended by signal {signal}"),
        (None, None) => "ended".to_owned(),
    }
}

fn scratch(name: &str) -> io::Result<File> {
    Ok(File::from(memfd_create(name, MFdFlags::MFD_CLOEXEC)?))
}

/// The state as hooks get it: the members of the OCI specification only.
fn state_file(state: &OciState) -> io::Result<File> {
    let mut file = scratch("hook-state")?;
    let text = serde_json::to_vec(&HookState::of(state))?;
    file.write_all(&text)?;
    file.seek(SeekFrom::Start(0))?;
    Ok(file)
}

#[derive(serde::Serialize)]
#[serde(rename_all = "camelCase")]
struct HookState<'a> {
    oci_version: &'a str,
    id: &'a str,
    status: &'a str,
    #[serde(skip_serializing_if = "zero")]
    pid: i32,
    bundle: &'a PathBuf,
    #[serde(skip_serializing_if = "std::collections::BTreeMap::is_empty")]
    annotations: &'a std::collections::BTreeMap<String, String>,
}

#[allow(clippy::trivially_copy_pass_by_ref, reason = "serde's signature")]
fn zero(pid: &i32) -> bool {
    *pid == 0
}

impl<'a> HookState<'a> {
    fn of(state: &'a OciState) -> Self {
        Self {
            oci_version: &state.oci_version,
            id: &state.id,
            status: &state.status,
            pid: state.pid,
            bundle: &state.bundle,
            annotations: &state.annotations,
        }
    }
}

/// The beginning of what it wrote.
fn head(output: &mut File) -> String {
    let mut text = Vec::new();
    let read = output
        .seek(SeekFrom::Start(0))
        .and_then(|_| output.take(QUOTED_BYTES).read_to_end(&mut text));
    match read {
        Ok(_) => String::from_utf8_lossy(&text).into_owned(),
        Err(_) => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn state(bundle: &Path) -> OciState {
        serde_json::from_value(serde_json::json!({
            "ociVersion": "1.1.0", "id": "c", "pid": 42, "status": "creating", "bundle": bundle,
            "rootfs": "/r", "created": "", "owner": "", "annotations": {"k": "v"},
        }))
        .unwrap()
    }

    fn hooks(kind: HookKind, script: &str, more: serde_json::Value) -> oci::Hooks {
        let mut hook = serde_json::json!({"path": "/bin/sh", "args": ["hook", "-c", script]});
        hook.as_object_mut()
            .unwrap()
            .extend(more.as_object().unwrap().clone());
        serde_json::from_value(serde_json::json!({kind.name(): [hook]})).unwrap()
    }

    fn none() -> serde_json::Value {
        serde_json::json!({})
    }

    /// K-06: state on standard input, environment as given, in the bundle.
    #[test]
    fn k06_state_environment_and_directory() {
        let dir = tempfile::tempdir().unwrap();
        let script = "cat > got; printf '%s ' \"$0\" \"$A\" \"$HOME\" >> got";
        let hooks = hooks(
            HookKind::CreateRuntime,
            script,
            serde_json::json!({"env": ["A=b=c", "PATH=/bin:/usr/bin"]}),
        );
        run(HookKind::CreateRuntime, &hooks, &state(dir.path()), None).unwrap();
        let got = std::fs::read_to_string(dir.path().join("got")).unwrap();
        let (json, rest) = got.split_at(got.find('}').unwrap() + 2);
        let value: serde_json::Value = serde_json::from_str(json).unwrap();
        assert_eq!(
            value,
            serde_json::json!({
                "ociVersion": "1.1.0", "id": "c", "status": "creating", "pid": 42,
                "bundle": dir.path(), "annotations": {"k": "v"},
            })
        );
        assert_eq!(rest, "hook b=c  ");
        // Another kind's hooks do not run.
        run(
            HookKind::Prestart,
            &hooks,
            &state(Path::new("/nonexistent")),
            None,
        )
        .unwrap();
    }

    /// K-06: a failure names kind, position, path, status and output.
    #[test]
    fn k06_a_failure_says_why() {
        let hooks = hooks(HookKind::Prestart, "echo no luck >&2; exit 3", none());
        let failure = run(HookKind::Prestart, &hooks, &state(Path::new("/")), None).unwrap_err();
        assert_eq!(
            failure.message,
            "hook hooks.prestart[0] /bin/sh: exit status 3, output: no luck"
        );
    }

    /// K-06: a hook that never ends is killed, and what it started with it.
    #[test]
    fn k06_a_time_out_kills() {
        let dir = tempfile::tempdir().unwrap();
        let script = "sleep 1000 & echo $! > child; wait";
        let hooks = hooks(
            HookKind::Prestart,
            script,
            serde_json::json!({"timeout": 1, "env": ["PATH=/bin:/usr/bin"]}),
        );
        let failure = run(HookKind::Prestart, &hooks, &state(dir.path()), None).unwrap_err();
        assert!(
            failure.message.ends_with("within 1 s and was killed"),
            "{failure}"
        );
        let child: i32 = std::fs::read_to_string(dir.path().join("child"))
            .unwrap()
            .trim()
            .parse()
            .unwrap();
        if let Ok(Some(start)) = start_time(child) {
            let gone = bulkhead_host::process::wait_gone(child, start, Duration::from_secs(60));
            assert!(gone.unwrap());
        }
    }

    /// K-06: a program that is not there is an error, not a panic.
    #[test]
    fn k06_a_missing_program() {
        let hooks: oci::Hooks =
            serde_json::from_value(serde_json::json!({"prestart": [{"path": "/nonexistent"}]})).unwrap();
        let failure = run(HookKind::Prestart, &hooks, &state(Path::new("/")), None).unwrap_err();
        assert!(failure.message.contains("/nonexistent: starting it"), "{failure}");
    }
}
