//! The clock all of a host's processes share: CLOCK_BOOTTIME.
//!
//! Owns: reading it. Never: the wall clock, which jumps.

use crate::process::start_time;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::{SysconfVar, sysconf};
use std::time::Duration;

const NS_PER_S: u64 = 1_000_000_000;

/// Nanoseconds since the host booted, time asleep included; 0 if there is no such clock.
#[must_use]
pub fn boottime_ns() -> u64 {
    clock_gettime(ClockId::CLOCK_BOOTTIME)
        .ok()
        .and_then(|now| u64::try_from(Duration::from(now).as_nanos()).ok())
        .unwrap_or(0)
}

/// When this process was started, on the same clock, at most one clock tick (10 ms as Linux is built) too early.
/// `None` without /proc.
#[must_use]
pub fn process_began_ns() -> Option<u64> {
    let ticks = start_time(nix::unistd::getpid().as_raw()).ok()??;
    let per_s = u64::try_from(sysconf(SysconfVar::CLK_TCK).ok()??).ok()?;
    ticks.checked_mul(NS_PER_S)?.checked_div(per_s)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_goes_on_from_the_start_of_this_process() {
        let began = process_began_ns().unwrap();
        let first = boottime_ns();
        let second = boottime_ns();
        assert!(began <= first && first <= second, "{began} {first} {second}");
        // A test binary is not days old.
        assert!(first - began < 3600 * NS_PER_S, "{began} {first}");
    }
}
