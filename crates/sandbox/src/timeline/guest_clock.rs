//! From the guest's clock to the host's.
//!
//! ```text
//!  host   sent ────────────────────────── now        sent  ≤ received + offset
//!  guest        received ──── answered               answered + offset ≤ now
//! ```
//! The offset lies between `sent − received` and `now − answered`; the middle is taken, and half of the distance,
//! which is half of what the two ways took, is the most it can be wrong by.
//!
//! Owns: that sum. Never: a clock.

use bulkhead_protocol::GuestSteps;

/// What to add to a time of the guest.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Offset {
    add_ns: i128,
    /// At most this wrong.
    pub(super) error_ns: u64,
}

impl Offset {
    /// From one call, sent at `sent_ns` and answered at `now_ns` of the host.
    pub(super) fn of(sent_ns: u64, steps: &GuestSteps, now_ns: u64) -> Self {
        let least = i128::from(sent_ns) - i128::from(steps.received_ns);
        let most = i128::from(now_ns) - i128::from(steps.answered_ns);
        let error = (most - least).unsigned_abs().div_ceil(2);
        Self {
            add_ns: (least + most).div_euclid(2),
            error_ns: u64::try_from(error).unwrap_or(u64::MAX),
        }
    }

    /// A time of the guest on the host's clock.
    pub(super) fn on_host(self, guest_ns: u64) -> u64 {
        u64::try_from((i128::from(guest_ns) + self.add_ns).max(0)).unwrap_or(u64::MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_truth_is_within_the_error() {
        // The guest's zero is the host's 1000; one way takes 30, the other 10.
        let steps = GuestSteps {
            received_ns: 530,
            answered_ns: 900,
            steps: Vec::new(),
        };
        let offset = Offset::of(1500, &steps, 1910);
        assert_eq!(offset.error_ns, 20);
        assert!(offset.on_host(700).abs_diff(1700) <= offset.error_ns);
        assert_eq!(offset.on_host(u64::MAX), u64::MAX);
    }

    #[test]
    fn a_guest_that_talks_nonsense_is_no_trouble() {
        let steps = GuestSteps {
            received_ns: u64::MAX,
            answered_ns: 0,
            steps: Vec::new(),
        };
        let offset = Offset::of(5, &steps, 6);
        assert!(offset.error_ns > 1 << 62);
        let _ = (offset.on_host(0), offset.on_host(u64::MAX));
    }
}
