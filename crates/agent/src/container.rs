//! One container in the guest: its cgroup, its processes, its mounts.
//!
//! ```text
//!  Request ─make─► Container ─start─► … ─remove─► nothing left
//!      a failure at any step takes back the steps before it
//! ```
//!
//! Owns: what belongs to one container. Never: the table of containers (see `guest`). Calls block.

use crate::cgroup::{Cgroup, CgroupError};
use crate::engine::{Handle, Made, Shared};
use crate::guest::{Services, Spare};
use crate::launch::{Attributes, Blueprint, ExecOrder, Launched, Refusal, UserMaps};
use crate::process::{Group, Process};
use crate::spec::{self, Facts, Rewritten};
use crate::stdio::{self, Ends, Streams};
use crate::steps::step;
use bulkhead_model::FailureKind;
use bulkhead_model::oci::{self, LinuxCapabilities, LinuxDevice, LinuxResources, Spec};
use bulkhead_protocol::api::agent::{CreateContainerRequest, Stdio};
use nix::sys::signal::Signal;
use std::collections::HashMap;
use std::fs;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

/// How long processes may take to die, freeze or thaw: a loaded machine, an emulated CPU.
const DEADLINE: Duration = Duration::from_secs(60);

/// A container.
pub(crate) struct Container {
    id: String,
    handle: Handle,
    cgroup: Arc<Cgroup>,
    init: Arc<Process>,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    started: AtomicBool,
    devices: Vec<LinuxDevice>,
    shared: Shared,
    capabilities: LinuxCapabilities,
    users: Option<UserMaps>,
    pipe_bytes: u32,
    storages: Vec<String>,
}

fn cgroup_refusal(error: &CgroupError) -> Refusal {
    let kind = match error {
        CgroupError::Limit(_) | CgroupError::Device(_) | CgroupError::Set { .. } => {
            FailureKind::InvalidArgument
        }
        CgroupError::Deadline { .. } => FailureKind::DeadlineExceeded,
        CgroupError::File { .. } | CgroupError::Program { .. } => FailureKind::Internal,
    };
    Refusal {
        kind,
        message: bulkhead_model::failure::chain(error),
    }
}

fn invalid(what: &str, error: &dyn std::error::Error) -> Refusal {
    Refusal {
        kind: FailureKind::InvalidArgument,
        message: format!("{what}: {}", bulkhead_model::failure::chain(error)),
    }
}

/// Steps taken so far; taken back in reverse when dropped unless kept.
struct Undo<'a> {
    services: &'a Services,
    storages: Vec<String>,
    cgroup: Option<Arc<Cgroup>>,
    engine: Option<Handle>,
    kept: bool,
}

impl Drop for Undo<'_> {
    fn drop(&mut self) {
        if self.kept {
            return;
        }
        if let Some(cgroup) = &self.cgroup {
            let emptied = cgroup.kill(DEADLINE).and_then(|()| cgroup.remove());
            if let Err(error) = emptied {
                self.services.events.log(
                    "warn",
                    format!("undoing: {}", bulkhead_model::failure::chain(&error)),
                );
            }
        }
        if let Some(handle) = &self.engine {
            self.services.engine.forget(handle);
        }
        release(self.services, &self.storages);
    }
}

fn release(services: &Services, storages: &[String]) {
    for mount_point in storages.iter().rev() {
        if let Err(error) = services.storages.release(mount_point) {
            services
                .events
                .log("warn", bulkhead_model::failure::chain(&error));
        }
    }
}

