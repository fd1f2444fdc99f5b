//! The guest's network on the wire: the model's nouns and where their cards are.
//!
//! Owns: both directions of the translation, and its checks. Never: what a name or an MTU may be (the agent's).
//! Made by `sandbox`, read by the agent.

use crate::api::agent;
use bulkhead_model::{Interface, InterfaceAddress, Mac, Neighbour, Prefix, Route};
use std::net::IpAddr;

/// An interface of the guest and its card.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct GuestInterface {
    /// PCI path of the card as the guest sees it: `04.0/00.0`.
    pub pci_path: String,
    /// What it is to be; index, kind and queues stay on the host.
    pub interface: Interface,
}

/// All the guest's interfaces, routes and permanent neighbours.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct GuestNetwork {
    /// Loopback apart.
    pub interfaces: Vec<GuestInterface>,
    /// Over these interfaces.
    pub routes: Vec<Route>,
    /// On these interfaces.
    pub neighbours: Vec<Neighbour>,
}

/// A request that cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("interface {interface:?}: {field}: {value}: expected {expected}")]
pub struct BadNetwork {
    /// Whose.
    pub interface: String,
    /// Which field.
    pub field: &'static str,
    /// Its value.
    pub value: String,
    /// What would do.
    pub expected: &'static str,
}

fn bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(v4) => v4.octets().to_vec(),
        IpAddr::V6(v6) => v6.octets().to_vec(),
    }
}

fn optional(address: Option<IpAddr>) -> Vec<u8> {
    address.map(bytes).unwrap_or_default()
}

impl GuestNetwork {
    /// As the wire has it.
    #[must_use]
    pub fn request(self, request_id: String) -> agent::UpdateNetworkRequest {
        agent::UpdateNetworkRequest {
            request_id,
            interfaces: self.interfaces.into_iter().map(interface).collect(),
            routes: self.routes.into_iter().map(route).collect(),
            neighbours: self.neighbours.into_iter().map(neighbour).collect(),
            ..Default::default()
        }
    }

    /// What the wire says.
    ///
    /// # Errors
    /// [`BadNetwork`] naming interface, field and value.
    pub fn read(request: &agent::UpdateNetworkRequest) -> Result<Self, BadNetwork> {
        Ok(Self {
            interfaces: request
                .interfaces
                .iter()
                .map(read_interface)
                .collect::<Result<_, _>>()?,
            routes: request.routes.iter().map(read_route).collect::<Result<_, _>>()?,
            neighbours: request
                .neighbours
                .iter()
                .map(read_neighbour)
                .collect::<Result<_, _>>()?,
        })
    }
}

fn interface(it: GuestInterface) -> agent::Interface {
    let addresses = it
        .interface
        .addresses
        .into_iter()
        .map(|one| agent::InterfaceAddress {
            address: bytes(one.address),
            prefix: one.prefix.into(),
            peer: optional(one.peer),
            broadcast: optional(one.broadcast.map(IpAddr::V4)),
            scope: one.scope.into(),
            ..Default::default()
        });
    agent::Interface {
        name: it.interface.name,
        pci_path: it.pci_path,
        mac: it.interface.mac.0.to_vec(),
        mtu: it.interface.mtu,
        up: it.interface.up,
        arp: it.interface.arp,
        addresses: addresses.collect(),
        ..Default::default()
    }
}

fn route(it: Route) -> agent::Route {
    agent::Route {
        interface: it.interface,
        destination: bytes(it.destination.address),
        prefix: it.destination.length.into(),
        gateway: optional(it.gateway),
        source: optional(it.source),
        scope: it.scope.into(),
        metric: it.metric.unwrap_or(0),
        onlink: it.onlink,
        protocol: it.protocol.into(),
        mtu: it.mtu.unwrap_or(0),
        ..Default::default()
    }
}

fn neighbour(it: Neighbour) -> agent::Neighbour {
    agent::Neighbour {
        interface: it.interface,
        address: bytes(it.address),
        mac: it.mac.0.to_vec(),
        router: it.router,
        ..Default::default()
    }
}

/// Reads the fields of one interface's message.
struct Fields<'a>(&'a str);

impl Fields<'_> {
    fn bad(&self, field: &'static str, value: impl Into<String>, expected: &'static str) -> BadNetwork {
        BadNetwork {
            interface: self.0.to_owned(),
            field,
            value: value.into(),
            expected,
        }
    }

    fn optional(&self, field: &'static str, bytes: &[u8]) -> Result<Option<IpAddr>, BadNetwork> {
        if bytes.is_empty() {
            return Ok(None);
        }
        self.address(field, bytes).map(Some)
    }

    fn address(&self, field: &'static str, bytes: &[u8]) -> Result<IpAddr, BadNetwork> {
        let v4 = <[u8; 4]>::try_from(bytes).map(IpAddr::from);
        let v6 = || <[u8; 16]>::try_from(bytes).map(IpAddr::from);
        v4.or_else(|_| v6()).map_err(|_| {
            self.bad(
                field,
                format!("{} bytes", bytes.len()),
                "an address of 4 or 16 bytes",
            )
        })
    }

    fn prefix(&self, field: &'static str, prefix: u32, address: IpAddr) -> Result<u8, BadNetwork> {
        let most = if address.is_ipv4() { 32 } else { 128 };
        u8::try_from(prefix)
            .ok()
            .filter(|prefix| *prefix <= most)
            .ok_or_else(|| {
                self.bad(
                    field,
                    format!("{address}/{prefix}"),
                    "a prefix of 0 to 32, or 128 for IPv6",
                )
            })
    }

    fn byte(&self, field: &'static str, value: u32) -> Result<u8, BadNetwork> {
        u8::try_from(value).map_err(|_| self.bad(field, value.to_string(), "0 to 255"))
    }

    fn mac(&self, bytes: &[u8]) -> Result<Mac, BadNetwork> {
        <[u8; 6]>::try_from(bytes)
            .map(Mac)
            .map_err(|_| self.bad("MAC address", format!("{} bytes", bytes.len()), "six"))
    }
}

