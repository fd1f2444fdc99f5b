//! The rate of the processor's time-stamp counter.
//!
//! Owns: one measurement. Never: keeps it (see `vmm::probe`). A translated guest that is told the rate need
//! not measure it against emulated timers at boot.

use std::time::{Duration, Instant};

/// Long enough that a few microseconds of jitter stay below 0.1 %.
const WINDOW: Duration = Duration::from_millis(8);

/// Rate in kHz, rounded to whole MHz so that it is the same on every measurement of one host; `None` on
/// processors without such a counter, or when the measurement makes no sense. Takes 8 ms.
#[must_use]
pub fn khz() -> Option<u32> {
    let (ticks, begin) = sample()?;
    std::thread::sleep(WINDOW);
    let (later, end) = sample()?;
    let micros = u64::try_from((end - begin).as_micros())
        .ok()
        .filter(|micros| *micros > 0)?;
    // Ticks in a microsecond are MHz.
    let mhz = (later.checked_sub(ticks)? + micros / 2) / micros;
    (100..=10_000)
        .contains(&mhz)
        .then(|| u32::try_from(mhz * 1000).ok())
        .flatten()
}

/// Counter and clock as close together as a few tries get.
#[cfg(target_arch = "x86_64")]
fn sample() -> Option<(u64, Instant)> {
    (0..5)
        .map(|_| {
            // SAFETY: RDTSC has no preconditions on x86-64.
            let ticks = unsafe { std::arch::x86_64::_rdtsc() };
            let now = Instant::now();
            // SAFETY: as above.
            let after = unsafe { std::arch::x86_64::_rdtsc() };
            (after.wrapping_sub(ticks), (ticks, now))
        })
        .min_by_key(|(gap, _)| *gap)
        .map(|(_, sample)| sample)
}

#[cfg(not(target_arch = "x86_64"))]
fn sample() -> Option<(u64, Instant)> {
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_rate_is_whole_megahertz() {
        if let Some(khz) = khz() {
            assert_eq!(khz % 1000, 0);
            assert!(khz >= 100_000);
        }
    }
}
