//! Recording.
//!
//! Owns: the one record that all clones share, and what each call means for it. Never: the bounds (see `record`). Called
//! by the engine and, beside it, by readers.

use super::record::{Record, add};
use super::timing::Timing;
use bulkhead_host::clock::boottime_ns;
use bulkhead_model::timeline::{Lane, Operation, Span, Timeline, Told};
use bulkhead_model::{ContainerId, ExecId, ProcessKey, SandboxId};
use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// Most words of clients, and ends of processes, that wait for their operation.
const MOST_WAITING: usize = 64;

/// The record of one sandbox; cheap to clone.
#[derive(Debug, Clone)]
pub struct Recorder(Arc<Mutex<Record>>);

fn is_of(told: &Told, name: &str, container: Option<&ContainerId>, exec: Option<&ExecId>) -> bool {
    told.operation == name && Some(&told.container) == container && told.exec.as_ref() == exec
}

impl Recorder {
    /// A record of nothing.
    #[must_use]
    pub fn new(sandbox: SandboxId) -> Self {
        Self(Arc::new(Mutex::new(Record {
            timeline: Timeline::new(sandbox),
            open: false,
            under_way: Vec::new(),
            next: 0,
            loose: Vec::new(),
            told: VecDeque::new(),
            exited: VecDeque::new(),
            changed: false,
        })))
    }

    pub(super) fn record(&self) -> MutexGuard<'_, Record> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Goes on where an earlier supervisor stopped: what it left unfinished stays so.
    pub(crate) fn go_on(&self, earlier: Timeline) {
        let mut record = self.record();
        if record.timeline.sandbox == earlier.sandbox && record.timeline.operations.is_empty() {
            record.timeline = earlier;
        }
    }

    /// Begins an operation, which ends the one before it. What was recorded since that one belongs to it, and what
    /// clients told of it.
    pub fn begin(&self, name: &str, container: Option<&ContainerId>, exec: Option<&ExecId>) {
        let now = boottime_ns();
        let mut record = self.record();
        record.end(now);
        let mut operation = Operation {
            name: name.to_owned(),
            container: container.cloned(),
            exec: exec.cloned(),
            begin_ns: now,
            end_ns: None,
            spans: Vec::new(),
            dropped: 0,
        };
        let (told, others): (VecDeque<Told>, _) = std::mem::take(&mut record.told)
            .into_iter()
            .partition(|told| is_of(told, name, container, exec));
        record.told = others;
        for span in told.into_iter().flat_map(|told| told.spans) {
            add(&mut operation, span);
        }
        for span in std::mem::take(&mut record.loose) {
            add(&mut operation, span);
        }
        record.add(operation);
        record.open = true;
    }

    /// Begins an operation of the whole sandbox unless one is under way.
    pub(crate) fn begin_unless_open(&self, name: &str) {
        let open = self.record().open;
        if !open {
            self.begin(name, None, None);
        }
    }

    /// Ends the operation under way. If there is none, what was recorded since the last one is of no operation and
    /// is forgotten.
    pub fn end(&self) {
        let mut record = self.record();
        if !record.open {
            record.loose.clear();
        }
        record.end(boottime_ns());
    }

    /// An operation that is over already.
    fn whole(&self, name: &str, key: &ProcessKey, spans: Vec<Span>) {
        let (Some(begin_ns), Some(end_ns)) = (
            spans.iter().map(|span| span.begin_ns).min(),
            spans.iter().filter_map(|span| span.end_ns).max(),
        ) else {
            return;
        };
        self.record().add(Operation {
            name: name.to_owned(),
            container: Some(key.container.clone()),
            exec: key.exec.clone(),
            begin_ns,
            end_ns: Some(end_ns),
            spans,
            dropped: 0,
        });
    }

    /// Something that begins now and ends when the answer is dropped.
    pub fn span(&self, lane: Lane, name: &str) -> Timing {
        self.timing(lane, name, false)
    }

    /// The same; one right after another of the same name counts as one that lasts longer.
    pub fn again(&self, lane: Lane, name: &str) -> Timing {
        self.timing(lane, name, true)
    }

