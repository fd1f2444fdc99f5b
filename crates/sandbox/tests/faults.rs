//! Fault injection: every step of create, start, stop and delete fails once; nothing is left and the id is
//! free again (C-10 to C-15, design rules 2 and 3).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ExitStatus, FailureKind, State};
use bulkhead_sandbox::{Command, Handle, Notice, Reply};
use std::time::Duration;
use support::*;

/// A whole life: create, start, kill, delete, and beside it a second container that sees every other verb. Stops at the first refused verb and deletes by force.
async fn life(bench: &Bench, name: &str) -> Result<(), bulkhead_model::Failure> {
    let (handle, engine) = bench.sandbox(name);
    let result = async {
        create(&handle, name, true).await?;
        call(&handle, Command::Start { id: id(name) }).await?;
        second(&handle).await?;
        call(
            &handle,
            Command::Signal {
                key: key(name),
                signal: 9,
                all: false,
            },
        )
        .await?;
        call(&handle, Command::Wait { key: key(name) }).await?;
        call(
            &handle,
            Command::Delete {
                id: id(name),
                force: false,
            },
        )
        .await?;
        Ok(())
    }
    .await;
    if result.is_err() && !engine.is_finished() {
        // What a user does next. An engine that is ending answers that the sandbox is gone.
        let _ = call(
            &handle,
            Command::Delete {
                id: id(name),
                force: true,
            },
        )
        .await;
    }
    let left = tokio::time::timeout(Duration::from_secs(60), engine)
        .await
        .expect("the engine ends")
        .unwrap();
    assert_eq!(left, Vec::<String>::new());
    result
}

async fn second(handle: &Handle) -> Result<(), bulkhead_model::Failure> {
    create(handle, "second", false).await?;
    let id = id("second");
    call(handle, Command::Start { id: id.clone() }).await?;
    let exec = exec_key("second", "e");
    let _ear = attach(handle, exec.clone(), 600).await?;
    for command in [
        Command::Exec {
            key: exec,
            process: Box::default(),
        },
        Command::Pause { id: id.clone() },
        Command::Resume { id: id.clone() },
        Command::Update {
            id: id.clone(),
            resources: Box::default(),
        },
        Command::Stop {
            id: id.clone(),
            patience_ms: 1,
        },
        Command::Delete { id, force: false },
    ] {
        call(handle, command).await?;
    }
    Ok(())
}

/// C-11 to C-15: fail step k for every k; nothing is left; the same id works at once.
#[tokio::test]
async fn c10_c11_every_step_fails_once_and_nothing_is_left() {
    let bench = Bench::new();
    life(&bench, "a").await.unwrap();
    bench.assert_nothing_left("a", "no fault");
    let steps = bench.faults.count();
    assert!(steps > 25, "only {steps} steps were counted");
    let mut refused = 0;
    for k in 0..steps {
        let bench = Bench::new();
        bench.faults.fail_at(k);
        let result = life(&bench, "a").await;
        let name = bench.faults.name(k);
        bench.assert_nothing_left("a", &format!("step {k} ({name})"));
        if let Err(failure) = result {
            refused += 1;
            assert!(!failure.message.is_empty());
        }
        life(&bench, "a")
            .await
            .unwrap_or_else(|e| panic!("retry after step {k} ({name}): {e}"));
        bench.assert_nothing_left("a", &format!("retry after step {k} ({name})"));
    }
    assert!(refused > steps / 2, "only {refused} of {steps} faults were seen");
}

/// A failed boot carries the console's last lines and its first cause.
#[tokio::test]
async fn a_failed_boot_says_what_the_console_said() {
    let bench = Bench::new();
    bench.faults.hang_at(Some("connect_guest"));
    let (handle, engine) = bench.sandbox("a");
    let creating = tokio::spawn(async move { create(&handle, "a", true).await });
    while bench.ledger.processes.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    bench.vm_end.send_replace(true);
    let failure = creating.await.unwrap().unwrap_err();
    assert!(
        failure.message.contains("booting the guest"),
        "{}",
        failure.message
    );
    assert_eq!(failure.console, ["last console line"]);
    engine.await.unwrap();
    bench.assert_nothing_left("a", "boot failed");
}

