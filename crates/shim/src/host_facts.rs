//! What planning must know about this host.
//!
//! Owns: reading it. Never: decides anything. Called by create and run.

use bulkhead_config::HostFacts;

/// The facts, as of now.
#[must_use]
pub fn read() -> HostFacts {
    let text = |path: &str| std::fs::read_to_string(path).unwrap_or_default();
    HostFacts::from_texts(
        &text("/sys/devices/system/cpu/online"),
        &text("/proc/meminfo"),
        crate::accelerator::probe().accelerator,
    )
}
