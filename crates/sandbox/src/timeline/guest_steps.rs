//! What the guest measured, among the spans of the host.
//!
//! Owns: where its steps are placed and what is shown of its start; none of it is believed beyond the call it came with.
//! Never: a clock of the guest's (see `guest_clock`). Called by the engine with each answer of the guest.

use super::guest_clock::Offset;
use super::recorder::Recorder;
use super::timing::Timing;
use bulkhead_host::clock::boottime_ns;
use bulkhead_model::timeline::{Lane, Span};
use bulkhead_protocol::{GuestHello, GuestSteps};

/// Most steps of one answer of a guest, and characters of the name of one.
const MOST_STEPS: usize = 64;

/// The span that ends when the guest's processors run.
pub const CPUS_GO: &str = "let the processors go";

impl Recorder {
    /// A call into the guest was answered: what the guest did during `call`, on the host's clock. Each answer gives
    /// its own offset between the clocks, so a guest whose clock drifts is shown where it was.
    pub fn answered(&self, call: Timing, steps: Option<GuestSteps>) {
        if let Some(steps) = steps {
            self.place(&call, &steps);
        }
    }

    /// The same for the first call of a guest: the kernel's and the agent's own start are known from then on. A guest
    /// that was restored has started long before its processors ran here, so there is nothing to show.
    pub(crate) fn came_up(&self, call: Timing, steps: Option<GuestSteps>, hello: &GuestHello) {
        let Some(steps) = steps else { return };
        let offset = self.place(&call, &steps);
        let mut record = self.record();
        let operation = record.timeline.operations.last().filter(|_| record.open);
        let cpus_go = operation.and_then(|one| one.spans.iter().rev().find(|span| span.name == CPUS_GO));
        let Some(cpus_go) = cpus_go.map(|span| span.begin_ns) else {
            return;
        };
        let (init, ready) = (
            offset.on_host(hello.init_boottime_ns),
            offset.on_host(hello.ready_boottime_ns),
        );
        if hello.init_boottime_ns == 0 || init < cpus_go {
            return;
        }
        record.push(Span::new(
            Lane::Guest,
            "kernel, until its first process",
            cpus_go,
            init,
        ));
        record.push(Span::new(Lane::Guest, "agent comes up", init, ready));
    }

    fn place(&self, call: &Timing, steps: &GuestSteps) -> Offset {
        let now = boottime_ns();
        let offset = Offset::of(call.begin_ns, steps, now);
        let within = |guest_ns: u64| offset.on_host(guest_ns).clamp(call.begin_ns, now);
        let mut record = self.record();
        for step in steps.steps.iter().take(MOST_STEPS) {
            record.push_again(Span::new(
                Lane::Guest,
                printable(&step.name),
                within(step.begin_ns),
                within(step.end_ns),
            ));
        }
        let worst = record.timeline.guest_error_ns.max(Some(offset.error_ns));
        record.timeline.guest_error_ns = worst;
        offset
    }
}

/// The guest's words are shown to people: no escapes, and not too many.
fn printable(name: &str) -> String {
    name.chars()
        .filter(|letter| !letter.is_control())
        .take(MOST_STEPS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::SandboxId;
    use bulkhead_protocol::GuestStep;

    /// A guest whose clock began when its processors ran, 1 ms after the host let them go.
    #[test]
    fn the_guests_start_is_shown_on_the_hosts_clock() {
        let recorder = Recorder::new(SandboxId::new("s").unwrap());
        recorder.begin("boot", None, None);
        let go = recorder.span(Lane::Vmm, CPUS_GO);
        let zero = go.begin_ns;
        drop(go);
        while boottime_ns() < zero + 9_000_000 {
            std::thread::yield_now();
        }
        let call = recorder.span(Lane::Supervisor, "configure the guest");
        let received_ns = call.begin_ns - zero;
        let answered_ns = boottime_ns() - zero;
        let step = |begin_ns, end_ns| GuestStep {
            name: "mo\x1bunt".into(),
            begin_ns,
            end_ns,
        };
        let steps = GuestSteps {
            received_ns,
            answered_ns,
            steps: vec![step(received_ns, answered_ns), step(0, u64::MAX)],
        };
        let hello = GuestHello {
            init_boottime_ns: 4_000_000,
            ready_boottime_ns: 6_000_000,
            ..GuestHello::default()
        };
        recorder.came_up(call, Some(steps.clone()), &hello);
        let timeline = recorder.timeline();
        let error = timeline.guest_error_ns.unwrap();
        let spans = &timeline.operations[0].spans;
        let of = |name: &str| spans.iter().find(|span| span.name.starts_with(name)).unwrap();
        let near =
            |seen: u64, wanted: u64| assert!(seen.abs_diff(wanted) <= error, "{seen} {wanted} {error}");
        near(of("kernel").end_ns.unwrap(), zero + 4_000_000);
        near(of("agent").end_ns.unwrap(), zero + 6_000_000);
        assert_eq!(of("kernel").begin_ns, zero);
        // A step never leaves its call, whatever the guest says.
        let (step, call) = (of("mount"), of("configure"));
        assert!(
            call.begin_ns <= step.begin_ns && step.end_ns <= call.end_ns,
            "{step:?} {call:?}"
        );
        assert_eq!(step.count, 2);

        // Restored: its kernel started before its processors ran here.
        let late = recorder.span(Lane::Supervisor, "configure the guest");
        let old = GuestSteps {
            received_ns: received_ns + 1_000_000_000_000,
            answered_ns: answered_ns + 1_000_000_000_000,
            steps: Vec::new(),
        };
        recorder.came_up(late, Some(old), &hello);
        let spans = &recorder.timeline().operations[0].spans;
        assert_eq!(
            spans
                .iter()
                .filter(|span| span.name.starts_with("kernel"))
                .count(),
            1
        );
    }
}
