//! What the host is told without having asked: log lines and out-of-memory kills.
//!
//! Owns: a ring of the last events, numbered without gaps. Never: blocks whoever adds one.

use bulkhead_protocol::api::agent::{Event, LogLine, OutOfMemory, event};
use std::collections::VecDeque;
use std::sync::{Mutex, PoisonError};
use std::time::{SystemTime, UNIX_EPOCH};
use tokio::sync::Notify;

/// Most events that are kept.
const CAPACITY: usize = 1024;
/// Most events of one answer.
const BATCH: usize = 128;

#[derive(Debug, Default)]
struct Ring {
    events: VecDeque<Event>,
    last: u64,
}

/// The ring.
#[derive(Debug, Default)]
pub(crate) struct Events {
    ring: Mutex<Ring>,
    added: Notify,
}

impl Events {
    fn push(&self, kind: event::Kind) {
        {
            let mut ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
            ring.last += 1;
            let event = Event {
                sequence: ring.last,
                kind: Some(kind),
                ..Event::default()
            };
            if ring.events.len() == CAPACITY {
                ring.events.pop_front();
            }
            ring.events.push_back(event);
        }
        self.added.notify_waiters();
    }

    /// Adds a log line; warnings and errors also go to the console.
    pub(crate) fn log(&self, level: &'static str, message: impl Into<String>) {
        let message = message.into();
        if matches!(level, "warn" | "error") {
            eprintln!("bulkhead-agent: {level}: {message}");
        }
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        self.push(event::Kind::Log(LogLine {
            level: level.to_owned(),
            message,
            time_ns: u64::try_from(time.as_nanos()).unwrap_or(u64::MAX),
            ..LogLine::default()
        }));
    }

    /// Adds an out-of-memory kill, the one that makes it `kills` in this container.
    pub(crate) fn out_of_memory(&self, container: &str, kills: u64) {
        self.push(event::Kind::OutOfMemory(OutOfMemory {
            container: container.to_owned(),
            kills,
            ..OutOfMemory::default()
        }));
    }

    fn after(&self, sequence: u64) -> Vec<Event> {
        let ring = self.ring.lock().unwrap_or_else(PoisonError::into_inner);
        ring.events
            .iter()
            .filter(|event| event.sequence > sequence)
            .take(BATCH)
            .cloned()
            .collect()
    }

    /// The next events after number `sequence`; waits until there is one.
    pub(crate) async fn next(&self, sequence: u64) -> Vec<Event> {
        loop {
            let added = self.added.notified();
            tokio::pin!(added);
            // Registered before looking, so an event in between is not missed.
            added.as_mut().enable();
            let events = self.after(sequence);
            if !events.is_empty() {
                return events;
            }
            added.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn events_are_numbered_and_the_oldest_go() {
        let events = Events::default();
        for _ in 0..CAPACITY + 10 {
            events.log("info", "x");
        }
        let first = events.next(0).await;
        assert_eq!(first[0].sequence, 11);
        assert_eq!(first.len(), BATCH);
        let last = events.next(CAPACITY as u64 + 9).await;
        assert_eq!(last.len(), 1);
    }

    #[tokio::test]
    async fn a_waiter_is_woken() {
        let events = std::sync::Arc::new(Events::default());
        let waiting = tokio::spawn({
            let events = events.clone();
            async move { events.next(0).await }
        });
        tokio::task::yield_now().await;
        events.out_of_memory("c", 1);
        assert_eq!(waiting.await.unwrap()[0].sequence, 1);
    }
}
