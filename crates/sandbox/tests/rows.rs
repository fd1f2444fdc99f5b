//! Rows of the contract that the engine holds, on fakes: state, processes, verbs in every state, recovery.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{
    ContainerId, ContainerPlan, ExitStatus, Failure, FailureKind, HostProcess, ProcessKey, State, oci,
};
use bulkhead_sandbox::{
    Command, Handle, Journal, Platform, Reply, Resource, SandboxError, SavedSandbox, World,
};
use bulkhead_vmm::Vmm;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::*;

fn start(name: &str) -> Command {
    Command::Start { id: id(name) }
}

fn pause(name: &str) -> Command {
    Command::Pause { id: id(name) }
}

fn resume(name: &str) -> Command {
    Command::Resume { id: id(name) }
}

fn stats(name: &str) -> Command {
    Command::Stats { id: id(name) }
}

fn processes(name: &str) -> Command {
    Command::Processes { id: id(name) }
}

fn delete(name: &str, force: bool) -> Command {
    Command::Delete { id: id(name), force }
}

fn wait(key: ProcessKey) -> Command {
    Command::Wait { key }
}

fn signal(key: ProcessKey, signal: i32, all: bool) -> Command {
    Command::Signal { key, signal, all }
}

fn resize(key: ProcessKey) -> Command {
    Command::Resize {
        key,
        columns: 80,
        rows: 24,
    }
}

fn update(name: &str, resources: serde_json::Value) -> Command {
    Command::Update {
        id: id(name),
        resources: Box::new(serde_json::from_value(resources).unwrap()),
    }
}

fn exec(key: ProcessKey) -> Command {
    Command::Exec {
        key,
        process: Box::new(oci::Process::default()),
    }
}

async fn refused(handle: &Handle, command: Command) -> Failure {
    let said = format!("{command:?}");
    match call(handle, command).await {
        Ok(reply) => panic!("{said}: {reply:?}"),
        Err(failure) => failure,
    }
}

/// Brings container `a`, which was just created, into a state.
async fn bring(bench: &Bench, handle: &Handle, state: State) {
    if state == State::Ready {
        return;
    }
    call(handle, start("a")).await.unwrap();
    match state {
        State::Ready | State::Running => {}
        State::Paused => drop(call(handle, pause("a")).await.unwrap()),
        State::Stopped => {
            bench.guest.exit(key("a"), ExitStatus::Code(7));
            call(handle, wait(key("a"))).await.unwrap();
        }
    }
}

/// Asserts in which states a command is accepted.
async fn accepted_in(command: &Command, states: &[State]) {
    for state in State::ALL {
        let bench = Bench::new();
        let (handle, _engine) = bench.sandbox("a");
        create(&handle, "a", true).await.unwrap();
        bring(&bench, &handle, state).await;
        let answer = call(&handle, command.clone()).await;
        if states.contains(&state) {
            answer.unwrap_or_else(|e| panic!("{command:?} in {state}: {e}"));
        } else {
            let failure = answer.unwrap_err();
            assert_eq!(
                failure.kind,
                FailureKind::FailedPrecondition,
                "{command:?}: {failure}"
            );
            assert!(
                failure.message.contains(&state.to_string()),
                "{command:?}: {failure}"
            );
        }
        call(&handle, Command::Shutdown).await.unwrap();
    }
}

/// A world without an engine's task, booted.
async fn world(bench: &Bench, name: &str) -> World {
    let paths = bench.paths(name);
    std::fs::create_dir_all(&paths.dir).unwrap();
    std::fs::create_dir_all(&paths.sockets).unwrap();
    let journal = Journal::open(&paths.journal()).unwrap();
    let (mut world, _, _) = World::new(
        sandbox_plan(name),
        paths,
        Arc::clone(&bench.host) as Arc<dyn Platform>,
        Arc::clone(&bench.vmm) as Arc<dyn Vmm>,
        journal,
        HostProcess {
            pid: 1,
            start_time: 1,
        },
    );
    world.boot().await.unwrap();
    world
}

fn mounts(bench: &Bench) -> Vec<PathBuf> {
    bench.ledger.mounts.lock().unwrap().iter().cloned().collect()
}

fn saved(bench: &Bench) -> SavedSandbox {
    SavedSandbox::read(&bench.paths("a").state()).unwrap()
}

