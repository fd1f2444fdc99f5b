//! RAII over host kernel objects.
//!
//! Owns: processes, descriptors, mounts, cgroups, network namespaces and links, terminals, signals and the clock as
//! values that clean up after themselves. Never knows what a sandbox is, never logs, never needs an async runtime.
//! Everything here may be used by the guest agent too, except where a module says otherwise.

pub mod cgroup;
pub mod clock;
pub mod deadline;
pub mod fdpass;
pub mod inherited;
pub mod kvm;
pub mod memory;
pub mod mount;
pub mod net;
pub mod netns;
pub mod process;
pub mod pty;
pub mod signals;
pub mod tsc;
