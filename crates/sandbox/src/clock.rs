//! How right a guest's clock is after a call that set it.
//!
//! Owns: what of such a call counts. Never: the call. Called by `meet`.

use bulkhead_protocol::GuestSteps;

/// The agent's name for setting the clock.
const STEP: &str = "set the clock";

/// The guest's clock may be wrong by this many nanoseconds.
pub(crate) const WITHIN_NS: u64 = 10_000_000;

/// How often it is set, at most, until it is not.
pub(crate) const TRIES: u32 = 4;

/// What a call went on for after it had set the guest's clock, in nanoseconds; 0 if it does not say.
pub(crate) fn since_set(steps: &GuestSteps) -> u64 {
    let set = steps.steps.iter().find(|step| step.name == STEP);
    set.map_or(0, |set| steps.answered_ns.saturating_sub(set.end_ns))
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_protocol::GuestStep;

    #[test]
    fn what_follows_the_clock_does_not_count_against_it() {
        let step = |name: &str, begin_ns, end_ns| GuestStep {
            name: name.to_owned(),
            begin_ns,
            end_ns,
        };
        let mut steps = GuestSteps {
            received_ns: 100,
            answered_ns: 900,
            steps: vec![step(STEP, 110, 120), step("mount what is shared", 130, 880)],
        };
        assert_eq!(since_set(&steps), 780);
        steps.steps.remove(0);
        assert_eq!(since_set(&steps), 0, "an agent that does not say");
    }
}
