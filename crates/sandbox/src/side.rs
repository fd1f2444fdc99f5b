//! What is answered beside the engine's task: reads of the published snapshot and calls that change nothing
//! on the host. They are answered while a boot or a slow verb is under way.
//!
//! Owns: nothing. Never: changing a sandbox. Called by the engine's handle.

use crate::command::{Command, Reply};
use crate::error::SandboxError;
use crate::span;
use crate::world::{Live, Published};
use bulkhead_model::snapshot::Phase;
use bulkhead_model::{ContainerId, ContainerSnapshot, Failure, ProcessKey, ProcessSnapshot, State};
use tokio::sync::mpsc;

impl Published {
    /// Answers `command` if it needs no change; `None` hands it to the engine.
    pub(crate) async fn answer(
        &self,
        command: &Command,
        calloff: &mpsc::UnboundedSender<Option<ContainerId>>,
    ) -> Option<Result<Reply, Failure>> {
        let result = match command {
            Command::Snapshot => Ok(Reply::Snapshot {
                snapshot: Box::new(self.snapshot()),
            }),
            Command::Inspect => Ok(Reply::Tree {
                tree: crate::inspect::tree(&self.counted(), &self.plan, &self.paths, true),
            }),
            Command::Timeline => Ok(Reply::Timeline {
                timeline: Box::new(self.timeline.timeline()),
            }),
            Command::Tell { told, late } => {
                self.timeline.told(told.clone(), *late);
                Ok(Reply::Done)
            }
            Command::Wait { key } => self.spanned("wait", &key.container, self.wait(key)).await,
            Command::Watch { id, out_of_memory } => {
                self.spanned("watch", id, self.watch(id, *out_of_memory)).await
            }
            Command::Signal { key, signal, all } => {
                self.spanned("signal", &key.container, self.signal(key, *signal, *all, calloff))
                    .await
            }
            Command::Resize { key, columns, rows } => {
                self.spanned("resize", &key.container, self.resize(key, *columns, *rows))
                    .await
            }
            Command::CloseStdin { key } => self.close_stdin(key),
            Command::Processes { id } => self.spanned("processes", id, self.processes(id)).await,
            Command::Stats { id } => self.spanned("stats", id, self.stats(id)).await,
            Command::Attach { .. }
            | Command::AwaitBoot
            | Command::MountRoot { .. }
            | Command::Create { .. }
            | Command::Run { .. }
            | Command::Start { .. }
            | Command::Exec { .. }
            | Command::Delete { .. }
            | Command::Stop { .. }
            | Command::Pause { .. }
            | Command::Resume { .. }
            | Command::Update { .. }
            | Command::Shutdown => return None,
        };
        Some(result.map_err(|error| error.failure()))
    }

    /// Runs a call in its span. What fails here is a client's mistake or the guest's: it changes nothing on the host.
    async fn spanned(
        &self,
        operation: &'static str,
        container: &ContainerId,
        work: impl Future<Output = Result<Reply, SandboxError>>,
    ) -> Result<Reply, SandboxError> {
        let span = span::operation("process", operation, &self.plan.id, Some(container));
        span::within(span, work).await
    }

    /// As clients get it: without the specs, which are most of its size.
    fn snapshot(&self) -> bulkhead_model::SandboxSnapshot {
        let mut snapshot = self.counted();
        for container in snapshot.containers.values_mut() {
            container.spec = None;
        }
        snapshot
    }

    fn counted(&self) -> bulkhead_model::SandboxSnapshot {
        let mut snapshot = self.snapshot.borrow().clone();
        if let Some(live) = self.live.borrow().as_ref() {
            snapshot.counters.qmp = live.vm.round_trips();
            snapshot.counters.agent = live.guest.calls();
        }
        snapshot
    }

    fn live(&self, operation: &'static str) -> Result<Live, SandboxError> {
        let snapshot = self.snapshot.borrow();
        self.live
            .borrow()
            .clone()
            .ok_or_else(|| SandboxError::SandboxState {
                operation,
                id: snapshot.id.clone(),
                state: snapshot.state,
            })
    }

    fn container(&self, id: &ContainerId) -> Result<ContainerSnapshot, SandboxError> {
        self.snapshot
            .borrow()
            .containers
            .get(id)
            .cloned()
            .ok_or_else(|| SandboxError::NoContainer(id.clone()))
    }

    fn process(&self, key: &ProcessKey) -> Result<(State, ProcessSnapshot), SandboxError> {
        let container = self.container(&key.container)?;
        let state = container.state;
        let process = match &key.exec {
            None => Some(container.init),
            Some(exec) => container
                .execs
                .into_iter()
                .find(|p| p.exec.as_ref() == Some(exec)),
        };
        process
            .map(|p| (state, p))
            .ok_or_else(|| SandboxError::NoProcess(key.to_string()))
    }

