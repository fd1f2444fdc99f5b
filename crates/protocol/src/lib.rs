//! The wire between host and guest.
//!
//! Owns: `proto/agent.proto`, frames, the channel with its handshake, the client. Never a second copy
//! of generated types. Called by `sandbox` (host end) and `agent` (guest end).

pub mod guest;

pub use guest::{
    Guest, GuestContainer, GuestError, GuestEvent, GuestHello, GuestIdentity, GuestProcess, GuestStdio,
    GuestStorage, StreamId,
};