/// state is answered and kill and delete call a boot off while it is under way (rule 1).
#[tokio::test]
async fn verbs_are_answered_while_the_boot_hangs() {
    for step in [
        "spawn_fsd",
        "launch",
        "plug",
        "resume",
        "connect_guest",
        "create_container",
    ] {
        for command in [
            Command::Signal {
                key: key("a"),
                signal: 9,
                all: false,
            },
            Command::Delete {
                id: id("a"),
                force: true,
            },
            Command::Shutdown,
        ] {
            let bench = Bench::new();
            bench.faults.hang_at(Some(step));
            let (handle, engine) = bench.sandbox("a");
            let creating = {
                let handle = handle.clone();
                tokio::spawn(async move { create(&handle, "a", true).await })
            };
            while !bench.faults.reached(step) {
                tokio::task::yield_now().await;
            }
            let Ok(Reply::Snapshot { snapshot }) = call(&handle, Command::Snapshot).await else {
                panic!("no snapshot at {step}");
            };
            assert!(snapshot.containers.is_empty());
            let answered =
                tokio::time::timeout(Duration::from_secs(60), call(&handle, command.clone())).await;
            answered
                .unwrap_or_else(|_| panic!("{command:?} hangs at {step}"))
                .unwrap();
            let failure = creating.await.unwrap().unwrap_err();
            assert_eq!(failure.kind, FailureKind::Cancelled, "{failure}");
            engine.await.unwrap();
            bench.assert_nothing_left("a", &format!("{command:?} at {step}"));
        }
    }
}

/// C-12: a failed start force-stops the container and returns the start's error.
#[tokio::test]
async fn c12_failed_start_stops_the_container() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    bench.faults.fail_at(0);
    let failure = call(&handle, Command::Start { id: id("a") }).await.unwrap_err();
    assert!(
        failure.message.contains("injected into start_container"),
        "{failure}"
    );
    assert_eq!(handle.snapshot().containers[&id("a")].state, State::Stopped);
    call(
        &handle,
        Command::Delete {
            id: id("a"),
            force: false,
        },
    )
    .await
    .unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "after a failed start");
}

/// C-16, C-21, C-23: state checks name operation and state.
#[tokio::test]
async fn c16_c21_state_checks() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let refused = call(&handle, Command::Pause { id: id("a") }).await.unwrap_err();
    assert_eq!(refused.kind, FailureKind::FailedPrecondition);
    assert!(
        refused.message.contains("pause") && refused.message.contains("ready"),
        "{refused}"
    );
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let again = call(&handle, Command::Start { id: id("a") }).await.unwrap_err();
    assert_eq!(again.kind, FailureKind::FailedPrecondition);
    call(&handle, Command::Pause { id: id("a") }).await.unwrap();
    let process = Box::new(bulkhead_model::oci::Process::default());
    let exec = Command::Exec {
        key: exec_key("a", "e"),
        process,
    };
    assert_eq!(
        call(&handle, exec).await.unwrap_err().kind,
        FailureKind::FailedPrecondition
    );
    call(&handle, Command::Resume { id: id("a") }).await.unwrap();
    let unknown = call(&handle, Command::Start { id: id("b") }).await.unwrap_err();
    assert_eq!(unknown.kind, FailureKind::NotFound);
    let running = call(
        &handle,
        Command::Delete {
            id: id("a"),
            force: false,
        },
    )
    .await
    .unwrap_err();
    assert_eq!(running.kind, FailureKind::FailedPrecondition);
    call(&handle, Command::Shutdown).await.unwrap();
}

/// The exit status reaches waiters and the stub; an exec id is free again afterwards.
#[tokio::test]
async fn exits_are_told_once_and_kept() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    for _ in 0..2 {
        let mut ear = attach(&handle, exec_key("a", "e"), 600).await.unwrap();
        let process = Box::new(bulkhead_model::oci::Process::default());
        call(
            &handle,
            Command::Exec {
                key: exec_key("a", "e"),
                process: process.clone(),
            },
        )
        .await
        .unwrap();
        let twice = Command::Exec {
            key: exec_key("a", "e"),
            process,
        };
        assert_eq!(
            call(&handle, twice).await.unwrap_err().kind,
            FailureKind::AlreadyExists
        );
        bench.guest.exit(exec_key("a", "e"), ExitStatus::Code(3));
        let reply = call(
            &handle,
            Command::Wait {
                key: exec_key("a", "e"),
            },
        )
        .await
        .unwrap();
        assert_eq!(
            reply,
            Reply::Exited {
                status: ExitStatus::Code(3),
                at_ns: 42
            }
        );
        assert_eq!(
            ear.recv().await,
            Some(Notice::Exited {
                status: ExitStatus::Code(3)
            })
        );
    }
    call(&handle, Command::Shutdown).await.unwrap();
}

/// The VM's end ends every process by SIGKILL; state and delete still answer.
#[tokio::test]
async fn the_end_of_the_vm_ends_every_process() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let waiting = {
        let handle = handle.clone();
        tokio::spawn(async move { call(&handle, Command::Wait { key: key("a") }).await })
    };
    bench.vm_end.send_replace(true);
    let reply = waiting.await.unwrap().unwrap();
    assert_eq!(
        reply,
        Reply::Exited {
            status: ExitStatus::Signal(9),
            at_ns: 42
        }
    );
    assert_eq!(handle.snapshot().containers[&id("a")].state, State::Stopped);
    let start = call(&handle, Command::Stats { id: id("a") }).await.unwrap_err();
    assert_eq!(start.kind, FailureKind::FailedPrecondition);
    call(
        &handle,
        Command::Delete {
            id: id("a"),
            force: false,
        },
    )
    .await
    .unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "after the VM's end");
}

