//! Links, taps and redirections of a network namespace.
//!
//! ```text
//!  outside ── eth0 ──ingress──► tap ── VMM ── guest          tcfilter: two ingress queues, one filter each
//!  outside ◄───────────ingress── tap
//!  outside ── eth0 ── macvtap ── VMM ── guest                macvtap: no queue, no filter
//! ```
//!
//! Owns: conversations with the kernel (rtnetlink(7)), taps and their descriptors. Never: enters a namespace: what is
//! here works in the one its thread is in (see [`crate::netns`]). Called by `sandbox`; the guest agent uses
//! [`Netlink`] and [`link`].

pub mod link;
mod macvtap;
mod netlink;
pub mod redirect;
mod tap;
mod vhost;
mod watch;

pub use macvtap::macvtap;
pub use netlink::{Netlink, NetlinkError};
pub use tap::{TapError, tap};
pub use vhost::vhost_net;
pub use watch::Watch;
