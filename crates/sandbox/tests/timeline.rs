//! The timeline of a sandbox: what each operation records, in order, on one clock, within bounds, and where it is
//! found when the sandbox is gone.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::ExitStatus;
use bulkhead_model::timeline::{Lane, Operation, Span, Timeline, Told, VERSION};
use bulkhead_sandbox::timeline::{MOST_OPERATIONS, MOST_SPANS, read};
use bulkhead_sandbox::{Command, Handle, Luggage, Reply, timeline};
use std::collections::BTreeSet;
use std::path::Path;
use support::*;

async fn shown(handle: &Handle) -> Timeline {
    match call(handle, Command::Timeline).await.unwrap() {
        Reply::Timeline { timeline } => *timeline,
        other => panic!("{other:?}"),
    }
}

fn tell(operation: &str, late: bool, spans: Vec<Span>) -> Command {
    let told = Told {
        operation: operation.into(),
        container: id("a"),
        exec: None,
        spans,
    };
    Command::Tell { told, late }
}

fn one<'a>(timeline: &'a Timeline, name: &str) -> &'a Operation {
    let found: Vec<_> = timeline
        .operations
        .iter()
        .filter(|one| one.name == name)
        .collect();
    assert_eq!(found.len(), 1, "{name}: {timeline:#?}");
    found[0]
}

fn names(operation: &Operation) -> Vec<(Lane, &str)> {
    operation
        .spans
        .iter()
        .map(|span| (span.lane, span.name.as_str()))
        .collect()
}

/// Ends are in order, nothing ends before it begins or lies outside of its operation, everything is over.
fn assert_sound(operation: &Operation) {
    let end = operation
        .end_ns
        .unwrap_or_else(|| panic!("{operation:#?} goes on"));
    let ends: Vec<u64> = operation.spans.iter().map(|span| span.end_ns.unwrap()).collect();
    assert!(ends.is_sorted(), "{operation:#?}");
    for span in &operation.spans {
        assert!(operation.begin_ns <= span.begin_ns, "{span:?} in {operation:#?}");
        assert!(
            span.begin_ns <= span.end_ns.unwrap() && span.end_ns.unwrap() <= end,
            "{span:?} in {operation:#?}"
        );
    }
}

/// From the boot to the end: each operation has its steps, and what is kept afterwards has all of it.
#[tokio::test]
async fn every_step_of_a_start_and_a_stop_is_recorded_in_order() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    let typed = Span::mark(Lane::Cli, "typed", 1);
    call(&handle, tell("create", false, vec![typed])).await.unwrap();
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    call(
        &handle,
        tell("start", true, vec![Span::mark(Lane::Hooks, "poststart", 2)]),
    )
    .await
    .unwrap();
    let before = shown(&handle).await;
    remove(&handle, "a").await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());

    assert_eq!(before.version, VERSION);
    let order: Vec<&str> = before.operations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(order, ["boot", "create", "start"]);

    let root = bench.paths("a").timelines;
    let after = read(&root.join("a")).unwrap().expect("kept at the end");
    let boot = one(&after, "boot");
    assert_eq!(
        names(boot),
        [
            (Lane::Supervisor, "look for a template"),
            (Lane::Supervisor, "make the cgroups"),
            (Lane::Supervisor, "prepare the host"),
            (Lane::Vmm, "start QEMU, until it answers"),
            (Lane::Fsd, "start the daemon"),
            (Lane::Vmm, "plug the share"),
            (Lane::Vmm, "let the processors go"),
            (Lane::Supervisor, "start the VM"),
            (Lane::Supervisor, "wait for the agent's hello"),
            (Lane::Supervisor, "configure the guest"),
            (Lane::Supervisor, "boot the guest"),
            (Lane::Supervisor, "save the state"),
        ]
    );
    let made = one(&after, "create");
    assert_eq!(made.container, Some(id("a")));
    assert_eq!(made.begin_ns, 1, "it began when its command was typed");
    assert_eq!(
        names(made),
        [
            (Lane::Cli, "typed"),
            (Lane::Supervisor, "bind the shares"),
            (Lane::Supervisor, "fit the VM's size"),
            (Lane::Supervisor, "create it in the guest"),
            (Lane::Supervisor, "save the state"),
        ]
    );
    assert_eq!(
        names(one(&after, "start")),
        [
            (Lane::Supervisor, "start it in the guest"),
            (Lane::Supervisor, "save the state"),
            (Lane::Hooks, "poststart"),
        ]
    );
    let deleted = one(&after, "delete");
    assert_eq!(
        names(deleted),
        [
            (Lane::Guest, "flush its file systems"),
            (Lane::Vmm, "end QEMU"),
            (Lane::Stub, "end the stubs"),
            (Lane::Supervisor, "detach the share"),
            (Lane::Supervisor, "undo: mount"),
            (Lane::Supervisor, "undo: process"),
            (Lane::Supervisor, "undo: mount"),
            (Lane::Supervisor, "undo: cgroup"),
            (Lane::Supervisor, "undo: directory"),
        ]
    );
    for sound in [boot, deleted] {
        assert_sound(sound);
    }
    bench.assert_nothing_left("a", "timeline");
}

