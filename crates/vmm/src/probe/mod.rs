//! Which accelerator this host has, and why.
//!
//! ```text
//!  processor flags, kernel modules ─► /dev/kvm opens? ─► speed (cached for this boot) ─► Verdict
//!      microseconds                    microseconds         20 ms at most
//! ```
//!
//! Owns: the order of the questions ([`choose`], a pure function) and the I/O that answers them
//! ([`probe`]). Never: asks the user. Called by `cli` (doctor) and by the engine's host before a launch.

mod cache;
mod choose;
mod facts;

pub use choose::{Choice, choose};
pub use facts::{Device, Facts, Speed};

use bulkhead_host::{kvm, tsc};
use bulkhead_model::vm::Accelerator;
use cache::Measured;
use std::path::Path;
use std::time::Duration;

/// Longest time the loop may take: hardware needs less than a millisecond, software more than a second.
pub(crate) const SPEED_LIMIT: Duration = Duration::from_millis(20);

/// What the host can do.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verdict {
    /// How guest code will run.
    pub accelerator: Accelerator,
    /// Why, one clause for the reader.
    pub reason: String,
    /// Rate of the host's time-stamp counter in kHz, for [`crate::Qemu::new`].
    pub tsc_khz: Option<u32>,
    /// What was found.
    pub facts: Facts,
}

/// Asks the host. Blocks for at most about 100 ms the first time after a boot, microseconds later: what
/// had to be measured is kept in the file `cache`, whose directory exists. A cache that cannot be read or
/// written only costs the measurement.
#[must_use]
pub fn probe(cache: &Path) -> Verdict {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let boot_id = boot_id.trim();
    let known = cache::load(cache, boot_id);
    let mut measured = known.clone().unwrap_or_else(|| Measured {
        speed: None,
        tsc_khz: tsc::khz(),
    });
    let (mut facts, device) = facts::collect();
    facts.speed = measured.speed;
    let (accelerator, reason) = match choose(&facts) {
        Choice::Decided(accelerator, reason) => (accelerator, reason),
        Choice::Measure => {
            let speed = device.map_or(Speed::Failed, speed);
            measured.speed = Some(speed);
            facts.speed = Some(speed);
            match choose(&facts) {
                Choice::Decided(accelerator, reason) => (accelerator, reason),
                // Not possible: with a speed there is nothing left to measure. The translator always works.
                Choice::Measure => (Accelerator::Tcg, "its speed could not be measured".into()),
            }
        }
    };
    if known.as_ref() != Some(&measured)
        && let Err(error) = cache::store(cache, boot_id, &measured)
    {
        tracing::debug!(%error, path = %cache.display(), "keeping the probe's result");
    }
    Verdict {
        accelerator,
        reason,
        tsc_khz: measured.tsc_khz,
        facts,
    }
}

/// Records that a VM did not start with hardware virtualisation: until the next boot of the host guest code is
/// translated.
///
/// # Errors
/// When the file cannot be written; then only this process knows.
pub fn distrust(cache: &Path) -> std::io::Result<()> {
    let boot_id = std::fs::read_to_string("/proc/sys/kernel/random/boot_id")?;
    let boot_id = boot_id.trim();
    let mut measured = cache::load(cache, boot_id).unwrap_or_else(|| Measured {
        speed: None,
        tsc_khz: tsc::khz(),
    });
    measured.speed = Some(Speed::Distrusted);
    cache::store(cache, boot_id, &measured)
}

fn speed(device: std::os::fd::OwnedFd) -> Speed {
    match kvm::measure(device, SPEED_LIMIT) {
        Ok(kvm::Loop::Halted(time)) => Speed::Micros(u64::try_from(time.as_micros()).unwrap_or(u64::MAX)),
        Ok(kvm::Loop::TimedOut) => Speed::TooSlow,
        Ok(kvm::Loop::Failed(_)) | Err(_) => Speed::Failed,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_second_probe_of_a_boot_finds_the_first_ones_measurements() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("probe.json");
        let first = probe(&cache);
        let written = std::fs::read(&cache).unwrap();
        let second = probe(&cache);
        assert_eq!(first, second);
        assert_eq!(std::fs::read(&cache).unwrap(), written);
        assert!(!first.reason.is_empty());
    }

    #[test]
    fn distrust_lasts_until_the_next_boot() {
        let dir = tempfile::tempdir().unwrap();
        let cache = dir.path().join("probe.json");
        distrust(&cache).unwrap();
        let verdict = probe(&cache);
        assert_eq!(verdict.facts.speed, Some(Speed::Distrusted));
        assert_eq!(verdict.accelerator, Accelerator::Tcg);
    }

    #[test]
    fn a_cache_that_cannot_be_written_changes_nothing() {
        let verdict = probe(Path::new("/proc/no-such-directory/probe.json"));
        assert!(!verdict.reason.is_empty());
    }
}