/// C-02: text that is no state is refused.
#[test]
fn c02_there_is_no_empty_state() {
    for text in ["\"\"", "null", "\"created\"", "\"Ready\"", "{}"] {
        assert!(serde_json::from_str::<State>(text).is_err(), "{text}");
    }
}

/// C-02: a change that cannot be saved is reported, and stands.
#[tokio::test]
async fn c02_a_change_that_cannot_be_saved_stands() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    let in_the_way = bench.paths("a").state().with_extension("new");
    std::fs::create_dir(&in_the_way).unwrap();
    let failure = refused(&handle, pause("a")).await;
    assert!(failure.message.contains("state.json"), "{failure}");
    std::fs::remove_dir(&in_the_way).unwrap();
    assert_eq!(saved(&bench).containers[&id("a")].state, State::Running);
    // Only what is paused can be resumed.
    call(&handle, resume("a")).await.unwrap();
    assert_eq!(saved(&bench).containers[&id("a")].state, State::Running);
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-03: no container without an id, by any way in.
#[test]
fn c03_a_container_has_an_id() {
    let plan = serde_json::to_value(container_plan("a", true)).unwrap();
    assert!(serde_json::from_value::<ContainerPlan>(plan.clone()).is_ok());
    let mut empty = plan.clone();
    empty["id"] = "".into();
    let error = serde_json::from_value::<ContainerPlan>(empty)
        .unwrap_err()
        .to_string();
    assert!(error.contains("container id is empty"), "{error}");
    let mut absent = plan;
    absent.as_object_mut().unwrap().remove("id");
    assert!(serde_json::from_value::<ContainerPlan>(absent).is_err());
    assert!(ContainerId::new("").is_err());
}

/// C-04: token, host pid and start time of a process, kept on disk.
#[tokio::test]
async fn c04_a_process_is_recorded() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let stub = |pid| HostProcess { pid, start_time: 1 };
    assert_eq!(saved(&bench).containers[&id("a")].init.host, Some(stub(500)));
    assert_eq!(handle.snapshot().containers[&id("a")].init.host, Some(stub(500)));
    assert_eq!(saved(&bench).containers[&id("a")].init.started_ns, None);
    call(&handle, start("a")).await.unwrap();
    assert_eq!(saved(&bench).containers[&id("a")].init.started_ns, Some(42));
    let token = exec_key("a", "e");
    let _ear = attach(&handle, token.clone(), 600).await.unwrap();
    call(&handle, exec(token.clone())).await.unwrap();
    let saved = saved(&bench).containers[&id("a")].execs[&token.exec.unwrap()].clone();
    assert_eq!((saved.host, saved.started_ns), (Some(stub(600)), Some(42)));
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-05: what a status says.
#[tokio::test]
async fn c05_status() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    let snapshot = handle.snapshot();
    let status = &snapshot.containers[&id("a")];
    assert_eq!((&status.id, status.state), (&id("a"), State::Running));
    assert_eq!(status.rootfs, Path::new("/b/rootfs"));
    assert_eq!((status.created_ns, status.init.started_ns), (42, Some(42)));
    assert_eq!(status.init.host.map(|stub| stub.pid), Some(500));
    assert_eq!(status.annotations, container_plan("a", true).annotations());
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-09: a fresh supervisor finds everything, acquires nothing twice and goes on.
#[tokio::test]
async fn c09_a_fresh_supervisor_goes_on() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    create(&handle, "b", false).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    let token = exec_key("a", "done");
    let _ear = attach(&handle, token.clone(), 600).await.unwrap();
    call(&handle, exec(token.clone())).await.unwrap();
    bench.guest.exit(token.clone(), ExitStatus::Code(3));
    call(&handle, wait(token.clone())).await.unwrap();
    let before = (mounts(&bench), saved(&bench));
    let running = bench.ledger.processes.lock().unwrap().clone();

    engine.abort();
    assert!(engine.await.unwrap_err().is_cancelled());
    let (handle, engine) = bench.successor("a").await;
    assert_eq!((mounts(&bench), saved(&bench)), before);
    assert_eq!(*bench.ledger.processes.lock().unwrap(), running);
    let states = handle.snapshot().containers;
    assert_eq!(states[&id("a")].state, State::Running);
    assert_eq!(states[&id("b")].state, State::Ready);
    // An exit status that was known stays known; one that comes now arrives.
    let Reply::Exited { status, .. } = call(&handle, wait(token)).await.unwrap() else {
        panic!("no exit");
    };
    assert_eq!(status, ExitStatus::Code(3));
    call(&handle, start("b")).await.unwrap();
    call(&handle, exec(exec_key("a", "new"))).await.unwrap();
    bench.guest.exit(key("a"), ExitStatus::Code(5));
    let Reply::Exited { status, .. } = call(&handle, wait(key("a"))).await.unwrap() else {
        panic!("no exit");
    };
    assert_eq!(status, ExitStatus::Code(5));
    call(&handle, delete("a", false)).await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());
    bench.assert_nothing_left("a", "after a successor");
}

