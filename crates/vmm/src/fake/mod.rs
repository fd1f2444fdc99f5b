//! A VMM without a VM, for fault injection: does as scripted, remembers what was asked.
//!
//! ```text
//!  FakeVmm ──launch──► alive ──resume──► running ──end / kill──► ended
//!     │ fault(step, nth, Fail | Hang), fault_at(n)        └─ devices plugged, asked for by leftovers()
//! ```
//!
//! Owns: the script and the record. Never: a process, a descriptor beyond those it was given. Called by
//! tests of the engine; part of the library so that other crates' tests can use it.

mod machine;
mod script;
mod vm;
mod vmm;

pub use script::{Call, Fault, Step};
pub use vm::FakeVm;
pub use vmm::FakeVmm;
