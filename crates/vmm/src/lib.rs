//! Virtual machine monitors: a small mandatory trait with optional facets, and a QEMU driver.
//!
//! Owns: VMM arguments and QMP. Never knows OCI, containers or TOML. Called by `sandbox` and, for the
//! probe, by `cli`.

pub mod assets;
pub mod machine;
pub mod probe;
pub mod qemu;
pub mod qmp;

pub use machine::{
    DeviceRequest, Hotplug, Launch, MemoryReuse, Origin, Plugged, Resize, SavedMachine, Snapshot, Vm, VmExit,
    Vmm, VmmError,
};
pub use qemu::Qemu;
