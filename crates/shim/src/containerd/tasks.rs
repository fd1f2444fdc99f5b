//! The containers of one sandbox as containerd knows them.
//!
//! ```text
//!  create ─► (creating) ─► Task ─► start ─► … ─► delete ─► gone
//!                │  delete meanwhile: called off         └─ follow: ends and output, told as events
//! ```
//!
//! Owns: the records. Never: the sandbox; every change of it is a `sandbox::Command` (see `calls`). Called by the
//! services.

use super::publisher::Publisher;
use super::settings::Settings;
use super::task::Task;
use bulkhead_model::failure::chain;
use bulkhead_model::timeline::{Span, Told};
use bulkhead_model::{ContainerId, Failure, FailureKind, ProcessKey, SandboxPlan};
use bulkhead_sandbox::{Command, ContainerMap, Handle, Luggage, Reply, SandboxPaths};
use containerd_shim_protos::protobuf::MessageField;
use containerd_shim_protos::protobuf::well_known_types::timestamp::Timestamp;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, SystemTime};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// What is known under an id.
pub(super) enum Entry {
    /// A create is under way; cancelling calls it off.
    Creating(CancellationToken),
    /// It is there.
    There(Arc<Task>),
}

/// The records and what they are made with.
pub(super) struct Tasks {
    pub(super) handle: Handle,
    pub(super) paths: SandboxPaths,
    pub(super) plan: SandboxPlan,
    pub(super) settings: Settings,
    pub(super) publisher: Publisher,
    /// Whether the sandbox stays without containers: its client made it by the Sandbox service, and ends it.
    kept: AtomicBool,
    /// How the boot ended.
    pub(super) boot: watch::Receiver<Option<Result<(), Failure>>>,
    records: Mutex<BTreeMap<ContainerId, Entry>>,
    pub(super) changed: Notify,
}

impl Tasks {
    pub(super) fn new(
        handle: Handle,
        paths: SandboxPaths,
        plan: SandboxPlan,
        settings: Settings,
    ) -> Arc<Self> {
        let publisher = Publisher::new(&settings.events_address, &settings.namespace);
        let (booted, boot) = watch::channel(None);
        let asked = handle.clone();
        tokio::spawn(async move {
            let result = asked.call(Command::AwaitBoot, Luggage::default()).await;
            booted.send_replace(Some(result.map(drop)));
        });
        Arc::new(Self {
            handle,
            paths,
            plan,
            settings,
            publisher,
            kept: AtomicBool::new(false),
            boot,
            records: Mutex::new(BTreeMap::new()),
            changed: Notify::new(),
        })
    }

    pub(super) fn records(&self) -> MutexGuard<'_, BTreeMap<ContainerId, Entry>> {
        // Every change of the map is one call.
        self.records.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Asks the sandbox.
    pub(super) async fn call(&self, command: Command) -> Result<Reply, Failure> {
        self.handle.call(command, Luggage::default()).await
    }

    /// Tells the timeline what was measured of an operation that is asked for next or, `late`, was carried out.
    pub(super) async fn tell(&self, operation: &str, container: &ContainerId, spans: Vec<Span>, late: bool) {
        let told = Told {
            operation: operation.to_owned(),
            container: container.clone(),
            exec: None,
            spans,
        };
        // Nothing depends on it.
        let _ = self.call(Command::Tell { told, late }).await;
    }

    /// The container map of the sandbox's root (K-01).
    pub(super) fn map(&self) -> ContainerMap {
        ContainerMap::new(self.paths.containers.clone())
    }

