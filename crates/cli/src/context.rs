//! What every verb is handed: where state lies, how to report, how to reach a sandbox.
//!
//! Owns: finding the sandbox of a container. Never: starting one. Called by verbs.

use crate::report::Report;
use crate::stopwatch::Stopwatch;
use bulkhead_host::clock::boottime_ns;
use bulkhead_model::failure::chain;
use bulkhead_model::plan::BUNDLE_PATH_ANNOTATION;
use bulkhead_model::timeline::Lane;
use bulkhead_model::{
    ContainerId, ContainerSnapshot, Failure, FailureKind, SandboxId, SandboxPlan, SandboxSnapshot,
};
use bulkhead_sandbox::{Command, ContainerMap, Layout, Reply, SavedSandbox};
use bulkhead_shim::hooks::{self, HookKind};
use bulkhead_shim::oci_state::OciState;
use bulkhead_shim::{Client, launch};
use std::path::PathBuf;
use std::time::{Duration, Instant};

/// For what a supervisor answers from memory.
pub(crate) const QUICK: Duration = Duration::from_secs(30);

/// For one call into the guest. The engine has shorter deadlines of its own; this one ends the verb should
/// the supervisor hang.
pub(crate) const CALL: Duration = Duration::from_secs(120);

/// For calls that may wait for a boot and for everything that follows one.
pub(crate) const BOOT: Duration = Duration::from_secs(600);

/// How long a supervisor that was killed may take to be replaced by one that answers.
const REACH_DEADLINE: Duration = Duration::from_secs(60);

/// The surroundings of a verb.
#[derive(Debug, Clone)]
pub(crate) struct Context {
    /// Where state lies.
    pub(crate) layout: Layout,
    /// `--config`.
    pub(crate) config: Option<PathBuf>,
    /// `--systemd-cgroup`.
    pub(crate) systemd_cgroup: bool,
    /// Where messages go.
    pub(crate) report: Report,
    /// What this process measures of its own work.
    pub(crate) watch: Stopwatch,
}

/// A container that exists, and the connection it was found by.
pub(crate) struct Found {
    /// Connected to its supervisor.
    pub(crate) client: Client,
    /// Its id.
    pub(crate) id: ContainerId,
    /// As it was published last.
    pub(crate) container: ContainerSnapshot,
}

impl Context {
    /// Reads an id as it was typed.
    ///
    /// # Errors
    /// `InvalidArgument` naming the id and what was expected.
    pub(crate) fn id(text: &str) -> Result<ContainerId, Failure> {
        ContainerId::new(text).map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))
    }

    /// The container map (K-01).
    #[must_use]
    pub(crate) fn map(&self) -> ContainerMap {
        ContainerMap::new(self.layout.containers())
    }

    /// The sandbox a container is in: by the map (K-01), or the one of the same name if a create ended
    /// before it could write the map. `None` when there is neither.
    ///
    /// # Errors
    /// A map that is damaged.
    pub(crate) fn look_up(&self, id: &ContainerId) -> Result<Option<SandboxId>, Failure> {
        let mapped = self
            .map()
            .sandbox_of(id)
            .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))?;
        Ok(mapped.or_else(|| {
            let own = self.layout.own_sandbox(id);
            own.dir.is_dir().then(|| SandboxId::from(id))
        }))
    }

    /// The sandbox a container is in.
    ///
    /// # Errors
    /// `NotFound` when the container is unknown.
    pub(crate) fn sandbox_of(&self, id: &ContainerId) -> Result<SandboxId, Failure> {
        self.look_up(id)?.ok_or_else(|| unknown(id))
    }

    /// Connects to the supervisor of a container, which is replaced if it is dead.
    ///
    /// # Errors
    /// `NotFound` when the container is unknown, and what connecting reports.
    pub(crate) fn client(&self, id: &ContainerId) -> Result<Client, Failure> {
        launch::connect(&self.layout, &self.sandbox_of(id)?)
    }

    /// Connects to the supervisor of a container and reads the container's state.
    ///
    /// # Errors
    /// `NotFound` when the container is unknown, `FailedPrecondition` while its create is under way, and what
    /// the supervisor reports.
    pub(crate) fn find(&self, id: &str) -> Result<Found, Failure> {
        let id = Self::id(id)?;
        let (client, snapshot) = self.reach(&self.sandbox_of(&id)?)?;
        match snapshot.containers.get(&id).cloned() {
            Some(container) => Ok(Found {
                client,
                id,
                container,
            }),
            None => Err(unfinished(&id)),
        }
    }
}

impl Context {
    /// A supervisor that answers, and what it answered. One that was killed with our connection in its queue is
    /// not the last word: its successor is.
    ///
    /// # Errors
    /// `NotFound` when there is no such sandbox, `Unavailable` when nobody answers for [`REACH_DEADLINE`].
    pub(crate) fn reach(&self, sandbox: &SandboxId) -> Result<(Client, SandboxSnapshot), Failure> {
        let end = Instant::now() + REACH_DEADLINE;
        loop {
            let mut client = launch::connect(&self.layout, sandbox)?;
            match snapshot(&mut client) {
                Ok(snapshot) => return Ok((client, snapshot)),
                Err(failure) if failure.kind == FailureKind::Unavailable && Instant::now() < end => {}
                Err(failure) => return Err(failure),
            }
        }
    }