/// A container that stops while its sandbox goes on: each of its steps, and the guest's own end of it.
#[tokio::test]
async fn a_stop_in_a_pod_and_the_end_of_a_process_are_recorded() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    create(&handle, "b", false).await.unwrap();
    call(&handle, Command::Start { id: id("b") }).await.unwrap();
    let signal = Command::Signal {
        key: key("b"),
        signal: 9,
        all: false,
    };
    call(&handle, signal).await.unwrap();
    call(&handle, Command::Wait { key: key("b") }).await.unwrap();
    call(
        &handle,
        Command::Delete {
            id: id("b"),
            force: false,
        },
    )
    .await
    .unwrap();
    let timeline = shown(&handle).await;
    assert_eq!(names(one(&timeline, "kill")), [(Lane::Guest, "signal 9")]);
    let exit = one(&timeline, "exit");
    assert_eq!(exit.container, Some(id("b")));
    assert_eq!(
        names(exit),
        [
            (Lane::Guest, "the process ended"),
            (Lane::Supervisor, "deliver its output")
        ]
    );
    let stopped: BTreeSet<&str> = one(&timeline, "delete")
        .spans
        .iter()
        .map(|span| span.name.as_str())
        .collect();
    assert!(stopped.contains("save the state"), "{stopped:?}");
    // What the supervisor did by itself meanwhile is no part of what was asked for next.
    assert!(
        one(&timeline, "delete").begin_ns >= exit.end_ns.unwrap(),
        "{timeline:#?}"
    );
    for operation in &timeline.operations {
        assert_sound(operation);
    }
    // Running when it is deleted: it is killed and taken apart.
    create(&handle, "c", false).await.unwrap();
    call(&handle, Command::Start { id: id("c") }).await.unwrap();
    remove(&handle, "c").await.unwrap();
    let timeline = shown(&handle).await;
    let deleted = timeline
        .operations
        .iter()
        .find(|one| one.name == "delete" && one.container == Some(id("c")))
        .unwrap();
    let stopped: Vec<&str> = deleted.spans.iter().map(|span| span.name.as_str()).collect();
    assert_eq!(
        stopped[..4],
        [
            "kill its processes",
            "remove it in the guest",
            "unbind its shares",
            "fit the VM's size"
        ]
    );
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    // It is found by the ids of all who were in it.
    let layout = bulkhead_sandbox::Layout::new(bench.dir.path());
    for of in ["a", "b", "c"] {
        let kept = timeline::find(&layout, &id(of)).unwrap().expect(of);
        assert_eq!(kept.operations.last().unwrap().name, "end");
    }
}