impl Container {
    /// Makes the container of `request`; `facts` has everything but what the request says.
    ///
    /// # Errors
    /// [`Refusal`]; nothing is left behind then.
    pub(crate) fn make(
        services: &Services,
        request: &CreateContainerRequest,
        facts: Facts,
    ) -> Result<Self, Refusal> {
        let id = request.container.as_str();
        let given: Spec = serde_json::from_slice(&request.spec).map_err(|error| invalid("spec", &error))?;
        let stdio = request.stdio.clone().unwrap_or_default();
        let mut undo = Undo {
            services,
            storages: Vec::new(),
            cgroup: None,
            engine: None,
            kept: false,
        };
        for storage in &request.storages {
            let _step = step("mount a storage");
            services
                .storages
                .add(storage, false)
                .map_err(|error| invalid("storage", &error))?;
            undo.storages.push(storage.mount_point.clone());
        }
        let rootfs = std::path::PathBuf::from(&request.rootfs);
        crate::paths::open(&rootfs).map_err(|error| invalid("rootfs", &error))?;
        let limiting = step("cgroup and limits");
        let Spare { cgroup, reserve } = services.cgroup(id).map_err(|error| cgroup_refusal(&error))?;
        undo.cgroup = Some(cgroup.clone());
        drop(limiting);
        let facts = Facts {
            rootfs,
            cgroup: cgroup.name(),
            seccomp: request.seccomp,
            terminal: stdio.terminal,
            whole_dev: request.whole_dev,
            ..facts
        };
        let hooks = given
            .hooks()
            .as_ref()
            .and_then(|hooks| hooks.start_container().as_ref());
        // For them alone.
        let document = hooks.map_or_else(String::new, |_| state(id, request, &given));
        let rewritten = spec::rewrite(given, &facts).map_err(|error| Refusal {
            kind: match error {
                spec::SpecError::Unsupported { .. } => FailureKind::Unsupported,
                _ => FailureKind::InvalidArgument,
            },
            message: error.to_string(),
        })?;
        apply_sysctls(&rewritten)?;
        apply_swappiness(&rewritten.resources)?;
        let limiting = step("cgroup and limits");
        for line in cgroup
            .apply(&rewritten.resources)
            .map_err(|error| cgroup_refusal(&error))?
        {
            services.events.log("warn", format!("container {id}: {line}"));
        }
        cgroup
            .restrict_devices(
                &rewritten.rules,
                &rewritten.devices,
                services.port_major,
                &services.programs,
            )
            .map_err(|error| cgroup_refusal(&error))?;
        drop(limiting);

        let blueprint = Blueprint {
            id: id.to_owned(),
            spec: rewritten.spec,
            users: rewritten.new_users.then(|| rewritten.users.clone()).flatten(),
            no_pivot: request.no_pivot,
            no_new_keyring: request.no_new_keyring,
            state: document,
        };
        let owner = blueprint
            .spec
            .process()
            .as_ref()
            .map_or((0, 0), |process| owner(process, rewritten.users.as_ref()));
        let engine = services.engine.as_ref();
        let group = Group {
            cgroup: &cgroup,
            kills: 0,
            init: true,
        };
        let (made, init) = launch(services, &stdio, owner, request.pipe_bytes, &group, |child| {
            let _step = step("clone, mounts, pivot");
            let Made {
                handle,
                shared,
                process,
            } = engine.create(&blueprint, cgroup.path(), child, reserve)?;
            undo.engine = Some(handle.clone());
            Ok(((handle, shared), process))
        })?;
        let (handle, shared) = made;
        if let Err(error) = services.oom.add(id, &cgroup) {
            services.events.log(
                "debug",
                format!("container {id}: no out-of-memory events: {error}"),
            );
        }
        undo.kept = true;
        if facts.pids.is_some() {
            kill_with(&init, &cgroup);
        }
        Ok(Self {
            id: id.to_owned(),
            handle,
            cgroup,
            init: Arc::new(init),
            execs: Mutex::default(),
            started: AtomicBool::new(false),
            devices: rewritten.devices,
            shared,
            capabilities: rewritten.capabilities,
            users: rewritten.users,
            pipe_bytes: request.pipe_bytes,
            storages: std::mem::take(&mut undo.storages),
        })
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The process of exec id `exec`, or its own if that is empty.
    ///
    /// # Errors
    /// Not found.
    pub(crate) fn process(&self, exec: &str) -> Result<Arc<Process>, Refusal> {
        if exec.is_empty() {
            return Ok(self.init.clone());
        }
        self.execs().get(exec).cloned().ok_or_else(|| Refusal {
            kind: FailureKind::NotFound,
            message: format!("process {exec:?} of container {:?} does not exist", self.id),
        })
    }

    /// Its own process.
    #[must_use]
    pub(crate) fn init(&self) -> &Arc<Process> {
        &self.init
    }

    /// Lets its process run.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn start(&self, services: &Services) -> Result<(), Refusal> {
        if self.started.swap(true, Ordering::SeqCst) {
            return Err(Refusal {
                kind: FailureKind::FailedPrecondition,
                message: format!("container {:?} was started before", self.id),
            });
        }
        let _step = step("let it run");
        services.engine.start(&self.handle)
    }

