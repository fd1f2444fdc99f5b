//! A span that goes on.
//!
//! Owns: that it ends when it is dropped, however that comes. Never: what it is of. Called by everyone who records.

use super::recorder::Recorder;
use bulkhead_host::clock::boottime_ns;

/// Something under way: it ends when this is dropped.
#[must_use = "it ends when it is dropped"]
#[derive(Debug)]
pub struct Timing {
    pub(super) recorder: Recorder,
    pub(super) number: u64,
    pub(super) begin_ns: u64,
    pub(super) again: bool,
}

impl Drop for Timing {
    fn drop(&mut self) {
        let now = boottime_ns();
        let mut record = self.recorder.record();
        let Some(at) = record
            .under_way
            .iter()
            .position(|(number, _)| *number == self.number)
        else {
            return;
        };
        let (_, mut span) = record.under_way.remove(at);
        span.end_ns = Some(now.max(span.begin_ns));
        if self.again {
            record.push_again(span);
        } else {
            record.push(span);
        }
    }
}