/// C-09: without a VM everything has ended, and can be deleted.
#[tokio::test]
async fn c09_a_fresh_supervisor_of_a_dead_vm() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    engine.abort();
    let _ = engine.await;
    bench.ledger.processes.lock().unwrap().clear();
    let (handle, engine) = bench.successor("a").await;
    let snapshot = handle.snapshot();
    assert_eq!(
        (snapshot.state, snapshot.containers[&id("a")].state),
        (State::Stopped, State::Stopped)
    );
    let reply = call(&handle, wait(key("a"))).await.unwrap();
    assert!(
        matches!(
            reply,
            Reply::Exited {
                status: ExitStatus::Signal(9),
                ..
            }
        ),
        "{reply:?}"
    );
    call(&handle, delete("a", false)).await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());
    bench.assert_nothing_left("a", "after a dead VM");
}

/// C-09: only the absence of saved state means new; then what was begun is undone.
#[tokio::test]
async fn c09_state_that_cannot_be_read_is_an_error() {
    let bench = Bench::new();
    let mut first = world(&bench, "a").await;
    first.create(container_plan("a", true), None).await.unwrap();
    drop(first);
    let paths = bench.paths("a");
    let fresh = || {
        let journal = Journal::open(&paths.journal()).unwrap();
        let stub = HostProcess {
            pid: 2,
            start_time: 1,
        };
        World::new(
            sandbox_plan("a"),
            paths.clone(),
            Arc::clone(&bench.host) as Arc<dyn Platform>,
            Arc::clone(&bench.vmm) as Arc<dyn Vmm>,
            journal,
            stub,
        )
        .0
    };
    let good = std::fs::read(paths.state()).unwrap();
    for bad in [&good[..good.len() / 2], b"{}", b"", b"{\"version\": 99}"] {
        std::fs::write(paths.state(), bad).unwrap();
        let error = fresh().recover().await.unwrap_err();
        assert!(matches!(error, SandboxError::Host { .. }), "{error:?}");
        assert!(!mounts(&bench).is_empty(), "an error undoes nothing");
    }
    std::fs::remove_file(paths.state()).unwrap();
    let error = fresh().recover().await.unwrap_err();
    assert!(matches!(error, SandboxError::Gone { .. }), "{error:?}");
    bench.ledger.assert_empty("nothing was saved");
}

/// C-12, C-16, C-18, C-19, C-20, C-21, C-22: in which states a verb is accepted; a refusal names the state.
#[tokio::test]
async fn c12_c16_c18_to_c22_states_of_verbs() {
    use State::{Paused, Ready, Running};
    accepted_in(&start("a"), &[Ready]).await;
    accepted_in(&exec(exec_key("a", "e")), &[Ready, Running]).await;
    accepted_in(&resize(key("a")), &[Ready, Running]).await;
    accepted_in(&stats("a"), &[Ready, Running, Paused]).await;
    accepted_in(&processes("a"), &[Ready, Running, Paused]).await;
    accepted_in(&update("a", serde_json::json!({})), &[Ready, Running]).await;
    accepted_in(&pause("a"), &[Running]).await;
    accepted_in(&resume("a"), &[Paused]).await;
}

