//! Everything one sandbox is, in the hands of the one task that may change it.
//!
//! ```text
//!  verbs (create, start, …) ──► World ──► save (durable) ──► publish (snapshot)
//! ```
//!
//! Owns: the live objects, the containers, saving and publishing. Never: waiting for commands (see `engine`).

use crate::container::Container;
use crate::error::SandboxError;
use crate::journal::{Entry, Journal, Resource};
use crate::layout::SandboxPaths;
use crate::network::Network;
use crate::platform::{Daemon, Platform};
use crate::saved::SavedSandbox;
use crate::size::Size;
use crate::timeline::{self, Recorder};
use bulkhead_model::snapshot::{Counters, Phase, Provenance};
use bulkhead_model::timeline::Lane;
use bulkhead_model::{ContainerId, Failure, HostProcess, ProcessKey, SandboxPlan, SandboxSnapshot, State};
use bulkhead_protocol::{Guest, GuestExit, GuestStdio, StreamId};
use bulkhead_vmm::{Vm, Vmm};
use std::collections::BTreeMap;
use std::sync::{Arc, OnceLock};
use tokio::sync::{mpsc, watch};
use tracing::Instrument;

/// What happens without being asked for.
#[derive(Debug)]
pub enum Event {
    /// A process ended in the guest.
    Exited {
        /// Which.
        key: ProcessKey,
        /// How.
        exit: GuestExit,
    },
    /// All output of a process that ended has reached its sinks.
    Delivered {
        /// Which.
        key: ProcessKey,
    },
    /// A stream of a process ended: 0, 1 or 2.
    StreamEnded {
        /// Whose.
        key: ProcessKey,
        /// Which.
        stream: u8,
    },
    /// A stub ended on its own.
    StubGone {
        /// The process it stood for.
        key: ProcessKey,
        /// The stub.
        stub: HostProcess,
    },
    /// The guest's kernel killed for want of memory.
    OutOfMemory {
        /// In which container, as the agent names it.
        container: String,
        /// Kills so far.
        kills: u64,
    },
    /// The VM process ended.
    VmEnded,
    /// Something in the sandbox's network namespace changed.
    NetworkChanged,
}

/// The running parts of a sandbox.
#[derive(Clone)]
pub struct Live {
    /// The VM.
    pub vm: Arc<dyn Vm>,
    /// The agent.
    pub guest: Arc<dyn Guest>,
    /// The daemon.
    pub fsd: Option<Arc<dyn Daemon>>,
}

/// What readers and side calls may hold.
#[derive(Clone)]
pub struct Published {
    /// The snapshot.
    pub snapshot: watch::Receiver<SandboxSnapshot>,
    /// The live parts, once there are any.
    pub live: watch::Receiver<Option<Live>>,
    /// The plan.
    pub plan: Arc<SandboxPlan>,
    /// Where things lie.
    pub paths: Arc<SandboxPaths>,
    /// Where its time goes.
    pub timeline: Recorder,
    /// Why it is gone, if it never came up.
    pub(crate) failure: Arc<OnceLock<Failure>>,
}