    /// Waits for the end of the boot.
    ///
    /// # Errors
    /// Why it failed.
    pub(super) async fn booted(&self) -> Result<(), Failure> {
        let mut boot = self.boot.clone();
        match boot.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(result)) => result.clone(),
            // The asking task ends with an answer.
            _ => Err(Failure::new(FailureKind::Internal, "the boot's end is not known")),
        }
    }

    /// A container.
    ///
    /// # Errors
    /// `NotFound`.
    pub(super) fn task(&self, id: &str) -> Result<Arc<Task>, Failure> {
        let unknown = || Failure::new(FailureKind::NotFound, format!("container {id} does not exist"));
        let key = ContainerId::new(id).map_err(|_| unknown())?;
        match self.records().get(&key) {
            Some(Entry::There(task)) => Ok(Arc::clone(task)),
            _ => Err(unknown()),
        }
    }

    /// Reserves an id for a create.
    ///
    /// # Errors
    /// `AlreadyExists`.
    pub(super) fn reserve(&self, id: &ContainerId) -> Result<CancellationToken, Failure> {
        let mut records = self.records();
        if records.contains_key(id) {
            return Err(Failure::new(
                FailureKind::AlreadyExists,
                format!("container with id {id} already in use"),
            ));
        }
        let token = CancellationToken::new();
        records.insert(id.clone(), Entry::Creating(token.clone()));
        self.changed.notify_waiters();
        Ok(token)
    }

    pub(super) fn put(&self, task: &Arc<Task>) {
        self.records()
            .insert(task.id.clone(), Entry::There(Arc::clone(task)));
    }

    pub(super) fn forget(&self, id: &ContainerId) {
        self.records().remove(id);
        self.changed.notify_waiters();
    }

    /// Whether containerd has anything here.
    pub(super) fn is_empty(&self) -> bool {
        self.records().is_empty()
    }

    /// The sandbox stays without containers from now on.
    pub(super) fn keep(&self) {
        self.kept.store(true, Ordering::Relaxed);
    }

    /// Whether it does.
    pub(super) fn kept(&self) -> bool {
        self.kept.load(Ordering::Relaxed)
    }

    /// Waits until there has been nothing here for `long`.
    pub(super) async fn idle(&self, long: Duration) {
        loop {
            let changed = self.changed.notified();
            if !self.is_empty() {
                changed.await;
            } else if tokio::time::timeout(long, changed).await.is_err() && self.is_empty() {
                return;
            }
        }
    }

    /// The container that stands for the pod.
    pub(super) fn pause(&self) -> Option<Arc<Task>> {
        self.records().values().find_map(|entry| match entry {
            Entry::There(task) if task.is_pause() => Some(Arc::clone(task)),
            _ => None,
        })
    }
}

/// Nanoseconds since the Unix epoch as a protobuf timestamp.
pub(super) fn timestamp(at_ns: u64) -> MessageField<Timestamp> {
    Some(Timestamp::from(
        SystemTime::UNIX_EPOCH + Duration::from_nanos(at_ns),
    ))
    .into()
}

pub(super) fn now_ns() -> u64 {
    SystemTime::now()
        .duration_since(SystemTime::UNIX_EPOCH)
        .ok()
        .and_then(|since| u64::try_from(since.as_nanos()).ok())
        .unwrap_or(0)
}

/// The state does not allow it.
pub(super) fn precondition(message: String) -> Failure {
    Failure::new(FailureKind::FailedPrecondition, message)
}

/// The program of a process could not be started: in the words clients look for.
pub(super) fn in_runc_words(failure: Failure) -> Failure {
    match failure.kind {
        FailureKind::ProgramNotFound | FailureKind::ProgramNotExecutable => Failure {
            message: format!(
                "OCI runtime start failed: unable to start container process: {}",
                failure.message
            ),
            ..failure
        },
        _ => failure,
    }
}

pub(super) fn unexpected(reply: &Reply) -> Failure {
    Failure::new(
        FailureKind::Internal,
        format!("the sandbox answered something else: {reply:?}"),
    )
}

/// For blocking work on behalf of a call.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Failure> + Send + 'static,
) -> Result<T, Failure> {
    tokio::task::spawn_blocking(work)
        .await
        .map_err(|error| Failure::new(FailureKind::Internal, chain(&error)))?
}

/// The key of a container's own process.
pub(super) fn own(id: &ContainerId) -> ProcessKey {
    ProcessKey {
        container: id.clone(),
        exec: None,
    }
}
