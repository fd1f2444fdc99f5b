//! A neighbour that is known without asking.

use super::Mac;
use serde::{Deserialize, Serialize};
use std::net::IpAddr;

/// A permanent entry of the neighbour table.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Neighbour {
    /// Name of the interface it is on.
    pub interface: String,
    /// Its address.
    pub address: IpAddr,
    /// Its MAC address.
    pub mac: Mac,
    /// It is a router (IPv6).
    pub router: bool,
}