/// One sandbox.
pub struct World {
    /// The plan.
    pub plan: SandboxPlan,
    /// Where things lie.
    pub paths: SandboxPaths,
    /// The host.
    pub platform: Arc<dyn Platform>,
    /// The VMM driver.
    pub vmm: Arc<dyn Vmm>,
    /// What is held on the host.
    pub journal: Journal,
    /// The containers.
    pub containers: BTreeMap<ContainerId, Container>,
    /// Next stdio stream id.
    pub next_stream: StreamId,
    /// Size of the VM as its guest uses it.
    pub size: Size,
    /// Size the VM was started with.
    pub boot_size: Size,
    /// How the VM came to life.
    pub provenance: Provenance,
    /// Once the first container runs, a template is to be made for those that come.
    pub(crate) order_template: bool,
    /// The guest said that it has nothing to flush, and no container was made since.
    pub(crate) settled: bool,
    /// Streams connected for a process that is still being made.
    pub pending: Vec<StreamId>,
    /// Stubs that were attached; some may have ended since.
    pub stubs: Vec<HostProcess>,
    /// `cgroup.procs` files its stubs join.
    pub cgroup_procs: Vec<std::path::PathBuf>,
    /// Its network, from the first container on.
    pub network: Option<Network>,
    /// Where its time goes.
    pub timeline: Recorder,
    pub(crate) state: State,
    pub(crate) phase: Phase,
    /// Nobody takes over what is being taken down: from here on the journal tells what is left.
    pub(crate) ending: bool,
    supervisor: HostProcess,
    events: mpsc::UnboundedSender<Event>,
    snapshot: watch::Sender<SandboxSnapshot>,
    pub(crate) live: watch::Sender<Option<Live>>,
}

impl World {
    /// A sandbox of which nothing exists yet but its state directory.
    pub fn new(
        plan: SandboxPlan,
        paths: SandboxPaths,
        platform: Arc<dyn Platform>,
        vmm: Arc<dyn Vmm>,
        journal: Journal,
        supervisor: HostProcess,
    ) -> (Self, Published, mpsc::UnboundedReceiver<Event>) {
        let (events, inbox) = mpsc::unbounded_channel();
        let empty = SandboxSnapshot {
            id: plan.id.clone(),
            state: State::Ready,
            phase: Phase::Planned,
            containers: BTreeMap::new(),
            processes: BTreeMap::from([("supervisor".into(), supervisor)]),
            counters: Counters::default(),
            provenance: Provenance::default(),
        };
        let (snapshot, snapshots) = watch::channel(empty);
        let (live, lives) = watch::channel(None);
        let timeline = Recorder::new(plan.id.clone());
        let published = Published {
            snapshot: snapshots,
            live: lives,
            plan: Arc::new(plan.clone()),
            paths: Arc::new(paths.clone()),
            timeline: timeline.clone(),
            failure: Arc::default(),
        };
        let world = Self {
            size: Size::announced(&plan),
            boot_size: Size::announced(&plan),
            provenance: Provenance::default(),
            order_template: false,
            settled: false,
            plan,
            paths,
            platform,
            vmm,
            journal,
            containers: BTreeMap::new(),
            next_stream: 1,
            pending: Vec::new(),
            stubs: Vec::new(),
            cgroup_procs: Vec::new(),
            network: None,
            timeline,
            state: State::Ready,
            phase: Phase::Planned,
            ending: false,
            supervisor,
            events,
            snapshot,
            live,
        };
        (world, published, inbox)
    }

    /// Undoes what was acquired beyond `base`, newest first, every entry; what sticks stays in the journal and is
    /// returned as text.
    pub(crate) async fn undo_since(&mut self, base: &[Entry]) -> Vec<String> {
        let (undone, failures) = self.undo_each(base).await;
        self.note_undone(&undone);
        failures
    }

    /// [`Self::undo_since`] without a word in the journal: what was undone and what sticks.
    pub(crate) async fn undo_each(&mut self, base: &[Entry]) -> (Vec<Entry>, Vec<String>) {
        let (mut undone, mut failures) = (Vec::new(), Vec::new());
        for (entry, resource) in self.journal.held() {
            if base.contains(&entry) {
                continue;
            }
            let text = format!("{resource:?}");
            let _undoing = self.timeline.again(Lane::Supervisor, resource.undoing());
            match self.undo(resource).await {
                Ok(()) => undone.push(entry),
                Err(error) => {
                    tracing::error!(%error, resource = text, "undoing");
                    failures.push(format!("{text}: {error}"));
                }
            }
        }
        (undone, failures)
    }

    /// Writes down what is undone, in one write: what is undone twice is success.
    pub(crate) fn note_undone(&mut self, undone: &[Entry]) {
        if let Err(error) = self.journal.release_all(undone) {
            tracing::warn!(%error, "writing the journal");
        }
    }

