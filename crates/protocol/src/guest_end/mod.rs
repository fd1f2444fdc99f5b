//! The guest's end of both ports: what `bulkhead-agent` builds on.
//!
//! ```text
//!            control port ── frames ── ttrpc server ── the agent's service
//!  host ═══╡                    one thread
//!            data port ───── frames ── stdio streams ── pipes and terminals of processes
//! ```
//!
//! Owns: the two devices, the hello to each new host connection, the streams' unacknowledged bytes.
//! Never: knows what a container is. Called by `agent`.

mod control;
mod endpoint;
mod input;
mod mux;
mod output;
mod port;
mod ring;
mod tray;

pub use endpoint::{Endpoint, EndpointError};
