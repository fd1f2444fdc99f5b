//! Spans and log lines (C-25), on fakes. Alone in its program: whether a span is wanted is decided for all threads at
//! once, and other tests want none.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::FailureKind;
use bulkhead_sandbox::Command;
use std::collections::BTreeMap;
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