    /// Undoes one thing beside this thread: it may take seconds, and readers are to be answered meanwhile.
    pub(crate) async fn undo(&self, resource: Resource) -> std::io::Result<()> {
        let platform = Arc::clone(&self.platform);
        // A namespace that is held can be entered whatever became of its path.
        let space = self.network.as_ref().and_then(|network| network.holds(&resource));
        tokio::task::spawn_blocking(move || match space {
            Some(space) => space.undo(&resource),
            None => platform.undo(&resource),
        })
        .await
        .map_err(std::io::Error::other)?
    }

    /// The error of a verb that lost the guest, as the reader needs it: which sandbox, which verb, what the
    /// console said.
    pub(crate) fn told(&self, operation: &'static str, source: SandboxError) -> SandboxError {
        SandboxError::Boot {
            id: self.plan.id.clone(),
            step: operation,
            source: Box::new(source),
            console: self.platform.console_tail(),
        }
    }

    /// Adopts running parts and watches them.
    pub(crate) fn go_live(&self, live: Live) {
        // Of their own: they outlive the operation that starts them.
        let span = crate::span::lasting("sandbox", "watch", &self.plan.id);
        let events = self.events.clone();
        let vm = Arc::clone(&live.vm);
        let ended = async move {
            let exit = vm.exited().await;
            tracing::info!(?exit, "the VM ended");
            let _ = events.send(Event::VmEnded);
        };
        tokio::spawn(ended.instrument(span.clone()));
        if let Some(fsd) = live.fsd.clone() {
            let vm = Arc::clone(&live.vm);
            // Not by the engine's task: it may be waiting for a guest that waits for its files.
            let guard = async move {
                tokio::select! {
                    _ = vm.exited() => return,
                    () = fsd.exited() => {}
                }
                tracing::error!("the shared-filesystem daemon ended: the VM cannot go on without its files");
                if let Err(error) = vm.kill(crate::lifecycle::KILL_DEADLINE).await {
                    tracing::error!(%error, "ending the VM");
                }
            };
            tokio::spawn(guard.instrument(span.clone()));
        }
        let follow = crate::guest_log::follow(Arc::clone(&live.guest), self.events.clone());
        tokio::spawn(follow.instrument(span));
        self.live.send_replace(Some(live));
    }

    /// Where what happens by itself is told.
    pub(crate) fn events(&self) -> mpsc::UnboundedSender<Event> {
        self.events.clone()
    }

    /// The live parts.
    ///
    /// # Errors
    /// [`SandboxError::NoVm`].
    pub fn live(&self) -> Result<Live, SandboxError> {
        self.live.borrow().clone().ok_or_else(|| SandboxError::NoVm {
            id: self.plan.id.clone(),
        })
    }

    /// C-23: the sandbox must be running; names the operation.
    ///
    /// # Errors
    /// [`SandboxError::SandboxState`], or `Invalid` for an empty operation name.
    pub fn must_run(&self, operation: &'static str) -> Result<(), SandboxError> {
        if operation.is_empty() {
            return Err(SandboxError::Invalid {
                what: "operation",
                value: "\"\"".into(),
                expected: "a name",
            });
        }
        if self.state == State::Running {
            return Ok(());
        }
        Err(SandboxError::SandboxState {
            operation,
            id: self.plan.id.clone(),
            state: self.state,
        })
    }

    /// The container `id`.
    ///
    /// # Errors
    /// [`SandboxError::NoContainer`].
    pub fn container(&self, id: &ContainerId) -> Result<&Container, SandboxError> {
        self.containers
            .get(id)
            .ok_or_else(|| SandboxError::NoContainer(id.clone()))
    }

