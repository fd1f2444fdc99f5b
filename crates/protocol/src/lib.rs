//! The wire between host and guest.
//!
//! Owns: `proto/agent.proto`, frames, the channel with its handshake, the client. Never a second copy
//! of generated types. Called by `sandbox` (host end) and `agent` (guest end).

pub mod api;
pub mod decoder;
pub mod frame;
pub mod guest;
pub mod guest_end;
pub mod host_end;
pub mod network;
pub mod refusal;

/// Version of the wire; both ends must have the same.
pub const PROTOCOL_VERSION: u32 = 1;

pub use host_end::{Attachment, Client, StreamStore};
pub use network::{BadNetwork, GuestInterface, GuestNetwork};

pub use guest::{
    Guest, GuestContainer, GuestError, GuestEvent, GuestExit, GuestHello, GuestIdentity, GuestPids,
    GuestProcess, GuestStdio, GuestStep, GuestSteps, GuestStorage, StreamId,
};
