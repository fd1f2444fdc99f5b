//! The pod network: what the sandbox's network namespace holds and the guest is to have.
//!
//! Owns: the nouns. Never: reads or changes a namespace (see `host::net`). Made by a scan on the host, applied
//! by the agent.

mod address;
mod interface;
mod mac;
mod neighbour;
mod route;

pub use address::InterfaceAddress;
pub use interface::{Interface, LinkKind};
pub use mac::Mac;
pub use neighbour::Neighbour;
pub use route::{Prefix, Route};

use serde::{Deserialize, Serialize};

/// One look at a network namespace.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct NetworkScan {
    /// What a guest can have, by index, lowest first.
    pub interfaces: Vec<Interface>,
    /// Unicast routes of the main table over these interfaces.
    pub routes: Vec<Route>,
    /// Permanent neighbours on these interfaces.
    pub neighbours: Vec<Neighbour>,
    /// Names of links of other kinds, loopback apart: they stay on the host.
    pub ignored: Vec<String>,
}
