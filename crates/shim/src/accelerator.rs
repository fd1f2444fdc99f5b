//! How guest code runs on this host.
//!
//! Owns: where the probe's result is kept. Never: the choice (`vmm::probe`). Called by the supervisor, planning and
//! `doctor`.

use bulkhead_sandbox::layout::DEFAULT_ROOT;
use bulkhead_vmm::probe::{self, Verdict};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

/// The file that holds what was measured since the host booted.
#[must_use]
pub fn cache() -> PathBuf {
    Path::new(DEFAULT_ROOT).join("accelerator.json")
}

/// Asks the host; microseconds but for the first time after a boot.
#[must_use]
pub fn probe() -> Verdict {
    // Without the directory only the measurement is repeated.
    let _ = std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(DEFAULT_ROOT);
    probe::probe(&cache())
}
