//! What a call did and how long that took, for the host's timeline.
//!
//! ```text
//!  during(call) ─► step("…") ─ dropped ─► step("…") ─ dropped ─► the call's answer and its steps
//! ```
//! A call runs on one thread from its beginning to its end, so its steps are that thread's. A step outside of a
//! call is not kept.
//!
//! Owns: the guest's clock and the steps of the calls under way. Never: what a step is. Called by `service` and by
//! those who do the work.

use bulkhead_protocol::api::agent::{Step, Steps};
use nix::time::{ClockId, clock_gettime};
use std::cell::RefCell;
use std::time::Duration;

/// Most steps of one call.
const MOST: usize = 64;

thread_local! {
    static CALL: RefCell<Option<Vec<Step>>> = const { RefCell::new(None) };
}

/// CLOCK_BOOTTIME in nanoseconds.
pub(crate) fn boottime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_nanos()).ok())
        .unwrap_or(0)
}

/// Runs a call and tells what it did; steps beyond the first 64 are left out.
pub(crate) fn during<T>(call: impl FnOnce() -> T) -> (T, Steps) {
    let received_ns = boottime_ns();
    CALL.with_borrow_mut(|steps| *steps = Some(Vec::new()));
    let result = call();
    let steps = CALL.with_borrow_mut(Option::take).unwrap_or_default();
    let steps = Steps {
        received_ns,
        answered_ns: boottime_ns(),
        steps,
        ..Steps::default()
    };
    (result, steps)
}

/// A step that ends when it is dropped.
#[must_use = "it ends when it is dropped"]
pub(crate) struct Timing {
    name: &'static str,
    begin_ns: u64,
}

/// Begins a step.
pub(crate) fn step(name: &'static str) -> Timing {
    Timing {
        name,
        begin_ns: boottime_ns(),
    }
}

impl Drop for Timing {
    fn drop(&mut self) {
        CALL.with_borrow_mut(|steps| {
            if let Some(steps) = steps.as_mut().filter(|steps| steps.len() < MOST) {
                steps.push(Step {
                    name: self.name.to_owned(),
                    begin_ns: self.begin_ns,
                    end_ns: boottime_ns(),
                    ..Step::default()
                });
            }
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn steps_of_a_call_are_in_its_time_and_in_order() {
        drop(step("before"));
        let (result, steps) = during(|| {
            {
                let _outer = step("outer");
                drop(step("inner"));
            }
            7
        });
        drop(step("after"));
        assert_eq!(result, 7);
        let names: Vec<&str> = steps.steps.iter().map(|step| step.name.as_str()).collect();
        assert_eq!(names, ["inner", "outer"]);
        let [inner, outer] = &steps.steps[..] else {
            panic!()
        };
        let times = [
            steps.received_ns,
            outer.begin_ns,
            inner.begin_ns,
            inner.end_ns,
            outer.end_ns,
            steps.answered_ns,
        ];
        assert!(times[0] > 0 && times.is_sorted(), "{times:?}");
        assert_eq!(during(|| ()).1.steps, []);
    }

    #[test]
    fn there_is_a_most() {
        let (_, steps) = during(|| (0..2 * MOST).for_each(|_| drop(step("x"))));
        assert_eq!(steps.steps.len(), MOST);
    }
}
