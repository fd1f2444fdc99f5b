//! Any sequence of verbs against a model: the engine allows exactly what the state machine allows (C-01),
//! what it shows is what the model says, and what is saved is what it shows (C-02), also when the supervisor
//! is killed and replaced on the way (C-09). With faults injected it may refuse more, and keeps the rest.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ContainerId, ExecId, ExitStatus, FailureKind, State, oci};
use bulkhead_sandbox::{Command, Handle, Reply, SavedSandbox};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use support::*;
use tokio::task::JoinHandle;

/// Longer than anything takes on a machine that is busy.
const DEADLINE: Duration = Duration::from_secs(60);

/// The container that makes the sandbox, and two that join it.
const NAMES: [&str; 3] = ["a", "b", "c"];

/// What somebody does, or what happens.
#[derive(Debug, Clone, Copy)]
enum Step {
    Create,
    Start,
    Exec,
    ExecEnds,
    Ends,
    Terminate,
    Kill,
    Pause,
    Resume,
    Update,
    Stats,
    Processes,
    Resize,
    Delete { force: bool },
    SupervisorDies,
}

const STEPS: [Step; 16] = [
    Step::Create,
    Step::Start,
    Step::Exec,
    Step::ExecEnds,
    Step::Ends,
    Step::Terminate,
    Step::Kill,
    Step::Pause,
    Step::Resume,
    Step::Update,
    Step::Stats,
    Step::Processes,
    Step::Resize,
    Step::Delete { force: false },
    Step::Delete { force: true },
    Step::SupervisorDies,
];

/// A container as the model has it.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Expected {
    state: State,
    /// Execs that were started: `true` while they run.
    execs: BTreeMap<ExecId, bool>,
}

/// A sandbox under test and the model of it.
struct Pair {
    bench: Bench,
    handle: Handle,
    engine: JoinHandle<Vec<String>>,
    model: BTreeMap<ContainerId, Expected>,
}

type Answer = Result<Reply, bulkhead_model::Failure>;

impl Pair {
    async fn new() -> Self {
        let bench = Bench::new();
        let (handle, engine) = bench.sandbox("a");
        let mut pair = Self {
            bench,
            handle,
            engine,
            model: BTreeMap::new(),
        };
        pair.check(Step::Create, "a", None).await;
        pair
    }

    /// A step whose outcome the model knows.
    async fn check(&mut self, step: Step, name: &str, context: Option<&str>) {
        let said = format!("{step:?} {name} {}", context.unwrap_or_default());
        let expected = self.predict(step, name);
        let answer = tokio::time::timeout(DEADLINE, self.take(step, name))
            .await
            .unwrap_or_else(|_| panic!("{said}: no answer"));
        match (&answer, &expected) {
            (Ok(_), Ok(())) => {}
            (Err(failure), Err(kind)) if failure.kind == *kind => {}
            _ => panic!("{said}: expected {expected:?}, got {answer:?}\n{:?}", self.model),
        }
        if answer.is_ok() {
            self.apply(step, name);
        }
        self.compare(&said).await;
    }

    /// What the contract says of a step now.
    fn predict(&self, step: Step, name: &str) -> Result<(), FailureKind> {
        use State::{Paused, Ready, Running, Stopped};
        let Some(container) = self.model.get(&id(name)) else {
            return match step {
                Step::Create | Step::SupervisorDies => Ok(()),
                _ => Err(FailureKind::NotFound),
            };
        };
        let among = |states: &[State]| {
            if states.contains(&container.state) {
                Ok(())
            } else {
                Err(FailureKind::FailedPrecondition)
            }
        };
        match step {
            Step::Create => Err(FailureKind::AlreadyExists),
            Step::Start => among(&[Ready]),
            Step::Exec => among(&[Ready, Running]).and_then(|()| {
                if container.execs.get(&exec()) == Some(&true) {
                    Err(FailureKind::AlreadyExists)
                } else {
                    Ok(())
                }
            }),
            Step::Ends | Step::Terminate | Step::Kill => among(&[Ready, Running, Paused]),
            Step::Pause => among(&[Running]),
            Step::Resume => among(&[Paused]),
            Step::Update | Step::Resize => among(&[Ready, Running]),
            Step::Stats | Step::Processes => among(&[Ready, Running, Paused]),
            Step::Delete { force: false } => among(&[Ready, Stopped]),
            Step::ExecEnds | Step::Delete { force: true } | Step::SupervisorDies => Ok(()),
        }
    }

    /// The model after a step that succeeded.
    fn apply(&mut self, step: Step, name: &str) {
        let entry = self.model.get_mut(&id(name));
        match (step, entry) {
            (Step::Create, None) => {
                let new = Expected {
                    state: State::Ready,
                    execs: BTreeMap::new(),
                };
                self.model.insert(id(name), new);
            }
            (Step::Start, Some(container)) | (Step::Resume, Some(container)) => {
                container.state = State::Running;
            }
            (Step::Pause, Some(container)) => container.state = State::Paused,
            (Step::Ends | Step::Kill, Some(container)) => container.state = State::Stopped,
            (Step::Exec, Some(container)) => {
                container.execs.insert(exec(), true);
            }
            (Step::ExecEnds, Some(container)) => {
                if let Some(runs) = container.execs.get_mut(&exec()) {
                    *runs = false;
                }
            }
            (Step::Delete { .. }, Some(_)) => {
                self.model.remove(&id(name));
                // The pod ends with the container that made it.
                if name == "a" {
                    self.model.clear();
                }
            }
            _ => {}
        }
    }