#[tokio::test]
async fn a_thousand_operations_stay_within_bounds() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    for _ in 0..500 {
        call(&handle, Command::Pause { id: id("a") }).await.unwrap();
        call(&handle, Command::Resume { id: id("a") }).await.unwrap();
    }
    for number in 0..100 {
        let spans = vec![Span::mark(Lane::Cli, "x", number); 2 * MOST_SPANS];
        call(&handle, tell("start", true, spans)).await.unwrap();
    }
    let timeline = shown(&handle).await;
    let order: Vec<&str> = timeline.operations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(order.len(), MOST_OPERATIONS);
    assert_eq!(order[..3], ["boot", "create", "start"]);
    assert_eq!(order.last(), Some(&"resume"));
    assert_eq!(timeline.forgotten, 1003 - MOST_OPERATIONS as u64);
    assert!(
        timeline
            .operations
            .iter()
            .all(|one| one.spans.len() <= MOST_SPANS)
    );
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
}

/// While a boot hangs the timeline says where; after its failure it is kept.
#[tokio::test]
async fn a_boot_that_hangs_shows_where() {
    let bench = Bench::new();
    bench.faults.hang_at(Some("launch"));
    let (handle, engine) = bench.sandbox("a");
    let hanging = loop {
        let timeline = shown(&handle).await;
        let open = timeline
            .operations
            .first()
            .map(|boot| boot.spans.clone())
            .unwrap_or_default();
        if open.iter().any(|span| span.lane == Lane::Vmm) {
            break open;
        }
        tokio::task::yield_now().await;
    };
    let open: Vec<&str> = hanging
        .iter()
        .filter(|span| span.end_ns.is_none())
        .map(|span| span.name.as_str())
        .collect();
    assert_eq!(open, ["start the VM", "start QEMU, until it answers"]);
    bench.faults.hang_at(None);
    handle.call(Command::Shutdown, Luggage::default()).await.unwrap();
    engine.await.unwrap();
    let kept = read(&bench.paths("a").timelines.join("a")).unwrap().unwrap();
    let boot = one(&kept, "boot");
    assert!(
        names(boot).contains(&(Lane::Supervisor, "undo: mount")),
        "{boot:#?}"
    );
    assert_sound(boot);
}

/// A supervisor that takes over goes on with what its predecessor wrote.
#[tokio::test]
async fn a_successor_goes_on_with_the_timeline() {
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let path = bench.paths("a").timeline();
    while read(&path)
        .unwrap()
        .is_none_or(|written| written.operations.len() != 2)
    {
        tokio::task::yield_now().await;
    }
    engine.abort();
    let _ = engine.await;
    let (handle, engine) = bench.successor("a").await;
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let timeline = shown(&handle).await;
    let order: Vec<&str> = timeline.operations.iter().map(|one| one.name.as_str()).collect();
    assert_eq!(order, ["boot", "create", "take over", "start"]);
    bench.guest.exit(key("a"), ExitStatus::Code(0));
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
}

/// Nothing depends on a timeline: where none can be written everything else works.
#[tokio::test]
async fn a_timeline_that_cannot_be_written_is_no_failure() {
    let bench = Bench::new();
    let paths = bench.paths("a");
    std::fs::create_dir_all(paths.timeline()).unwrap();
    std::fs::write(&paths.timelines, "in the way").unwrap();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    assert_eq!(shown(&handle).await.operations.len(), 3);
    remove(&handle, "a").await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());
    bench.assert_nothing_left("a", "unwritable timeline");
}

/// Every version that was written stays readable, and loses nothing.
#[test]
fn every_version_stays_readable() {
    for version in 1..=VERSION {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/golden/timeline-v{version}.json"));
        let timeline = read(&path).unwrap().unwrap();
        assert_eq!(timeline.version, version);
        let old: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(
            serde_json::to_value(&timeline).unwrap(),
            old,
            "add-only: give a new field a default and a golden file of its own version"
        );
    }
}
