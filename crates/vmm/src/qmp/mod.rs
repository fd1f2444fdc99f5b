//! QMP, the machine protocol of QEMU: one JSON value per line, both ways.
//!
//! ```text
//!  QmpClient::connect ─► greeting ─► qmp_capabilities ─► execute … ─► closed (the VMM ended)
//!                                        events ─► broadcast
//! ```
//!
//! Owns: framing, ids, deadlines, descriptor passing, events. Never: knows what a device is, decides by
//! the text of an error. Called by `qemu`. Source: QEMU docs/interop/qmp-spec.txt (7.2).

mod client;
mod error;
mod message;
mod pending;
mod reader;
mod writer;

pub use client::QmpClient;
pub use error::QmpError;
pub use message::{Message, QmpEvent, Refusal};