    /// Runs a further process, OCI JSON in `process`.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn exec(
        &self,
        services: &Services,
        exec: &str,
        process: &[u8],
        stdio: &Stdio,
    ) -> Result<i32, Refusal> {
        if exec.is_empty() {
            return Err(invalid(
                "exec id",
                &std::io::Error::from(std::io::ErrorKind::InvalidInput),
            ));
        }
        if self.execs().contains_key(exec) {
            return Err(Refusal {
                kind: FailureKind::AlreadyExists,
                message: format!("process {exec:?} of container {:?} exists", self.id),
            });
        }
        if self.init.ended() {
            return Err(Refusal {
                kind: FailureKind::FailedPrecondition,
                message: format!("container {:?} is not running", self.id),
            });
        }
        let mut process: oci::Process =
            serde_json::from_slice(process).map_err(|error| invalid("process", &error))?;
        if process.capabilities().is_none() {
            process.set_capabilities(Some(self.capabilities.clone()));
        }
        process.set_terminal(Some(stdio.terminal));
        spec::adapt_process(&mut process);
        let owner = owner(&process, self.users.as_ref());
        let order = ExecOrder {
            target: self.init.pid,
            namespaces: self.shared.namespaces,
            attributes: Attributes::of(&process, self.shared.confinement.clone()),
        };
        let engine = services.engine.as_ref();
        let group = Group {
            cgroup: &self.cgroup,
            kills: self.cgroup.oom_kills(),
            init: false,
        };
        let ((), running) = launch(services, stdio, owner, self.pipe_bytes, &group, |child| {
            let _step = step("clone, join, exec");
            Ok(((), engine.exec(order, self.cgroup.path(), child)?))
        })?;
        let pid = running.pid;
        self.execs().insert(exec.to_owned(), Arc::new(running));
        Ok(pid)
    }

    /// Forgets an exec that has ended. Unknown is fine.
    ///
    /// # Errors
    /// It still runs.
    pub(crate) fn forget(&self, services: &Services, exec: &str) -> Result<(), Refusal> {
        let mut execs = self.execs();
        let Some(process) = execs.get(exec) else {
            return Ok(());
        };
        if !process.ended() {
            return Err(Refusal {
                kind: FailureKind::FailedPrecondition,
                message: format!("process {exec:?} of container {:?} still runs", self.id),
            });
        }
        stdio::finish(&services.endpoint, process.streams);
        execs.remove(exec);
        Ok(())
    }

    /// Sends a signal to one process, or to all.
    ///
    /// # Errors
    /// No such signal, no such exec.
    pub(crate) fn signal(&self, exec: &str, signal: i32, all: bool) -> Result<(), Refusal> {
        let failed = |error: std::io::Error| Refusal {
            kind: FailureKind::InvalidArgument,
            message: format!("signal {signal}: {error}"),
        };
        if !all {
            return self.process(exec)?.signal(signal).map_err(failed);
        }
        if signal == Signal::SIGKILL as i32 {
            let path = self.cgroup.path().join("cgroup.kill");
            return fs::write(path, "1").map_err(|error| Refusal::internal("killing all processes", &error));
        }
        for pid in self.cgroup.processes().map_err(|error| cgroup_refusal(&error))? {
            // It may have ended since; then there is nothing to signal.
            if let Ok(fd) = crate::sys::pidfd::open(pid) {
                crate::sys::pidfd::signal(&fd, signal).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// Freezes or thaws it.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn freeze(&self, frozen: bool) -> Result<(), Refusal> {
        self.cgroup
            .freeze(frozen, DEADLINE)
            .map_err(|error| cgroup_refusal(&error))
    }

    /// Applies new limits.
    ///
    /// # Errors
    /// [`Refusal`].
    pub(crate) fn update(&self, services: &Services, resources: &[u8]) -> Result<(), Refusal> {
        let resources: LinuxResources =
            serde_json::from_slice(resources).map_err(|error| invalid("resources", &error))?;
        apply_swappiness(&resources)?;
        for line in self
            .cgroup
            .apply(&resources)
            .map_err(|error| cgroup_refusal(&error))?
        {
            services
                .events
                .log("warn", format!("container {}: {line}", self.id));
        }
        if let Some(rules) = resources.devices().as_ref().filter(|rules| !rules.is_empty()) {
            self.cgroup
                .restrict_devices(rules, &self.devices, services.port_major, &services.programs)
                .map_err(|error| cgroup_refusal(&error))?;
        }
        Ok(())
    }

    /// Its cgroup.
    #[must_use]
    pub(crate) fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Pids of running execs and their ids.
    #[must_use]
    pub(crate) fn exec_pids(&self) -> HashMap<i32, String> {
        self.execs()
            .iter()
            .filter(|(_, process)| !process.ended())
            .map(|(exec, process)| (process.pid, exec.clone()))
            .collect()
    }

    /// Kills what is left and takes everything down.
    ///
    /// # Errors
    /// A process that cannot be killed; everything else is logged.
    pub(crate) fn remove(&self, services: &Services) -> Result<(), Refusal> {
        let killing = step("kill what is left");
        self.cgroup
            .kill(DEADLINE)
            .map_err(|error| cgroup_refusal(&error))?;
        drop(killing);
        stdio::finish(
            &services.endpoint,
            Streams {
                stdout: 0,
                stderr: 0,
                ..self.init.streams
            },
        );
        for process in self.execs().values() {
            stdio::finish(
                &services.endpoint,
                Streams {
                    stdout: 0,
                    stderr: 0,
                    ..process.streams
                },
            );
        }
        services.engine.forget(&self.handle);
        if let Err(error) = self.cgroup.remove() {
            services
                .events
                .log("warn", bulkhead_model::failure::chain(&error));
        }
        let _step = step("unmount and drop caches");
        release(services, &self.storages);
        // The host cannot unmount what this kernel still remembers files of.
        if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "3") {
            services.events.log("debug", format!("drop_caches: {error}"));
        }
        Ok(())
    }
}