    fn timing(&self, lane: Lane, name: &str, again: bool) -> Timing {
        let begin_ns = boottime_ns();
        let mut record = self.record();
        let number = record.next;
        record.next += 1;
        let span = Span {
            end_ns: None,
            ..Span::mark(lane, name, begin_ns)
        };
        record.under_way.push((number, span));
        Timing {
            recorder: self.clone(),
            number,
            begin_ns,
            again,
        }
    }

    /// Something that took until now.
    pub fn since(&self, lane: Lane, name: &str, begin_ns: u64) {
        self.record().push(Span::new(lane, name, begin_ns, boottime_ns()));
    }

    /// Runs `work`, which does not wait.
    pub fn during<T>(&self, lane: Lane, name: &str, work: impl FnOnce() -> T) -> T {
        let _timing = self.span(lane, name);
        work()
    }

    /// What a client measured, before it asks for the operation; with `late` of one that was carried out.
    pub fn told(&self, told: Told, late: bool) {
        let mut record = self.record();
        if !late {
            if record.told.len() == MOST_WAITING {
                record.told.pop_front();
            }
            record.told.push_back(told);
            return;
        }
        let operations = record.timeline.operations.iter_mut();
        let found = operations
            .rev()
            .find(|one| is_of(&told, &one.name, one.container.as_ref(), one.exec.as_ref()));
        if let Some(operation) = found {
            if operation.end_ns.is_some() {
                operation.end_ns = told
                    .spans
                    .iter()
                    .filter_map(|span| span.end_ns)
                    .max()
                    .max(operation.end_ns);
            }
            told.spans.into_iter().for_each(|span| add(operation, span));
            record.changed = true;
        }
    }

    /// A process ended in the guest.
    pub(crate) fn exited(&self, key: &ProcessKey) {
        let mut record = self.record();
        if record.exited.len() == MOST_WAITING {
            record.exited.pop_front();
        }
        record.exited.push_back((key.clone(), boottime_ns()));
    }

    /// All of its output was delivered: its end is an operation of its own.
    pub(crate) fn delivered(&self, key: &ProcessKey) {
        let now = boottime_ns();
        let at = {
            let mut record = self.record();
            let at = record.exited.iter().position(|(of, _)| of == key);
            at.and_then(|at| record.exited.remove(at))
        };
        if let Some((_, at)) = at {
            let spans = vec![
                Span::mark(Lane::Guest, "the process ended", at),
                Span::new(Lane::Supervisor, "deliver its output", at, now),
            ];
            self.whole("exit", key, spans);
        }
    }

    /// A signal was sent to a process.
    pub(crate) fn signalled(&self, key: &ProcessKey, signal: i32, begin_ns: u64) {
        let span = Span::new(Lane::Guest, format!("signal {signal}"), begin_ns, boottime_ns());
        self.whole("kill", key, vec![span]);
    }

    /// The present, with what goes on.
    #[must_use]
    pub fn timeline(&self) -> Timeline {
        let record = self.record();
        let mut timeline = record.timeline.clone();
        if let Some(operation) = timeline.operations.last_mut().filter(|_| record.open) {
            for (_, span) in &record.under_way {
                add(operation, span.clone());
            }
        }
        timeline
    }

    /// The present if it changed since the last time.
    #[must_use]
    pub fn changed(&self) -> Option<Timeline> {
        let changed = std::mem::take(&mut self.record().changed);
        changed.then(|| self.timeline())
    }
}

#[cfg(test)]
mod tests {
    use super::super::record::{MOST_OPERATIONS, MOST_SPANS};
    use super::*;

    fn recorder() -> Recorder {
        Recorder::new(SandboxId::new("s").unwrap())
    }

    fn id(text: &str) -> ContainerId {
        ContainerId::new(text).unwrap()
    }

    fn key(text: &str) -> ProcessKey {
        ProcessKey {
            container: id(text),
            exec: None,
        }
    }

    fn names(operation: &Operation) -> Vec<&str> {
        operation.spans.iter().map(|span| span.name.as_str()).collect()
    }

    fn told(operation: &str, at_ns: u64) -> Told {
        Told {
            operation: operation.into(),
            container: id("c"),
            exec: None,
            spans: vec![Span::mark(Lane::Cli, "typed", at_ns)],
        }
    }