fn read_interface(it: &agent::Interface) -> Result<GuestInterface, BadNetwork> {
    let fields = Fields(&it.name);
    let mut addresses = Vec::new();
    for one in &it.addresses {
        let address = fields.address("address", &one.address)?;
        let broadcast = match fields.optional("broadcast address", &one.broadcast)? {
            None => None,
            Some(IpAddr::V4(v4)) => Some(v4),
            Some(other) => return Err(fields.bad("broadcast address", other.to_string(), "one of IPv4")),
        };
        addresses.push(InterfaceAddress {
            address,
            prefix: fields.prefix("address", one.prefix, address)?,
            peer: fields.optional("peer address", &one.peer)?,
            broadcast,
            scope: fields.byte("scope", one.scope)?,
        });
    }
    Ok(GuestInterface {
        pci_path: it.pci_path.clone(),
        interface: Interface {
            name: it.name.clone(),
            mac: fields.mac(&it.mac)?,
            mtu: it.mtu,
            up: it.up,
            arp: it.arp,
            addresses,
            ..Interface::default()
        },
    })
}

fn read_route(it: &agent::Route) -> Result<Route, BadNetwork> {
    let fields = Fields(&it.interface);
    let address = fields.address("route", &it.destination)?;
    Ok(Route {
        interface: it.interface.clone(),
        destination: Prefix {
            address,
            length: fields.prefix("route", it.prefix, address)?,
        },
        gateway: fields.optional("gateway", &it.gateway)?,
        source: fields.optional("source address", &it.source)?,
        scope: fields.byte("scope", it.scope)?,
        metric: (it.metric > 0).then_some(it.metric),
        onlink: it.onlink,
        protocol: fields.byte("protocol", it.protocol)?,
        mtu: (it.mtu > 0).then_some(it.mtu),
    })
}

fn read_neighbour(it: &agent::Neighbour) -> Result<Neighbour, BadNetwork> {
    let fields = Fields(&it.interface);
    Ok(Neighbour {
        interface: it.interface.clone(),
        address: fields.address("neighbour", &it.address)?,
        mac: fields.mac(&it.mac)?,
        router: it.router,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network() -> GuestNetwork {
        let address = |text: &str, prefix| InterfaceAddress {
            address: text.parse().unwrap(),
            prefix,
            peer: None,
            broadcast: text.starts_with("10").then(|| [10, 0, 0, 255].into()),
            scope: 253,
        };
        GuestNetwork {
            interfaces: vec![GuestInterface {
                pci_path: "04.0/00.0".into(),
                interface: Interface {
                    name: "eth0".into(),
                    mac: Mac([2, 0, 0, 0, 0, 1]),
                    mtu: 1450,
                    up: true,
                    arp: true,
                    addresses: vec![address("10.0.0.2", 24), address("fd00::2", 64)],
                    ..Interface::default()
                },
            }],
            routes: vec![Route {
                interface: "eth0".into(),
                destination: Prefix {
                    address: "0.0.0.0".parse().unwrap(),
                    length: 0,
                },
                gateway: Some("fe80::1".parse().unwrap()),
                source: Some("10.0.0.2".parse().unwrap()),
                scope: 0,
                metric: Some(7),
                onlink: true,
                protocol: 3,
                mtu: None,
            }],
            neighbours: vec![Neighbour {
                interface: "eth0".into(),
                address: "10.0.0.1".parse().unwrap(),
                mac: Mac([2, 0, 0, 0, 0, 2]),
                router: true,
            }],
        }
    }

    #[test]
    fn what_is_sent_is_what_is_read() {
        let sent = network();
        let read = GuestNetwork::read(&sent.clone().request("1".into())).unwrap();
        assert_eq!(read, sent);
    }

    #[test]
    fn what_cannot_be_read_names_its_interface() {
        let broken = |change: fn(&mut agent::UpdateNetworkRequest)| {
            let mut request = network().request("1".into());
            change(&mut request);
            let text = GuestNetwork::read(&request).unwrap_err().to_string();
            assert!(text.contains("\"eth0\"") && text.contains("expected"), "{text}");
        };
        broken(|r| r.interfaces[0].mac = vec![1]);
        broken(|r| r.interfaces[0].addresses[0].address = vec![1, 2]);
        broken(|r| r.interfaces[0].addresses[0].prefix = 33);
        broken(|r| r.interfaces[0].addresses[1].broadcast = vec![0; 16]);
        broken(|r| r.routes[0].destination = Vec::new());
        broken(|r| r.routes[0].prefix = 300);
        broken(|r| r.routes[0].protocol = 256);
        broken(|r| r.neighbours[0].address = vec![0; 5]);
    }
}
