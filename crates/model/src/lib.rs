//! The nouns of bulkhead: validated ids, the state machine, plans, processes, statistics.
//!
//! Owns: plain data every other crate speaks in. Never: I/O, async, logging, clocks.
//! Called by: every crate above floor 1.

pub mod failure;
pub mod id;
pub mod network;
pub mod plan;
pub mod process;
pub mod snapshot;
pub mod state;
pub mod stats;
pub mod timeline;
pub mod vm;

pub use failure::{Failure, FailureKind};
pub use id::{ContainerId, ExecId, SandboxId};
pub use network::{Interface, InterfaceAddress, LinkKind, Mac, Neighbour, NetworkScan, Prefix, Route};
pub use plan::{ContainerKind, ContainerPlan, NetworkPlan, RootfsPlan, SandboxPlan, Share};
pub use process::{ExitStatus, HostProcess, ProcessKey};
pub use snapshot::{ContainerSnapshot, ProcessSnapshot, SandboxSnapshot};
pub use state::{IllegalMove, State};
pub use vm::VmPlan;

/// The OCI runtime-spec types; every crate uses these and no second copy.
pub use oci_spec::runtime as oci;