    #[test]
    fn spans_belong_to_the_operation_they_happen_in() {
        let recorder = recorder();
        recorder.since(Lane::Supervisor, "set up", 1);
        recorder.begin("boot", None, None);
        {
            let _outer = recorder.span(Lane::Supervisor, "outer");
            drop(recorder.span(Lane::Vmm, "inner"));
        }
        recorder.begin("create", Some(&id("c")), None);
        recorder.end();
        let timeline = recorder.timeline();
        let [boot, create] = &timeline.operations[..] else {
            panic!("{timeline:?}")
        };
        assert_eq!(names(boot), ["set up", "inner", "outer"]);
        assert_eq!(boot.begin_ns, 1);
        assert!(boot.end_ns.unwrap() <= create.begin_ns);
        assert_eq!(names(create), [] as [&str; 0]);
    }

    #[test]
    fn what_goes_on_is_seen() {
        let recorder = recorder();
        recorder.begin("boot", None, None);
        let hello = recorder.span(Lane::Supervisor, "wait");
        let seen = recorder.timeline();
        assert_eq!(seen.operations[0].end_ns, None);
        assert_eq!(seen.operations[0].spans[0].end_ns, None);
        drop(hello);
        assert!(recorder.timeline().operations[0].spans[0].end_ns.is_some());
    }

    #[test]
    fn words_of_a_client_wait_for_their_operation() {
        let recorder = recorder();
        // All of them: containerd starts a shim, and the shim a stub.
        recorder.told(told("create", 7), false);
        recorder.told(told("create", 8), false);
        recorder.begin("boot", None, None);
        recorder.begin("create", Some(&id("c")), None);
        recorder.end();
        // Late words find the operation they belong to, and nothing else.
        recorder.told(told("create", u64::MAX), true);
        recorder.told(told("delete", 1), true);
        let timeline = recorder.timeline();
        assert_eq!(names(&timeline.operations[0]), [] as [&str; 0]);
        let create = &timeline.operations[1];
        assert_eq!(names(create), ["typed", "typed", "typed"]);
        assert_eq!((create.begin_ns, create.end_ns), (7, Some(u64::MAX)));
    }

    #[test]
    fn the_start_and_the_newest_operations_are_kept() {
        let recorder = recorder();
        for name in ["boot", "create", "start"] {
            recorder.begin(name, None, None);
        }
        for number in 0..100 {
            recorder.begin(&number.to_string(), None, None);
        }
        let timeline = recorder.timeline();
        let names: Vec<&str> = timeline.operations.iter().map(|one| one.name.as_str()).collect();
        assert_eq!(names.len(), MOST_OPERATIONS);
        assert_eq!(
            (&names[..4], names.last()),
            (&["boot", "create", "start", "71"][..], Some(&"99"))
        );
        assert_eq!(timeline.forgotten, 71);
    }

    #[test]
    fn spans_are_bounded_and_alike_ones_are_one() {
        let recorder = recorder();
        recorder.begin("end", None, None);
        for _ in 0..1000 {
            drop(recorder.again(Lane::Supervisor, "undo: mount"));
        }
        let first = recorder.timeline().operations.remove(0);
        assert_eq!((first.spans.len(), first.spans[0].count), (1, 1000));
        for _ in 0..1000 {
            drop(recorder.span(Lane::Supervisor, "x"));
        }
        let first = recorder.timeline().operations.remove(0);
        assert_eq!(
            (first.spans.len(), first.dropped),
            (MOST_SPANS, 1001 - MOST_SPANS as u32)
        );
    }

    #[test]
    fn the_end_of_a_process_does_not_end_what_goes_on() {
        let recorder = recorder();
        recorder.exited(&key("c"));
        recorder.begin("pause", Some(&id("c")), None);
        recorder.delivered(&key("c"));
        recorder.delivered(&key("other"));
        drop(recorder.span(Lane::Guest, "freeze"));
        let timeline = recorder.timeline();
        let [exit, pause] = &timeline.operations[..] else {
            panic!("{timeline:?}")
        };
        assert_eq!(names(exit), ["the process ended", "deliver its output"]);
        assert_eq!(names(pause), ["freeze"]);
        assert_eq!(pause.end_ns, None);
    }
}
