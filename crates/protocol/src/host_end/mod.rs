//! The host's end of both ports: [`Client`], which is the [`Guest`](crate::Guest) of the engine.
//!
//! ```text
//!  engine ── Client ── ttrpc ── control ─── unix socket ═══ control port
//!               └── stdio streams ─ data ── unix socket ═══ data port
//!                      │   └ StreamStore: what a fresh supervisor needs to go on
//!                      └ descriptors of the user
//! ```
//!
//! Owns: the handshake, deadlines, streams between the data port and the user's descriptors. Never: starts or
//! connects to a VMM. Called by `sandbox`.

mod client;
mod control;
mod convert;
mod data;
mod greeting;
mod input;
mod mark;
mod output;
mod source;
mod stdio_fd;
mod store;

pub use client::{Attachment, Client};
pub use store::StreamStore;