    /// Does it.
    async fn take(&mut self, step: Step, name: &str) -> Answer {
        let (id, key) = (id(name), key(name));
        let handle = &self.handle;
        match step {
            Step::Create => create(handle, name, name == "a").await,
            Step::Start => call(handle, Command::Start { id }).await,
            Step::Exec => {
                let key = exec_key(name, exec().as_str());
                let _ = attach(handle, key.clone(), 600).await?;
                let process = Box::new(oci::Process::default());
                call(handle, Command::Exec { key, process }).await
            }
            Step::ExecEnds => {
                let key = exec_key(name, exec().as_str());
                let snapshot = handle.snapshot();
                let Some(container) = snapshot.containers.get(&id) else {
                    return call(handle, Command::Wait { key }).await;
                };
                if container.execs.is_empty() {
                    return Ok(Reply::Done);
                }
                self.bench.guest.exit(key.clone(), ExitStatus::Code(3));
                call(handle, Command::Wait { key }).await
            }
            Step::Ends => {
                let snapshot = handle.snapshot();
                match snapshot.containers.get(&id) {
                    // It ends once.
                    Some(container) if container.state == State::Stopped => {
                        call(handle, signal(key, 15)).await
                    }
                    _ => {
                        self.bench.guest.exit(key.clone(), ExitStatus::Code(0));
                        call(handle, Command::Wait { key }).await
                    }
                }
            }
            // Before a container exists a deadly signal calls its creation off, which is another story.
            Step::Terminate | Step::Kill if !self.model.contains_key(&id) => {
                call(handle, Command::Start { id }).await
            }
            Step::Terminate => call(handle, signal(key, 15)).await,
            Step::Kill => {
                call(handle, signal(key.clone(), 9)).await?;
                call(handle, Command::Wait { key }).await
            }
            Step::Pause => call(handle, Command::Pause { id }).await,
            Step::Resume => call(handle, Command::Resume { id }).await,
            Step::Update => {
                let resources = Box::new(oci::LinuxResources::default());
                call(handle, Command::Update { id, resources }).await
            }
            Step::Stats => call(handle, Command::Stats { id }).await,
            Step::Processes => call(handle, Command::Processes { id }).await,
            Step::Resize => {
                let (columns, rows) = (80, 24);
                call(handle, Command::Resize { key, columns, rows }).await
            }
            Step::Delete { force } => call(handle, Command::Delete { id, force }).await,
            Step::SupervisorDies => {
                self.engine.abort();
                assert!((&mut self.engine).await.unwrap_err().is_cancelled());
                (self.handle, self.engine) = self.bench.successor("a").await;
                Ok(Reply::Done)
            }
        }
    }

    /// Engine, saved state and model agree; a sandbox that ended has left nothing, and its id is free.
    async fn compare(&mut self, said: &str) {
        if self.model.is_empty() {
            self.ended(said).await;
            return;
        }
        let snapshot = self.handle.snapshot();
        let shown: BTreeMap<_, _> = snapshot.containers.iter().map(|(id, c)| (id, c.state)).collect();
        let expected: BTreeMap<_, _> = self.model.iter().map(|(id, c)| (id, c.state)).collect();
        assert_eq!(shown, expected, "{said}");
        for (id, container) in &self.model {
            let shown: BTreeMap<_, _> = snapshot.containers[id]
                .execs
                .iter()
                .map(|e| (e.exec.clone().unwrap(), !e.delivered))
                .collect();
            assert_eq!(shown, container.execs, "{said}: execs of {id}");
        }
        self.saved_is_shown(said);
    }

