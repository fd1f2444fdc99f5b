//! What this process measures of its own work, for the sandbox's timeline.
//!
//! ```text
//!  process began ─► span … span ─► tell (with the command that follows, no round trip) ─► span … ─► tell, late
//! ```
//! Owns: the spans that were not told yet. Never: fails: a timeline is worth no verb. Called by verbs.

use bulkhead_host::clock::{boottime_ns, process_began_ns};
use bulkhead_model::ProcessKey;
use bulkhead_model::timeline::{Lane, Span, Told};
use bulkhead_shim::Client;
use std::sync::{Arc, Mutex, PoisonError};

/// The spans; clones share them.
#[derive(Debug, Clone, Default)]
pub(crate) struct Stopwatch(Arc<Mutex<Vec<Span>>>);

impl Stopwatch {
    /// One that has measured how long this process took until now. When it began is known to a clock tick only
    /// (10 ms), so that may be as much too long.
    #[must_use]
    pub(crate) fn from_process_start() -> Self {
        let watch = Self::default();
        let now = boottime_ns();
        let began = process_began_ns().unwrap_or(now);
        watch.add(Span::new(Lane::Cli, "start the program", began, now));
        watch
    }

    fn add(&self, span: Span) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(span);
    }

    /// Runs `work` and measures it.
    pub(crate) fn time<T>(&self, lane: Lane, name: &str, work: impl FnOnce() -> T) -> T {
        let began = boottime_ns();
        let result = work();
        self.since(lane, name, began);
        result
    }

    /// Something that took from `began_ns` until now.
    pub(crate) fn since(&self, lane: Lane, name: &str, began_ns: u64) {
        self.add(Span::new(lane, name, began_ns, boottime_ns()));
    }

    /// Tells the supervisor what was measured since the last time: of `operation`, which is asked for next or, `late`,
    /// has been carried out. Nothing is said when nothing was measured.
    pub(crate) fn tell(&self, client: &mut Client, operation: &str, key: &ProcessKey, late: bool) {
        let spans = std::mem::take(&mut *self.0.lock().unwrap_or_else(PoisonError::into_inner));
        if spans.is_empty() {
            return;
        }
        let told = Told {
            operation: operation.to_owned(),
            container: key.container.clone(),
            exec: key.exec.clone(),
            spans,
        };
        client.tell(told, late);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::ContainerId;
    use bulkhead_sandbox::Command;
    use std::io::Read;
    use std::os::unix::net::UnixStream;

    #[test]
    fn what_was_measured_is_told_once() {
        let (ours, mut theirs) = UnixStream::pair().unwrap();
        let mut client = Client::from_stream(ours);
        let watch = Stopwatch::from_process_start();
        assert_eq!(watch.clone().time(Lane::Stub, "work", || 7), 7);
        let key = ProcessKey {
            container: ContainerId::new("c").unwrap(),
            exec: None,
        };
        watch.tell(&mut client, "create", &key, false);
        watch.tell(&mut client, "create", &key, true);
        drop(client);
        let mut bytes = Vec::new();
        theirs.read_to_end(&mut bytes).unwrap();
        // A message is a length of four bytes and JSON; the second time there was nothing to say.
        let Command::Tell { told, late } = serde_json::from_slice(&bytes[4..]).unwrap() else {
            panic!("another command")
        };
        assert!(!late && told.operation == "create" && told.container == key.container);
        let names: Vec<(Lane, &str)> = told
            .spans
            .iter()
            .map(|span| (span.lane, span.name.as_str()))
            .collect();
        assert_eq!(names, [(Lane::Cli, "start the program"), (Lane::Stub, "work")]);
        assert!(told.spans.is_sorted_by_key(|span| span.begin_ns));
    }
}
