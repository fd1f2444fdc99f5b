//! What is seen of a sandbox from outside: status (C-05), what is not shared (C-30), facts for the agent (C-34), kills for want of memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::vm::SharedFs;
use bulkhead_model::{ContainerPlan, ExitStatus, oci};
use bulkhead_protocol::GuestEvent;
use bulkhead_sandbox::{Command, Reply, SavedSandbox};
use std::path::{Path, PathBuf};
use support::*;

fn bind(source: &Path, destination: &str) -> oci::Mount {
    let mut mount = oci::Mount::default();
    mount
        .set_source(Some(source.to_owned()))
        .set_destination(destination.into())
        .set_typ(Some("bind".into()));
    mount
}

fn with_mounts(name: &str, mounts: Vec<oci::Mount>) -> ContainerPlan {
    let mut plan = container_plan(name, name == "a");
    plan.spec.set_mounts(Some(mounts));
    plan
}

/// C-05, C-07: the spec in a status is what the agent got; a status without one says so. Clients get statuses
/// without, as specs are large.
#[tokio::test]
async fn c05_c07_the_spec_in_a_status() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let status = handle.snapshot().containers[&id("a")].clone();
    let sent = bench.guest.specs.lock().unwrap()[0].clone();
    let shown = serde_json::to_value(status.spec().unwrap()).unwrap();
    assert_eq!(shown["mounts"], sent["mounts"]);
    assert_ne!(status.spec().unwrap(), &container_plan("a", true).spec);
    let Reply::Snapshot { snapshot } = call(&handle, Command::Snapshot).await.unwrap() else {
        panic!("no snapshot")
    };
    let error = snapshot.containers[&id("a")].spec().unwrap_err();
    assert!(error.to_string().contains("container a has no spec"), "{error}");
    let Reply::Tree { tree } = call(&handle, Command::Inspect).await.unwrap() else {
        panic!("no tree")
    };
    assert_eq!(tree["containers"]["a"]["spec"]["mounts"], sent["mounts"]);
    // Saved with it, so that a dead sandbox's status has it too.
    let saved = SavedSandbox::read(&bench.paths("a").state()).unwrap();
    assert!(saved.dead_snapshot().containers[&id("a")].spec().is_ok());
    call(&handle, Command::Shutdown).await.unwrap();
}

/// C-30: what cannot be shared is left out, remembered with the container and shown.
#[tokio::test]
async fn c30_what_is_not_shared_is_remembered() {
    let bench = Bench::new();
    let mut plan = sandbox_plan("a");
    plan.vm.shared_fs = SharedFs::None;
    let mut world = bench.booted(plan).await;
    let mounts = vec![
        bind(Path::new("/data"), "/mnt"),
        bind(Path::new("/more"), "/more"),
        bind(Path::new("/proc/version"), "/version"),
    ];
    world.create(with_mounts("a", mounts), None).await.unwrap();
    let ignored = [PathBuf::from("/data"), PathBuf::from("/more")];
    assert_eq!(world.container(&id("a")).unwrap().snapshot().ignored, ignored);
    let saved = SavedSandbox::read(&bench.paths("a").state()).unwrap();
    assert_eq!(saved.containers[&id("a")].ignored, ignored);
    assert_eq!(saved.dead_snapshot().containers[&id("a")].ignored, ignored);
    let sent = bench.guest.specs.lock().unwrap()[0]["mounts"].clone();
    let destinations: Vec<_> = sent
        .as_array()
        .unwrap()
        .iter()
        .map(|m| m["destination"].clone())
        .collect();
    assert_eq!(destinations, ["/version"]);
    assert_eq!(world.tear_down().await, Vec::<String>::new());
}

/// C-34: the agent is told whether the whole of /dev is bound.
#[tokio::test]
async fn c34_the_agent_is_told_of_dev() {
    for (source, destination, told) in [
        ("/dev", "/dev", true),
        ("/dev", "/host/dev", false),
        ("/data", "/mnt", false),
    ] {
        let bench = Bench::new();
        let mut world = bench.booted(sandbox_plan("a")).await;
        let mounts = vec![bind(Path::new(source), destination)];
        world.create(with_mounts("a", mounts), None).await.unwrap();
        let made = bench.ledger.containers_made.lock().unwrap()[0].clone();
        assert_eq!(made.whole_dev, told, "{source} at {destination}");
        assert_eq!(world.tear_down().await, Vec::<String>::new());
    }
}

/// A kill for want of memory is told to whoever watches, once, however often the guest tells it; the end of the
/// container's own process tells of kills whose event never came.
#[tokio::test]
async fn kills_for_want_of_memory_are_told_once() {
    let bench = Bench::new();
    let (handle, _engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let watch = |known| {
        let handle = handle.clone();
        async move {
            let command = Command::Watch {
                id: id("a"),
                out_of_memory: known,
            };
            match call(&handle, command).await.unwrap() {
                Reply::Happened { out_of_memory, ended } => (out_of_memory, ended),
                other => panic!("{other:?}"),
            }
        }
    };
    let kill = |kills| GuestEvent::OutOfMemory {
        container: "a".into(),
        kills,
    };
    let waiting = tokio::spawn(watch(0));
    tokio::task::yield_now().await;
    bench.guest.events.send_replace(vec![kill(1), kill(1)]);
    assert_eq!(waiting.await.unwrap(), (1, false));
    let waiting = tokio::spawn(watch(1));
    tokio::task::yield_now().await;
    *bench.guest.kills.lock().unwrap() = 3;
    bench.guest.exit(key("a"), ExitStatus::Signal(9));
    assert_eq!(waiting.await.unwrap(), (3, true));
    let saved = SavedSandbox::read(&bench.paths("a").state()).unwrap();
    assert_eq!(saved.containers[&id("a")].out_of_memory, 3);
    call(&handle, Command::Shutdown).await.unwrap();
}