    /// The file says what the engine says.
    fn saved_is_shown(&self, said: &str) {
        let snapshot = self.handle.snapshot();
        let saved =
            SavedSandbox::read(&self.bench.paths("a").state()).unwrap_or_else(|e| panic!("{said}: {e}"));
        assert_eq!((&saved.id, saved.state), (&snapshot.id, snapshot.state), "{said}");
        assert_eq!(saved.phase, snapshot.phase, "{said}");
        let ids = |keys: BTreeSet<&ContainerId>| keys.into_iter().cloned().collect::<Vec<_>>();
        assert_eq!(
            ids(saved.containers.keys().collect()),
            ids(snapshot.containers.keys().collect()),
            "{said}"
        );
        for (id, saved) in &saved.containers {
            let shown = &snapshot.containers[id];
            assert_eq!(saved.state, shown.state, "{said}: {id}");
            assert_eq!(saved.created_ns, shown.created_ns, "{said}: {id}");
            let processes = saved.execs.iter().map(|(id, p)| (Some(id.clone()), p));
            let mut all = shown.execs.clone();
            all.push(shown.init.clone());
            let processes: Vec<_> = processes.chain([(None, &saved.init)]).collect();
            assert_eq!(processes.len(), all.len(), "{said}: {id}");
            for (exec, saved) in processes {
                let shown = all.iter().find(|p| p.exec == exec).unwrap();
                let of_file = (
                    saved.host,
                    saved.streams,
                    saved.guest_pid,
                    saved.exit,
                    saved.delivered,
                );
                let of_engine = (
                    shown.host,
                    shown.stdio,
                    shown.guest_pid,
                    shown.exit,
                    shown.delivered,
                );
                assert_eq!(of_file, of_engine, "{said}: {id} {exec:?}");
                assert_eq!(saved.exited_ns, shown.exited_ns, "{said}: {id} {exec:?}");
            }
        }
    }

    async fn ended(&mut self, said: &str) {
        let left = tokio::time::timeout(DEADLINE, &mut self.engine)
            .await
            .unwrap_or_else(|_| panic!("{said}: the engine goes on"))
            .unwrap();
        assert_eq!(left, Vec::<String>::new(), "{said}");
        self.bench.assert_nothing_left("a", said);
        (self.handle, self.engine) = self.bench.sandbox("a");
        Box::pin(self.check(Step::Create, "a", Some("again"))).await;
    }

    /// A step into which a fault may fall: it may fail, and what holds, holds.
    async fn risk(&mut self, step: Step, name: &str, said: &str) {
        let before = self.handle.snapshot();
        if before.containers.is_empty() && matches!(step, Step::SupervisorDies) {
            // Nothing was saved yet: that is the end of the sandbox.
            return;
        }
        let answer = tokio::time::timeout(DEADLINE, self.take(step, name))
            .await
            .unwrap_or_else(|_| panic!("{said}: no answer"));
        if let Err(failure) = answer {
            assert!(!failure.message.is_empty(), "{said}");
        }
        // A sandbox that is taken down answers when its state directory is gone; its task ends a moment later.
        if self.engine.is_finished() || !self.bench.paths("a").dir.exists() {
            let left = tokio::time::timeout(DEADLINE, &mut self.engine)
                .await
                .unwrap_or_else(|_| panic!("{said}: the engine goes on"))
                .unwrap();
            assert_eq!(left, Vec::<String>::new(), "{said}");
            self.bench.assert_nothing_left("a", said);
            (self.handle, self.engine) = self.bench.sandbox("a");
            return;
        }
        let after = self.handle.snapshot();
        for (id, container) in &after.containers {
            let Some(old) = before.containers.get(id) else {
                continue;
            };
            let same = container.created_ns == old.created_ns && container.init.stdio == old.init.stdio;
            assert!(
                !same || old.state == container.state || old.state.moved(container.state).is_ok(),
                "{said}: {id} went from {} to {}",
                old.state,
                container.state
            );
        }
        if !after.containers.is_empty() {
            self.saved_is_shown(said);
        }
    }

    async fn end(mut self) {
        self.bench.faults.fail_at(usize::MAX >> 1);
        let _ = call(&self.handle, Command::Shutdown).await.unwrap();
        let left = tokio::time::timeout(DEADLINE, &mut self.engine).await.unwrap();
        assert_eq!(left.unwrap(), Vec::<String>::new());
        self.bench.assert_nothing_left("a", "the end");
    }
}

fn exec() -> ExecId {
    ExecId::new("e").unwrap()
}

fn signal(key: bulkhead_model::ProcessKey, signal: i32) -> Command {
    let all = false;
    Command::Signal { key, signal, all }
}

fn block_on(work: impl Future<Output = ()>) {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work);
}

fn steps(most: usize) -> impl Strategy<Value = Vec<(Step, &'static str)>> {
    let step = (prop::sample::select(&STEPS[..]), prop::sample::select(&NAMES[..]));
    prop::collection::vec(step, 1..most)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn c01_c02_c09_any_sequence_of_verbs(steps in steps(40)) {
        block_on(async {
            let mut pair = Pair::new().await;
            for (at, (step, name)) in steps.into_iter().enumerate() {
                pair.check(step, name, Some(&format!("(step {at})"))).await;
            }
            pair.end().await;
        });
    }

    #[test]
    fn c01_c02_c11_any_sequence_of_verbs_with_faults(
        steps in prop::collection::vec((steps(2), prop::option::weighted(0.4, 0usize..8)), 1..40),
    ) {
        block_on(async {
            let mut pair = Pair::new().await;
            for (at, (step, fault)) in steps.into_iter().enumerate() {
                let (step, name) = step[0];
                if let Some(k) = fault {
                    pair.bench.faults.fail_at(k);
                }
                pair.risk(step, name, &format!("step {at}: {step:?} {name}, fault {fault:?}")).await;
            }
            pair.end().await;
        });
    }
}
