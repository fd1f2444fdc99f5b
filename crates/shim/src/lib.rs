//! The supervisor process and its socket; the containerd services.
//!
//! Owns: translating calls into `sandbox::Command`. Never: business logic. Called by `cli`.

pub mod accelerator;
pub mod client;
pub mod containerd;
pub mod hooks;
pub mod host_facts;
pub mod launch;
pub mod logfile;
pub mod oci_state;
pub mod offline;
pub mod server;
pub mod stub;
pub mod supervisor;
pub mod template_maker;
mod words;

pub use bulkhead_sandbox::{ContainerMap, Layout, SandboxPaths};
pub use client::{Client, Message};
