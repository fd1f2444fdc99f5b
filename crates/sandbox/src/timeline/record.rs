//! What is recorded of one sandbox.
//!
//! Owns: its bounds, and which operation a span belongs to. Never: a clock, or a lock. Called by `recorder`, `timing` and
//! `guest_steps`.

use bulkhead_model::ProcessKey;
use bulkhead_model::timeline::{Operation, Span, Timeline, Told};
use std::collections::VecDeque;

/// Most operations that are kept.
pub const MOST_OPERATIONS: usize = 32;

/// The first ones, boot, create and start of its first container, are kept for good.
const KEPT_FIRST: usize = 3;

/// Most spans of one operation, and of what waits for one.
pub const MOST_SPANS: usize = 256;

#[derive(Debug)]
pub(super) struct Record {
    pub(super) timeline: Timeline,
    /// The last operation goes on.
    pub(super) open: bool,
    /// What goes on, by number, and whether it adds to one like it.
    pub(super) under_way: Vec<(u64, Span)>,
    pub(super) next: u64,
    /// For the next operation.
    pub(super) loose: Vec<Span>,
    pub(super) told: VecDeque<Told>,
    pub(super) exited: VecDeque<(ProcessKey, u64)>,
    pub(super) changed: bool,
}

impl Record {
    pub(super) fn push(&mut self, span: Span) {
        if !self.open {
            if self.loose.len() < MOST_SPANS {
                self.loose.push(span);
            }
            return;
        }
        if let Some(operation) = self.timeline.operations.last_mut() {
            add(operation, span);
        }
    }

    /// Makes one of a span and the one before it if they are alike.
    pub(super) fn push_again(&mut self, span: Span) {
        let last = self.timeline.operations.last_mut().filter(|_| self.open);
        match last.and_then(|operation| operation.spans.last_mut()) {
            Some(last) if (last.lane, &last.name) == (span.lane, &span.name) => {
                last.end_ns = last.end_ns.max(span.end_ns);
                last.count = last.count.saturating_add(1);
            }
            _ => self.push(span),
        }
    }

    pub(super) fn end(&mut self, now: u64) {
        if std::mem::take(&mut self.open)
            && let Some(operation) = self.timeline.operations.last_mut()
        {
            operation.end_ns = Some(now);
            self.changed = true;
        }
    }

    /// Adds an operation; one that goes on stays the last.
    pub(super) fn add(&mut self, operation: Operation) {
        let operations = &mut self.timeline.operations;
        let at = operations.len() - usize::from(self.open && operation.end_ns.is_some());
        operations.insert(at, operation);
        if operations.len() > MOST_OPERATIONS {
            operations.remove(KEPT_FIRST);
            self.timeline.forgotten += 1;
        }
        self.changed = true;
    }
}

pub(super) fn add(operation: &mut Operation, span: Span) {
    operation.begin_ns = operation.begin_ns.min(span.begin_ns);
    if operation.spans.len() < MOST_SPANS {
        operation.spans.push(span);
    } else {
        operation.dropped = operation.dropped.saturating_add(1);
    }
}
