//! An interface of a network namespace.

use super::{InterfaceAddress, Mac};
use serde::{Deserialize, Serialize};

/// What kind of link the host end is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LinkKind {
    /// A device of the host.
    #[default]
    Physical,
    /// One end of a veth pair.
    Veth,
    /// A macvlan on an interface elsewhere.
    Macvlan,
    /// An ipvlan on an interface elsewhere.
    Ipvlan,
    /// A tap whose other end a program serves.
    Tap,
    /// A VLAN of another interface.
    Vlan,
}

impl LinkKind {
    /// Whether a macvtap can be put on top: not on what is itself a slice of another interface.
    #[must_use]
    pub const fn carries_macvtap(self) -> bool {
        !matches!(self, Self::Macvlan | Self::Ipvlan)
    }
}

/// An interface and its addresses.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Interface {
    /// Index in its namespace on the host, from 1; never used again while the namespace lives.
    pub index: u32,
    /// Name, 1 to 15 bytes.
    pub name: String,
    /// What it is on the host.
    pub kind: LinkKind,
    /// MAC address.
    pub mac: Mac,
    /// Largest packet in bytes.
    pub mtu: u32,
    /// Queue pairs it has, from 1.
    pub queues: u16,
    /// Administratively up.
    pub up: bool,
    /// Neighbours are looked for (ARP, NDP).
    pub arp: bool,
    /// Addresses, in the kernel's order: the first of a network is its primary one.
    pub addresses: Vec<InterfaceAddress>,
}
