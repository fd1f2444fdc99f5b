//! What is seen of a sandbox from outside: status (C-05), spans and log lines (C-25), what is not shared (C-30),
//! facts for the agent (C-34), kills for want of memory.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::vm::SharedFs;
use bulkhead_model::{ContainerPlan, ExitStatus, FailureKind, oci};
use bulkhead_protocol::GuestEvent;
use bulkhead_sandbox::{Command, Reply, SavedSandbox};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use support::*;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id, Record};
use tracing::{Event, Subscriber};
use tracing_subscriber::Layer;
use tracing_subscriber::layer::{Context, SubscriberExt};
use tracing_subscriber::registry::LookupSpan;

type Fields = BTreeMap<String, String>;

/// Keeps every span, and every event with the fields of the span it was in.
#[derive(Default, Clone)]
struct Recorder {
    spans: Arc<Mutex<Vec<(u64, Fields)>>>,
    events: Arc<Mutex<Vec<(Fields, Fields)>>>,
}

struct Reader<'a>(&'a mut Fields);

impl Visit for Reader<'_> {
    fn record_debug(&mut self, field: &Field, value: &dyn std::fmt::Debug) {
        let text = format!("{value:?}").trim_matches('"').to_owned();
        self.0.insert(field.name().to_owned(), text);
    }
}

impl Recorder {
    fn of(&self, id: u64) -> Fields {
        let spans = self.spans.lock().unwrap();
        let found = spans.iter().rev().find(|(known, _)| *known == id);
        found.map(|(_, fields)| fields.clone()).unwrap_or_default()
    }

    /// Spans of an operation.
    fn named(&self, operation: &str) -> Vec<Fields> {
        let spans = self.spans.lock().unwrap();
        let all = spans.iter().map(|(_, fields)| fields.clone());
        all.filter(|fields| fields.get("operation").is_some_and(|is| is == operation))
            .collect()
    }
}

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Recorder {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, _: Context<'_, S>) {
        let mut fields = Fields::new();
        attributes.record(&mut Reader(&mut fields));
        self.spans.lock().unwrap().push((id.into_u64(), fields));
    }

    fn on_record(&self, id: &Id, values: &Record<'_>, _: Context<'_, S>) {
        let mut spans = self.spans.lock().unwrap();
        let found = spans.iter_mut().rev().find(|(known, _)| *known == id.into_u64());
        values.record(&mut Reader(&mut found.unwrap().1));
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut fields = Fields::new();
        event.record(&mut Reader(&mut fields));
        let span = context
            .event_span(event)
            .map(|span| self.of(span.id().into_u64()));
        self.events
            .lock()
            .unwrap()
            .push((fields, span.unwrap_or_default()));
    }
}

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

/// C-25: every operation has a span with all fields, a failure is recorded on it, and lines logged during it have
/// the fields too.
#[tokio::test]
async fn c25_every_operation_has_its_span() {
    let recorder = Recorder::default();
    let subscriber = tracing_subscriber::registry().with(recorder.clone());
    let _guard = tracing::subscriber::set_default(subscriber);
    let bench = Bench::new();
    let (handle, engine) = bench.sandbox("a");
    create(&handle, "a", true).await.unwrap();
    let plan = Box::new(container_plan("b", false));
    call(&handle, Command::Create { plan }).await.unwrap();
    for command in [
        Command::Start { id: id("b") },
        Command::Pause { id: id("b") },
        Command::Resume { id: id("b") },
        Command::Update {
            id: id("b"),
            resources: Box::default(),
        },
        Command::Stats { id: id("b") },
        Command::Processes { id: id("b") },
        Command::Stop {
            id: id("b"),
            patience_ms: 1,
        },
        Command::Delete {
            id: id("b"),
            force: false,
        },
    ] {
        call(&handle, command).await.unwrap();
    }
    let operations = [
        "create",
        "start",
        "pause",
        "resume",
        "update",
        "stats",
        "processes",
        "stop",
        "delete",
        "bind",
    ];
    for operation in operations {
        let spans = recorder.named(operation);
        let ours = spans
            .iter()
            .find(|span| span.get("container").is_some_and(|is| is == "b"));
        let ours = ours.unwrap_or_else(|| panic!("{operation}: {spans:?}"));
        assert_eq!(ours["source"], "bulkhead", "{operation}");
        assert_eq!(ours["package"], "bulkhead-sandbox", "{operation}");
        assert_eq!(ours["sandbox"], "a", "{operation}");
        assert!(!ours["subsystem"].is_empty(), "{operation}");
        assert!(!ours.contains_key("error"), "{operation}: {ours:?}");
    }
    assert_eq!(recorder.named("boot").len(), 1);
    let bound: Vec<_> = recorder
        .named("bind")
        .iter()
        .map(|span| span["host_path"].clone())
        .collect();
    assert!(bound.contains(&"/data".to_owned()), "{bound:?}");

    // A failure of a verb, and of a step on a path.
    bench.faults.fail_at_name("bind");
    let plan = Box::new(container_plan("c", false));
    call(&handle, Command::Create { plan }).await.unwrap_err();
    let failed = |operation: &str| {
        let spans = recorder.named(operation);
        let error = spans.iter().rev().find_map(|span| span.get("error").cloned());
        error.unwrap_or_else(|| panic!("{operation}: {spans:?}"))
    };
    assert!(failed("bind").contains("injected into bind"));
    assert!(failed("create").contains("injected into bind"));
    let refused = Command::Stats { id: id("nobody") };
    assert_eq!(
        call(&handle, refused).await.unwrap_err().kind,
        FailureKind::NotFound
    );
    assert!(failed("stats").contains("nobody"));
    let logged = recorder.events.lock().unwrap().clone();
    let line = logged.iter().find(|(event, span)| {
        event.contains_key("error") && span.get("operation").is_some_and(|is| is == "create")
    });
    let (_, span) = line.expect("a line about the failed create");
    assert_eq!((span["sandbox"].as_str(), span["container"].as_str()), ("a", "c"));

    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    // Between verbs too: no line of the engine is without its sandbox.
    let logged = recorder.events.lock().unwrap().clone();
    assert!(logged.len() > 5, "{logged:?}");
    for (event, span) in logged {
        assert_eq!(span.get("sandbox").map(String::as_str), Some("a"), "{event:?}");
    }
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
