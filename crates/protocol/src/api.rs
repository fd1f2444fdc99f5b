//! Types generated from `proto/agent.proto`.
//!
//! Owns: nothing by hand. [`agent`] has the messages, [`agent_ttrpc`] the service trait
//! (`Agent`), its registration (`create_agent`) and the client (`AgentClient`).

/// Messages.
#[allow(
    warnings,
    missing_docs,
    unreachable_pub,
    unused_imports,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod agent {
    include!(concat!(env!("OUT_DIR"), "/agent.rs"));
}

/// Service, server registration and client.
#[allow(
    warnings,
    missing_docs,
    unreachable_pub,
    unused_imports,
    dead_code,
    clippy::all,
    clippy::pedantic,
    clippy::unwrap_used,
    clippy::expect_used
)]
pub mod agent_ttrpc {
    include!(concat!(env!("OUT_DIR"), "/agent_ttrpc.rs"));
}