    /// What a sandbox published, or saved if its supervisor cannot be asked nor replaced: then everything in
    /// it counts as stopped.
    ///
    /// # Errors
    /// `NotFound` when there is no such sandbox; what connecting reports when nothing usable was saved.
    pub(crate) fn present(&self, sandbox: &SandboxId) -> Result<SandboxSnapshot, Failure> {
        let failure = match self.reach(sandbox) {
            Ok((_, snapshot)) => return Ok(snapshot),
            Err(failure) if failure.kind == FailureKind::NotFound => return Err(failure),
            Err(failure) => failure,
        };
        let saved = SavedSandbox::read(&self.layout.sandbox(sandbox).state()).map_err(|error| {
            self.report.debug(&chain(&error));
            failure.clone()
        })?;
        self.report.debug(&format!("from saved state: {failure}"));
        Ok(saved.dead_snapshot())
    }
}

impl Context {
    /// The OCI state of a container in a sandbox that published `sandbox`.
    #[must_use]
    pub(crate) fn oci_state(&self, sandbox: &SandboxSnapshot, id: &ContainerId) -> OciState {
        if let Some(container) = sandbox.containers.get(id) {
            return OciState::of(container);
        }
        let plan = std::fs::read(self.layout.sandbox(&sandbox.id).plan())
            .ok()
            .and_then(|text| serde_json::from_slice::<SandboxPlan>(&text).ok());
        let bundle = plan
            .filter(|plan| plan.id == SandboxId::from(id))
            .and_then(|plan| plan.recorded.get(BUNDLE_PATH_ANNOTATION).map(PathBuf::from));
        OciState::creating(id, bundle.unwrap_or_default())
    }
}

impl Context {
    /// Runs the hooks of a container that exists or existed; those that fail are warned of.
    pub(crate) fn run_hooks(&self, kind: HookKind, container: &ContainerSnapshot) {
        let began = boottime_ns();
        let ran = hooks::run_each(kind, container);
        if ran.any {
            self.watch.since(Lane::Hooks, kind.name(), began);
        }
        for line in ran.failed {
            self.report.warning(&line);
        }
    }
}

impl Found {
    /// Sends a command that is answered with nothing but success.
    ///
    /// # Errors
    /// What the supervisor reports.
    pub(crate) fn done(&mut self, command: &Command, within: Duration) -> Result<(), Failure> {
        self.client.call(command, Some(within)).map(drop)
    }
}

/// Reads what a supervisor published.
///
/// # Errors
/// What the supervisor reports.
pub(crate) fn snapshot(client: &mut Client) -> Result<SandboxSnapshot, Failure> {
    match client.call(&Command::Snapshot, Some(QUICK))? {
        Reply::Snapshot { snapshot } => Ok(*snapshot),
        other => Err(unexpected(&other)),
    }
}

/// The failure for an id that names nothing.
#[must_use]
pub(crate) fn unknown(id: &ContainerId) -> Failure {
    Failure::new(FailureKind::NotFound, format!("container {id} does not exist"))
}

/// The failure for an id that is taken by a create under way.
#[must_use]
pub(crate) fn unfinished(id: &ContainerId) -> Failure {
    Failure::new(
        FailureKind::FailedPrecondition,
        format!("container {id} is still being created"),
    )
}

/// The failure for an answer of the wrong kind.
#[must_use]
pub(crate) fn unexpected(reply: &Reply) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("the supervisor answered something else: {reply:?}"),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn context(root: &std::path::Path) -> Context {
        Context {
            layout: Layout::new(root),
            config: None,
            systemd_cgroup: false,
            report: Report::default(),
            watch: Stopwatch::default(),
        }
    }

    /// K-02: looking up an absent id yields nothing; a verb on it says that it does not exist.
    #[test]
    fn k02_an_unknown_id() {
        let root = tempfile::tempdir().unwrap();
        let context = context(root.path());
        let id = ContainerId::new("nope").unwrap();
        assert_eq!(context.look_up(&id).unwrap(), None);
        let failure = context.sandbox_of(&id).unwrap_err();
        assert_eq!(failure.kind, FailureKind::NotFound);
        assert_eq!(failure.message, "container nope does not exist");
    }

    /// K-01: the map decides; without an entry a state directory of the same name does.
    #[test]
    fn k01_map_then_directory() {
        let root = tempfile::tempdir().unwrap();
        let context = context(root.path());
        let id = ContainerId::new("c").unwrap();
        let other = SandboxId::new("pod").unwrap();
        std::fs::create_dir_all(context.layout.own_sandbox(&id).dir).unwrap();
        assert_eq!(context.look_up(&id).unwrap(), Some(SandboxId::from(&id)));
        context.map().add(&id, &other).unwrap();
        assert_eq!(context.look_up(&id).unwrap(), Some(other));
    }
}
