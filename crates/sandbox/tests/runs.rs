//! A container that is made and started in one, and what its end spares, on fakes.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ExitStatus, State};
use bulkhead_sandbox::{Command, Handle, SavedSandbox};
use support::*;

async fn run(handle: &Handle, name: &str, first: bool) -> Result<(), bulkhead_model::Failure> {
    attach(handle, key(name), 500).await?;
    let plan = Box::new(container_plan(name, first));
    call(handle, Command::Run { plan }).await.map(drop)
}

async fn ended(bench: &Bench, handle: &Handle, name: &str) {
    bench.guest.exit(key(name), ExitStatus::Code(0));
    call(handle, Command::Wait { key: key(name) }).await.unwrap();
}

fn delete(name: &str) -> Command {
    Command::Delete {
        id: id(name),
        force: true,
    }
}

#[tokio::test]
async fn one_call_to_the_guest_makes_and_starts_it() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    run(&handle, "a", true).await.unwrap();
    assert!(!bench.faults.reached("start_container"));
    let made = bench.ledger.containers_made.lock().unwrap().clone();
    assert!(made[0].start, "{made:?}");
    assert_eq!(handle.snapshot().containers[&id("a")].state, State::Running);
    let saved = SavedSandbox::read(&bench.paths("a").state()).unwrap();
    assert_eq!(saved.containers[&id("a")].state, State::Running);
    call(&handle, Command::Start { id: id("a") }).await.unwrap_err();

    attach(&handle, key("b"), 501).await.unwrap();
    let plan = Box::new(container_plan("b", false));
    call(&handle, Command::Create { plan }).await.unwrap();
    let made = bench.ledger.containers_made.lock().unwrap().clone();
    assert!(!made[1].start, "a create waits for its start: {made:?}");
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "run");
}

#[tokio::test]
async fn every_step_of_it_fails_once_and_nothing_is_left() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    run(&handle, "a", true).await.unwrap();
    let steps = bench.faults.count();
    assert!(steps > 10, "only {steps} steps were counted");
    for k in 0..steps {
        let bench = Bench::new();
        bench.faults.fail_at(k);
        let (handle, engine) = bench.sandbox("a");
        let step = match run(&handle, "a", true).await {
            Ok(()) => {
                call(&handle, Command::Shutdown).await.unwrap();
                bench.faults.name(k)
            }
            Err(_) => bench.faults.name(k),
        };
        engine.await.unwrap();
        bench.assert_nothing_left("a", step);
    }
}

/// A guest that said that nothing is left to flush is not asked to flush.
#[tokio::test]
async fn a_settled_guest_is_not_flushed() {
    for settled in [true, false] {
        let bench = Bench::new();
        *bench.guest.settled.lock().unwrap() = settled;
        let (handle, engine) = bench.sandbox("a");
        run(&handle, "a", true).await.unwrap();
        ended(&bench, &handle, "a").await;
        call(&handle, delete("a")).await.unwrap();
        engine.await.unwrap();
        assert_eq!(bench.faults.reached("sync"), !settled);
        bench.assert_nothing_left("a", "settled");
    }
}

/// What it said holds until another container is there.
#[tokio::test]
async fn a_guest_with_another_container_is_flushed() {
    let bench = Bench::new();
    *bench.guest.settled.lock().unwrap() = true;
    let (handle, engine) = bench.sandbox("a");
    run(&handle, "a", true).await.unwrap();
    ended(&bench, &handle, "a").await;
    run(&handle, "b", false).await.unwrap();
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    assert!(bench.faults.reached("sync"), "made after it was said");

    let bench = Bench::new();
    *bench.guest.settled.lock().unwrap() = true;
    let (handle, engine) = bench.sandbox("a");
    run(&handle, "a", true).await.unwrap();
    run(&handle, "b", false).await.unwrap();
    ended(&bench, &handle, "a").await;
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    assert!(bench.faults.reached("sync"), "it lived when it was heard");
}
