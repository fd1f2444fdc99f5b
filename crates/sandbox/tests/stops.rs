//! Stopping with patience (C-14), on fakes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ExitStatus, FailureKind, State};
use bulkhead_sandbox::{Command, Handle, Notice, Reply, SavedSandbox};
use std::time::Duration;
use support::*;

/// The stub that [`create`] attaches.
const STUB: i32 = 500;

fn stop(patience: Duration) -> Command {
    Command::Stop {
        id: id("a"),
        patience_ms: u64::try_from(patience.as_millis()).unwrap(),
    }
}

/// A running container whose stub is a process that does not end by itself.
async fn running(bench: &Bench) -> (Handle, tokio::task::JoinHandle<Vec<String>>) {
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    bench.ledger.processes.lock().unwrap().insert(STUB, "stub");
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    (handle, engine)
}

fn stub_is_there(bench: &Bench) -> bool {
    bench.ledger.processes.lock().unwrap().contains_key(&STUB)
}

async fn exit(handle: &Handle) -> ExitStatus {
    match call(handle, Command::Wait { key: key("a") }).await.unwrap() {
        Reply::Exited { status, .. } => status,
        other => panic!("{other:?}"),
    }
}

async fn end(bench: &Bench, handle: &Handle, context: &str) {
    call(handle, Command::Shutdown).await.unwrap();
    bench.assert_nothing_left("a", context);
}

/// C-14: who ends by itself is not killed, and its own status is what is told; its stub goes.
#[tokio::test]
async fn c14_a_process_that_ends_in_time_is_not_killed() {
    let bench = Bench::new();
    let (handle, _engine) = running(&bench).await;
    bench.ledger.take_order();
    let (stopped, ()) = tokio::join!(call(&handle, stop(Duration::from_secs(3600))), async {
        tokio::task::yield_now().await;
        bench.guest.exit(key("a"), ExitStatus::Code(7));
    });
    stopped.unwrap();
    assert_eq!(exit(&handle).await, ExitStatus::Code(7));
    assert_eq!(handle.snapshot().containers[&id("a")].state, State::Stopped);
    assert!(!stub_is_there(&bench));
    // What it held is given back: the stop that follows is the whole one (C-13).
    let order = bench.ledger.take_order();
    assert!(order.contains(&"remove_container".to_owned()), "{order:?}");
    assert!(order.contains(&"unmount rootfs".to_owned()), "{order:?}");
    let saved = SavedSandbox::read(&bench.paths("a").state()).unwrap();
    assert_eq!(saved.containers[&id("a")].state, State::Stopped);
    end(&bench, &handle, "in time").await;
}

/// C-14: after its patience the process is killed and waited for again.
#[tokio::test]
async fn c14_patience_has_an_end() {
    let bench = Bench::new();
    let (handle, _engine) = running(&bench).await;
    bench.ledger.take_order();
    call(&handle, stop(Duration::from_millis(1))).await.unwrap();
    assert_eq!(exit(&handle).await, ExitStatus::Signal(9));
    assert_eq!(bench.ledger.take_order()[0], "signal 9 all=true");
    assert!(!stub_is_there(&bench));
    end(&bench, &handle, "killed").await;
}

/// C-14: whatever fails on the way, no process on the host stands for the container afterwards.
#[tokio::test]
async fn c14_the_stub_goes_on_every_way_out() {
    for step in ["remove_container", "signal"] {
        let bench = Bench::new();
        let (handle, _engine) = running(&bench).await;
        bench.faults.fail_at_name(step);
        let stopped = call(&handle, stop(Duration::from_millis(1))).await;
        assert_eq!(
            stopped.is_err(),
            step == "remove_container",
            "{step}: {stopped:?}"
        );
        assert!(!stub_is_there(&bench), "{step}");
        end(&bench, &handle, step).await;
    }
}

/// C-14: a stub that does as it is told ends with the process's status and is not killed.
#[tokio::test]
async fn c14_a_stub_is_told_first() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    let mut ear = attach(&handle, key("a"), STUB).await.unwrap();
    let plan = Box::new(container_plan("a", true));
    call(&handle, Command::Create { plan }).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    call(&handle, stop(Duration::from_millis(1))).await.unwrap();
    let status = ExitStatus::Signal(9);
    assert_eq!(ear.recv().await, Some(Notice::Exited { status }));
    end(&bench, &handle, "told").await;
}

/// C-14: it needs a sandbox that is ready or running; a container that is stopped is left alone, one that is not
/// there is an error.
#[tokio::test]
async fn c14_states() {
    let bench = Bench::new();
    let (handle, _engine) = running(&bench).await;
    let unknown = Command::Stop {
        id: id("b"),
        patience_ms: 1,
    };
    assert_eq!(
        call(&handle, unknown).await.unwrap_err().kind,
        FailureKind::NotFound
    );
    call(&handle, stop(Duration::from_millis(1))).await.unwrap();
    bench.ledger.take_order();
    call(&handle, stop(Duration::from_millis(1))).await.unwrap();
    assert_eq!(bench.ledger.take_order(), Vec::<String>::new());
    bench.vm_end.send_replace(true);
    let mut seen = handle.clone();
    while seen.snapshot().state != State::Stopped {
        tokio::task::yield_now().await;
        seen = handle.clone();
    }
    let refused = call(&handle, stop(Duration::from_millis(1))).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::FailedPrecondition);
    assert!(
        refused.message.contains("cannot stop: sandbox a is stopped"),
        "{refused}"
    );
    end(&bench, &handle, "states").await;
}

/// C-13, C-15: a container that is deleted by force while others stay takes its stubs along, each with its status.
#[tokio::test]
async fn c15_the_stubs_of_a_deleted_container_go() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let mut ear = attach(&handle, key("b"), STUB).await.unwrap();
    bench.ledger.processes.lock().unwrap().insert(STUB, "stub");
    let plan = Box::new(container_plan("b", false));
    call(&handle, Command::Create { plan }).await.unwrap();
    call(&handle, Command::Start { id: id("b") }).await.unwrap();
    let delete = Command::Delete {
        id: id("b"),
        force: true,
    };
    call(&handle, delete).await.unwrap();
    let status = ExitStatus::Signal(9);
    assert_eq!(ear.recv().await, Some(Notice::Exited { status }));
    assert!(!stub_is_there(&bench));
    end(&bench, &handle, "by force").await;
}
