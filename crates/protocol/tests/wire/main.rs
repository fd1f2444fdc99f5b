//! The wire end to end: `Client` and `Endpoint` over a model of virtio-serial.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod calls;
mod fixture;
mod killed;
mod reattach;
mod sinks;
mod streams;