    /// The container `id`, to change.
    ///
    /// # Errors
    /// [`SandboxError::NoContainer`].
    pub(crate) fn container_mut(&mut self, id: &ContainerId) -> Result<&mut Container, SandboxError> {
        self.containers
            .get_mut(id)
            .ok_or_else(|| SandboxError::NoContainer(id.clone()))
    }

    /// Watches a process in the guest: its end, its streams, its output.
    pub fn watch(&self, key: ProcessKey, stdio: GuestStdio) -> Result<(), SandboxError> {
        let guest = self.live()?.guest;
        let events = self.events.clone();
        for (number, stream) in [(0, stdio.stdin), (1, stdio.stdout), (2, stdio.stderr)] {
            if stream == 0 {
                continue;
            }
            let (guest, events, key) = (Arc::clone(&guest), events.clone(), key.clone());
            tokio::spawn(async move {
                guest.stream_ended(stream).await;
                let _ = events.send(Event::StreamEnded { key, stream: number });
            });
        }
        tokio::spawn(async move {
            // A connection that ended is told apart by the VM's end, which has an event of its own.
            let Ok(exit) = guest.wait(&key).await else { return };
            let _ = events.send(Event::Exited {
                key: key.clone(),
                exit,
            });
            let _ = guest.delivered(stdio.stdout, exit.stdout_offset).await;
            let _ = guest.delivered(stdio.stderr, exit.stderr_offset).await;
            let _ = events.send(Event::Delivered { key });
        });
        Ok(())
    }

    /// Makes the state durable, unless the sandbox is being taken down.
    ///
    /// # Errors
    /// Host errors naming the file.
    pub fn save(&self) -> Result<(), SandboxError> {
        if self.ending {
            return Ok(());
        }
        let _saving = self.timeline.again(Lane::Supervisor, "save the state");
        let path = self.paths.state();
        SavedSandbox::of(self)
            .write(&path)
            .map_err(|e| SandboxError::host("saving", path, e))
    }

    /// Ends the operation under way and writes the timeline if there is something new in it. A timeline that cannot
    /// be written is only logged: nothing depends on it.
    pub(crate) fn settle_timeline(&self) {
        self.timeline.end();
        let Some(present) = self.timeline.changed() else {
            return;
        };
        let path = self.paths.timeline();
        if let Err(error) = timeline::write(&path, &present) {
            tracing::warn!(%error, path = %path.display(), "writing the timeline");
        }
    }

    /// Keeps the timeline of a sandbox whose directory is gone.
    pub(crate) fn keep_timeline(&self) {
        self.timeline.end();
        if let Err(error) = timeline::keep(&self.paths, &self.timeline.timeline()) {
            tracing::warn!(%error, path = %self.paths.timelines.display(), "keeping the timeline");
        }
    }

    /// Lets readers see the present.
    pub fn publish(&self) {
        let mut processes = BTreeMap::from([("supervisor".to_owned(), self.supervisor)]);
        let mut counters = Counters::default();
        if let Some(live) = self.live.borrow().as_ref() {
            processes.insert("vmm".into(), live.vm.process());
            counters.qmp = live.vm.round_trips();
            counters.agent = live.guest.calls();
            counters.spawned = 1;
            if let Some(fsd) = &live.fsd {
                processes.insert("fsd".into(), fsd.process());
                counters.spawned += 1;
            }
        }
        self.snapshot.send_replace(SandboxSnapshot {
            id: self.plan.id.clone(),
            state: self.state,
            phase: self.phase,
            containers: self
                .containers
                .iter()
                .map(|(id, c)| (id.clone(), c.snapshot()))
                .collect(),
            processes,
            counters,
            provenance: self.provenance.clone(),
        });
    }

    /// Saves where nobody can be told; the failure is logged.
    pub(crate) fn save_logged(&self) {
        if let Err(error) = self.save() {
            tracing::error!(error = %bulkhead_model::failure::chain(&error), "saving state");
        }
    }
}

/// `SIGKILL`, signal(7).
pub(crate) const fn libc_sigkill() -> i32 {
    9
}