/// The end of the shared-filesystem daemon ends the VM: its files are gone.
#[tokio::test]
async fn the_end_of_the_daemon_ends_the_vm() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    bench.host.fsd_end.send_replace(true);
    call(&handle, Command::Wait { key: key("a") }).await.unwrap();
    assert_eq!(handle.snapshot().state, State::Stopped);
    call(
        &handle,
        Command::Delete {
            id: id("a"),
            force: false,
        },
    )
    .await
    .unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "after the daemon's end");
}

/// A stub that dies takes its process with it.
#[tokio::test]
async fn the_end_of_a_stub_kills_its_process() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    handle.stub_gone(
        key("a"),
        bulkhead_model::HostProcess {
            pid: 500,
            start_time: 1,
        },
    );
    let reply = call(&handle, Command::Wait { key: key("a") }).await.unwrap();
    assert_eq!(
        reply,
        Reply::Exited {
            status: ExitStatus::Signal(9),
            at_ns: 42
        }
    );
    call(&handle, Command::Shutdown).await.unwrap();
}

/// A second container of a pod comes and goes without touching the first.
#[tokio::test]
async fn c15_a_second_container_goes_alone() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    create(&handle, "b", false).await.unwrap();
    let mounts = bench.ledger.mounts.lock().unwrap().len();
    call(&handle, Command::Start { id: id("b") }).await.unwrap();
    remove(&handle, "b").await.unwrap();
    assert_eq!(bench.ledger.mounts.lock().unwrap().len(), mounts - 2);
    assert!(handle.snapshot().containers.contains_key(&id("a")));
    remove(&handle, "a").await.unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "pod");
}

/// What cannot be undone is named, and stays in the journal for gc.
#[tokio::test]
async fn what_sticks_is_named_and_kept_for_gc() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let share = bench.paths("a").share();
    *bench.host.sticky.lock().unwrap() = Some(share.clone());
    let failure = remove(&handle, "a").await.unwrap_err();
    assert!(
        failure.message.contains(&share.display().to_string()),
        "{failure}"
    );
    assert_eq!(engine.await.unwrap().len(), 1);
    let journal = bulkhead_sandbox::Journal::open(&bench.paths("a").journal()).unwrap();
    assert_eq!(journal.held().len(), 1);
}

/// A VM that does not come up with KVM is started once more, translated; nothing of the first one is left.
#[tokio::test]
async fn a_boot_that_fails_with_kvm_is_tried_once_more_translated() {
    let clean = Bench::new();
    life(&clean, "a").await.unwrap();
    let launch = (0..clean.faults.count())
        .find(|k| clean.faults.name(*k) == "launch")
        .unwrap();
    for kvm in [true, false] {
        let bench = Bench::new();
        *bench.host.kvm.lock().unwrap() = kvm;
        bench.faults.fail_at(launch);
        assert_eq!(life(&bench, "a").await.is_ok(), kvm);
        bench.assert_nothing_left("a", "second boot");
    }
}

/// The streams of a process that never came to be are let go, so that their readers see the end.
#[tokio::test]
async fn a_failed_exec_lets_go_of_its_streams() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    attach(&handle, exec_key("a", "e"), 600).await.unwrap();
    let before = bench.faults.count();
    let process = Box::new(bulkhead_model::oci::Process::default());
    let exec = Command::Exec {
        key: exec_key("a", "e"),
        process,
    };
    // Three streams are connected first.
    bench.faults.fail_at(3);
    let failure = call(&handle, exec).await.unwrap_err();
    assert!(
        failure.message.contains("injected into exec"),
        "{failure} after {before} steps"
    );
    assert_eq!(*bench.guest.disconnected.lock().unwrap(), [4, 5, 6]);
    call(&handle, Command::Shutdown).await.unwrap();
}

/// A health check a second does not make the saved state grow for ever.
#[tokio::test]
async fn ended_execs_are_forgotten_but_for_the_newest() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    for n in 0..40 {
        let key = exec_key("a", &format!("e{n}"));
        attach(&handle, key.clone(), 600).await.unwrap();
        let process = Box::new(bulkhead_model::oci::Process::default());
        call(
            &handle,
            Command::Exec {
                key: key.clone(),
                process,
            },
        )
        .await
        .unwrap();
        bench.guest.exit(key.clone(), ExitStatus::Code(0));
        call(&handle, Command::Wait { key }).await.unwrap();
    }
    assert!(handle.snapshot().containers[&id("a")].execs.len() <= 17);
    call(&handle, Command::Shutdown).await.unwrap();
}
