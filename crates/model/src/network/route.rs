//! A route.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::IpAddr;

/// A network: an address and the number of bits that count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prefix {
    /// Its first address.
    pub address: IpAddr,
    /// 0 to 32 or 128 bits.
    pub length: u8,
}

impl fmt::Display for Prefix {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.length)
    }
}

/// A unicast route of the main table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Route {
    /// Name of the interface it leaves by.
    pub interface: String,
    /// Where it leads; of length 0 for a default route.
    pub destination: Prefix,
    /// The next hop; may be of the other family.
    pub gateway: Option<IpAddr>,
    /// Source address the kernel prefers.
    pub source: Option<IpAddr>,
    /// rtnetlink(7) scope: 0 universe, 253 link.
    pub scope: u8,
    /// Priority, lowest first.
    pub metric: Option<u32>,
    /// The gateway is on this link although no network says so.
    pub onlink: bool,
    /// Who made it, rtnetlink(7): 2 kernel, 3 boot, 4 static.
    pub protocol: u8,
    /// Largest packet on this route.
    pub mtu: Option<u32>,
}