    /// Ends when the process has ended and its output was delivered, or when it is gone.
    async fn wait(&self, key: &ProcessKey) -> Result<Reply, SandboxError> {
        let mut snapshots = self.snapshot.clone();
        let mut last = self.process(key)?.1;
        loop {
            if let (Some(status), true) = (last.exit, last.delivered) {
                return Ok(Reply::Exited {
                    status,
                    at_ns: last.exited_ns.unwrap_or_default(),
                });
            }
            if snapshots.changed().await.is_err() {
                return Err(SandboxError::NoProcess(key.to_string()));
            }
            last = self.process(key)?.1;
        }
    }

    /// Ends with the first kill the asker does not know of, or with the container's own process.
    async fn watch(&self, id: &ContainerId, known: u64) -> Result<Reply, SandboxError> {
        let mut snapshots = self.snapshot.clone();
        loop {
            let container = self.container(id)?;
            let ended = container.init.exit.is_some();
            if ended || container.out_of_memory > known {
                return Ok(Reply::Happened {
                    out_of_memory: container.out_of_memory,
                    ended,
                });
            }
            if snapshots.changed().await.is_err() {
                return Err(SandboxError::NoContainer(id.clone()));
            }
        }
    }

    /// C-17. Before the container exists a deadly signal calls its creation off.
    async fn signal(
        &self,
        key: &ProcessKey,
        signal: i32,
        all: bool,
        calloff: &mpsc::UnboundedSender<Option<ContainerId>>,
    ) -> Result<Reply, SandboxError> {
        const DEADLY: [i32; 4] = [2, 3, 9, 15];
        if !(1..=64).contains(&signal) {
            return Err(SandboxError::Invalid {
                what: "signal",
                value: signal.to_string(),
                expected: "1 to 64",
            });
        }
        let (phase, known) = {
            let snapshot = self.snapshot.borrow();
            (snapshot.phase, snapshot.containers.contains_key(&key.container))
        };
        if !known {
            if phase != Phase::Gone && DEADLY.contains(&signal) {
                let _ = calloff.send(Some(key.container.clone()));
                return Ok(Reply::Done);
            }
            return Err(SandboxError::NoContainer(key.container.clone()));
        }
        let (state, process) = self.process(key)?;
        if state == State::Stopped || (process.exit.is_some() && !all) {
            return Err(SandboxError::ContainerState {
                operation: "signal",
                state: State::Stopped,
                expected: "created, running or paused",
            });
        }
        let begin_ns = bulkhead_host::clock::boottime_ns();
        self.live("signal")?.guest.signal(key, signal, all).await?;
        self.timeline.signalled(key, signal, begin_ns);
        Ok(Reply::Done)
    }

    /// C-18.
    async fn resize(&self, key: &ProcessKey, columns: u16, rows: u16) -> Result<Reply, SandboxError> {
        let (state, _) = self.process(key)?;
        expect(
            state,
            "resize the terminal of",
            &[State::Ready, State::Running],
            "created or running",
        )?;
        self.live("resize a terminal")?
            .guest
            .resize(key, columns, rows)
            .await?;
        Ok(Reply::Done)
    }

    fn close_stdin(&self, key: &ProcessKey) -> Result<Reply, SandboxError> {
        let (_, process) = self.process(key)?;
        if process.stdio.0 != 0 {
            self.live("close standard input")?
                .guest
                .close_input(process.stdio.0);
        }
        Ok(Reply::Done)
    }

    /// C-22.
    async fn processes(&self, id: &ContainerId) -> Result<Reply, SandboxError> {
        let live = self.live("list processes")?;
        expect(
            self.container(id)?.state,
            "list the processes of",
            &[State::Ready, State::Running, State::Paused],
            "running",
        )?;
        Ok(Reply::Processes {
            processes: live.guest.processes(id).await?,
        })
    }

    /// C-19.
    async fn stats(&self, id: &ContainerId) -> Result<Reply, SandboxError> {
        let live = self.live("read statistics")?;
        expect(
            self.container(id)?.state,
            "read the statistics of",
            &[State::Ready, State::Running, State::Paused],
            "not stopped",
        )?;
        Ok(Reply::Stats {
            stats: Box::new(live.guest.stats(id).await?),
        })
    }
}

fn expect(
    state: State,
    operation: &'static str,
    wanted: &[State],
    expected: &'static str,
) -> Result<(), SandboxError> {
    if wanted.contains(&state) {
        return Ok(());
    }
    Err(SandboxError::ContainerState {
        operation,
        state,
        expected,
    })
}