/// C-16: the status stays for whoever asks later.
#[tokio::test]
async fn c16_a_status_can_be_had_again() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    bring(&bench, &handle, State::Stopped).await;
    for _ in 0..3 {
        let reply = call(&handle, wait(key("a"))).await.unwrap();
        let status = ExitStatus::Code(7);
        assert_eq!(reply, Reply::Exited { status, at_ns: 42 });
    }
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-17: signals go to the process named, in the states that allow them.
#[tokio::test]
async fn c17_signals() {
    accepted_in(
        &signal(key("a"), 10, false),
        &[State::Ready, State::Running, State::Paused],
    )
    .await;
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    let token = exec_key("a", "e");
    let _ear = attach(&handle, token.clone(), 600).await.unwrap();
    call(&handle, exec(token.clone())).await.unwrap();
    call(&handle, signal(key("a"), 10, false)).await.unwrap();
    call(&handle, signal(token.clone(), 12, false)).await.unwrap();
    call(&handle, signal(key("a"), 15, true)).await.unwrap();
    assert_eq!(
        *bench.guest.signals.lock().unwrap(),
        [(key("a"), 10, false), (token, 12, false), (key("a"), 15, true)]
    );
    for number in [0, -1, 65, i32::MAX] {
        let failure = refused(&handle, signal(key("a"), number, false)).await;
        assert_eq!(failure.kind, FailureKind::InvalidArgument);
        assert!(failure.message.contains(&number.to_string()), "{failure}");
        assert!(failure.message.contains("1 to 64"), "{failure}");
    }
    let nobody = refused(&handle, signal(exec_key("a", "nobody"), 10, false)).await;
    assert_eq!(nobody.kind, FailureKind::NotFound);
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-18: the window of an exec is addressed by its token.
#[tokio::test]
async fn c18_a_window_needs_its_process() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let nobody = refused(&handle, resize(exec_key("a", "e"))).await;
    assert_eq!(nobody.kind, FailureKind::NotFound);
    let _ear = attach(&handle, exec_key("a", "e"), 600).await.unwrap();
    call(&handle, exec(exec_key("a", "e"))).await.unwrap();
    call(&handle, resize(exec_key("a", "e"))).await.unwrap();
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-23: the sandbox comes before the container's state, and the operation is named.
#[tokio::test]
async fn c19_c23_without_a_vm_operations_are_refused_by_name() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, start("a")).await.unwrap();
    bench.vm_end.send_replace(true);
    call(&handle, wait(key("a"))).await.unwrap();
    for (command, operation) in [
        (start("a"), "start"),
        (exec(exec_key("a", "e")), "exec"),
        (stats("a"), "statistics"),
        (update("a", serde_json::json!({})), "update"),
        (pause("a"), "pause"),
        (resume("a"), "resume"),
        (processes("a"), "processes"),
    ] {
        let failure = refused(&handle, command).await;
        assert_eq!(failure.kind, FailureKind::FailedPrecondition, "{failure}");
        assert!(failure.message.contains(operation), "{operation}: {failure}");
        assert!(failure.message.contains("sandbox a"), "{operation}: {failure}");
    }
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-23: an operation has a name.
#[tokio::test]
async fn c23_an_operation_has_a_name() {
    let bench = Bench::new();
    let mut world = world(&bench, "a").await;
    assert!(world.must_run("start").is_ok());
    let error = world.must_run("").unwrap_err();
    assert!(matches!(error, SandboxError::Invalid { .. }), "{error:?}");
    world.tear_down().await;
}

/// C-11: rollback of one container of a pod leaves the others, and nothing of its own.
#[tokio::test]
async fn c11_a_failed_create_leaves_the_others() {
    let clean = Bench::new();
    let mut world = world(&clean, "a").await;
    world.create(container_plan("a", true), None).await.unwrap();
    let from = clean.faults.count();
    world.create(container_plan("b", false), None).await.unwrap();
    let steps = clean.faults.count() - from;
    world.tear_down().await;
    for k in 0..steps {
        let bench = Bench::new();
        let (handle, _engine) = bench.sandbox("a");
        create(&handle, "a", true).await.unwrap();
        let base = mounts(&bench);
        let held = |bench: &Bench| -> Vec<Resource> {
            let journal = Journal::open(&bench.paths("a").journal()).unwrap();
            journal.held().into_iter().map(|(_, resource)| resource).collect()
        };
        let resources = held(&bench);
        bench.faults.fail_at(k);
        let name = || bench.faults.name(bench.faults.count() - 1);
        let result = create(&handle, "b", false).await;
        assert!(result.is_err(), "step {k} of {steps}: {}", name());
        assert_eq!(mounts(&bench), base, "step {k}");
        assert_eq!(held(&bench), resources, "step {k}");
        assert!(!saved(&bench).containers.contains_key(&id("b")), "step {k}");
        assert_eq!(handle.snapshot().containers.len(), 1, "step {k}");
        create(&handle, "b", false).await.unwrap();
        call(&handle, Command::Shutdown).await.unwrap();
    }
}