/// In the pid namespace of others the end of a container's own process does not end the rest of it.
fn kill_with(init: &Process, cgroup: &Arc<Cgroup>) {
    let (mut exit, cgroup) = (init.exit(), Arc::clone(cgroup));
    tokio::spawn(async move {
        // An error is the end of the container's record: then it was removed, and killed before.
        if exit.wait_for(Option::is_some).await.is_ok() {
            // One that was removed meanwhile has no processes left.
            let _ = fs::write(cgroup.path().join("cgroup.kill"), "1");
        }
    });
}

/// The state document (runtime-spec) that hooks in the container get. Its pid is what they would see themselves.
fn state(id: &str, request: &CreateContainerRequest, spec: &Spec) -> String {
    serde_json::json!({
        "ociVersion": spec.version(),
        "id": id,
        "status": "created",
        "pid": 1,
        "bundle": request.bundle,
        "annotations": spec.annotations(),
    })
    .to_string()
}

/// cgroup v2 has no swappiness of its own; a sandbox's containers share their VM's.
fn apply_swappiness(resources: &LinuxResources) -> Result<(), Refusal> {
    let Some(swappiness) = resources.memory().as_ref().and_then(oci::LinuxMemory::swappiness) else {
        return Ok(());
    };
    if swappiness > 200 {
        return Err(Refusal {
            kind: FailureKind::InvalidArgument,
            message: format!("memory swappiness {swappiness}: expected 0 to 200"),
        });
    }
    fs::write("/proc/sys/vm/swappiness", swappiness.to_string())
        .map_err(|error| Refusal::internal("setting swappiness", &error))
}

/// User and group id of `process` as the agent sees them.
fn owner(process: &oci::Process, users: Option<&UserMaps>) -> (u32, u32) {
    let (uid, gid) = (process.user().uid(), process.user().gid());
    match users {
        Some(maps) => (
            UserMaps::outside(&maps.uids, uid),
            UserMaps::outside(&maps.gids, gid),
        ),
        None => (uid, gid),
    }
}

/// Starts a process by `start`, which gets the child's ends, connects its streams and watches it.
fn launch<T>(
    services: &Services,
    stdio: &Stdio,
    owner: (u32, u32),
    pipe_bytes: u32,
    group: &Group<'_>,
    start: impl FnOnce(Vec<OwnedFd>) -> Result<(T, Launched), Refusal>,
) -> Result<(T, Process), Refusal> {
    let trouble = |error: stdio::StdioError| Refusal::internal("standard streams", &error);
    let streams = Streams::of(stdio);
    let claim = services.reaper.expect();
    if stdio.terminal {
        let (kept, mut launched) = start(Vec::new())?;
        let master = launched.terminal.take().ok_or_else(|| Refusal {
            kind: FailureKind::Internal,
            message: "the engine gave no terminal".to_owned(),
        })?;
        let size = (stdio.columns, stdio.rows);
        let terminal = stdio::connect_terminal(&services.endpoint, streams, master, size).map_err(trouble)?;
        let process = Process::watch(
            launched,
            streams,
            Some(terminal),
            claim,
            &services.endpoint,
            group,
        );
        return Ok((kept, process));
    }
    let (child, ends) = Ends::pipes(streams, owner, pipe_bytes).map_err(trouble)?;
    let (kept, launched) = start(child)?;
    ends.connect(&services.endpoint, streams).map_err(trouble)?;
    let process = Process::watch(launched, streams, None, claim, &services.endpoint, group);
    Ok((kept, process))
}

/// The container shares the VM's network: its network settings are the VM's.
fn apply_sysctls(rewritten: &Rewritten) -> Result<(), Refusal> {
    for (key, value) in &rewritten.sysctls {
        let name = key.replace('.', "/");
        if name.split('/').any(|part| part == ".." || part.is_empty()) {
            return Err(Refusal {
                kind: FailureKind::InvalidArgument,
                message: format!("sysctl {key:?}: expected names joined by dots"),
            });
        }
        fs::write(std::path::Path::new("/proc/sys").join(name), value)
            .map_err(|error| invalid(&format!("sysctl {key} = {value:?}"), &error))?;
    }
    Ok(())
}
