//! What a network namespace holds, out of the kernel's answers (rtnetlink(7)).
//!
//! Owns: which links, addresses, routes and neighbours a guest gets. Never: changes anything. Called by the real
//! [`super::NetworkSpace`], inside the namespace.

use super::is_ours;
use bulkhead_host::net::{Netlink, NetlinkError};
use bulkhead_model::{Interface, InterfaceAddress, LinkKind, Mac, Neighbour, NetworkScan, Prefix, Route};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// Looks at this thread's namespace.
///
/// # Errors
/// The kernel's reason.
pub fn scan() -> Result<NetworkScan, NetlinkError> {
    let mut netlink = Netlink::open()?;
    let links = netlink.dump(
        "listing links",
        &RouteNetlinkMessage::GetLink(LinkMessage::default()),
    )?;
    let mut found = NetworkScan::default();
    for message in links {
        let RouteNetlinkMessage::NewLink(message) = message else {
            continue;
        };
        match link(&message) {
            Link::Passed(interface) => found.interfaces.push(interface),
            Link::Ignored(name) => found.ignored.push(name),
            Link::Own => {}
        }
    }
    if found.interfaces.is_empty() {
        return Ok(found);
    }
    found.interfaces.sort_by_key(|interface| interface.index);
    let addresses = RouteNetlinkMessage::GetAddress(AddressMessage::default());
    for message in netlink.dump("listing addresses", &addresses)? {
        if let RouteNetlinkMessage::NewAddress(message) = message
            && let Some(address) = address(&message)
            && let Some(owner) = found
                .interfaces
                .iter_mut()
                .find(|interface| interface.index == message.header.index)
        {
            owner.addresses.push(address);
        }
    }
    let names: BTreeMap<u32, String> = found
        .interfaces
        .iter()
        .map(|interface| (interface.index, interface.name.clone()))
        .collect();
    let routes = RouteNetlinkMessage::GetRoute(RouteMessage::default());
    for message in netlink.dump("listing routes", &routes)? {
        if let RouteNetlinkMessage::NewRoute(message) = message {
            found.routes.extend(route(&message, &names));
        }
    }
    let neighbours = RouteNetlinkMessage::GetNeighbour(NeighbourMessage::default());
    for message in netlink.dump("listing neighbours", &neighbours)? {
        if let RouteNetlinkMessage::NewNeighbour(message) = message {
            found.neighbours.extend(neighbour(&message, &names));
        }
    }
    Ok(found)
}

enum Link {
    /// For the guest.
    Passed(Interface),
    /// Of a kind that no card can stand for, or part of something else.
    Ignored(String),
    /// Loopback, or made by a sandbox.
    Own,
}

fn link(message: &LinkMessage) -> Link {
    let mut interface = Interface {
        index: message.header.index,
        queues: 1,
        up: message.header.flags.contains(LinkFlags::Up),
        arp: !message.header.flags.contains(LinkFlags::Noarp),
        ..Interface::default()
    };
    let mut kind = Some(LinkKind::Physical);
    let (mut ethernet, mut enslaved) = (message.header.link_layer_type == LinkLayerType::Ether, false);
    let (mut receive, mut transmit) = (1, 1);
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => interface.name.clone_from(name),
            LinkAttribute::Mtu(mtu) => interface.mtu = *mtu,
            LinkAttribute::NumRxQueues(count) => receive = *count,
            LinkAttribute::NumTxQueues(count) => transmit = *count,
            LinkAttribute::Controller(_) => enslaved = true,
            LinkAttribute::Address(bytes) => match <[u8; 6]>::try_from(bytes.as_slice()) {
                Ok(mac) => interface.mac = Mac(mac),
                Err(_) => ethernet = false,
            },
            LinkAttribute::LinkInfo(infos) => {
                if let Some(LinkInfo::Kind(its)) = infos.iter().find(|info| matches!(info, LinkInfo::Kind(_)))
                {
                    kind = passed_kind(its);
                }
            }
            _ => {}
        }
    }
    if message.header.flags.contains(LinkFlags::Loopback) || is_ours(&interface.name) {
        return Link::Own;
    }
    interface.queues = u16::try_from(receive.min(transmit)).unwrap_or(u16::MAX).max(1);
    match kind {
        Some(kind) if ethernet && !enslaved => Link::Passed(Interface { kind, ..interface }),
        _ => Link::Ignored(interface.name),
    }
}

fn passed_kind(kind: &InfoKind) -> Option<LinkKind> {
    match kind {
        InfoKind::Veth => Some(LinkKind::Veth),
        InfoKind::MacVlan => Some(LinkKind::Macvlan),
        InfoKind::IpVlan => Some(LinkKind::Ipvlan),
        InfoKind::Tun => Some(LinkKind::Tap),
        InfoKind::Vlan => Some(LinkKind::Vlan),
        _ => None,
    }
}

fn address(message: &AddressMessage) -> Option<InterfaceAddress> {
    // Another host has it.
    if message.header.flags.contains(AddressHeaderFlags::Dadfailed) {
        return None;
    }
    let (mut local, mut other, mut broadcast) = (None, None, None);
    for attribute in &message.attributes {
        match attribute {
            AddressAttribute::Local(address) => local = Some(*address),
            AddressAttribute::Address(address) => other = Some(*address),
            AddressAttribute::Broadcast(address) => broadcast = Some(*address),
            _ => {}
        }
    }
    // IPv6 gives a local address only where there is a peer (linux/if_addr.h).
    let address = local.or(other)?;
    Some(InterfaceAddress {
        address,
        prefix: message.header.prefix_len,
        peer: other.filter(|other| *other != address),
        broadcast,
        scope: message.header.scope.into(),
    })
}

fn ip(address: &RouteAddress) -> Option<IpAddr> {
    match address {
        RouteAddress::Inet(v4) => Some(IpAddr::V4(*v4)),
        RouteAddress::Inet6(v6) => Some(IpAddr::V6(*v6)),
        _ => None,
    }
}

fn route(message: &RouteMessage, names: &BTreeMap<u32, String>) -> Option<Route> {
    let header = &message.header;
    let dead = RouteFlags::Cloned | RouteFlags::Dead;
    if header.kind != RouteType::Unicast
        || header.table != RouteHeader::RT_TABLE_MAIN
        || header.flags.intersects(dead)
    {
        return None;
    }
    let any = match header.address_family {
        netlink_packet_route::AddressFamily::Inet => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        netlink_packet_route::AddressFamily::Inet6 => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        _ => return None,
    };
    let mut interface = None;
    let mut route = Route {
        interface: String::new(),
        destination: Prefix {
            address: any,
            length: header.destination_prefix_length,
        },
        gateway: None,
        source: None,
        scope: header.scope.into(),
        metric: None,
        onlink: header.flags.contains(RouteFlags::Onlink),
        protocol: header.protocol.into(),
        mtu: None,
    };
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(index) => interface = names.get(index),
            RouteAttribute::Destination(address) => route.destination.address = ip(address)?,
            RouteAttribute::Gateway(address) => route.gateway = ip(address),
            RouteAttribute::Via(RouteVia::Inet(address)) => route.gateway = Some(IpAddr::V4(*address)),
            RouteAttribute::Via(RouteVia::Inet6(address)) => route.gateway = Some(IpAddr::V6(*address)),
            RouteAttribute::PrefSource(address) => route.source = ip(address),
            RouteAttribute::Priority(metric) => route.metric = Some(*metric).filter(|metric| *metric > 0),
            RouteAttribute::Metrics(metrics) => {
                route.mtu = metrics.iter().find_map(|metric| match metric {
                    RouteMetric::Mtu(mtu) => Some(*mtu).filter(|mtu| *mtu > 0),
                    _ => None,
                });
            }
            _ => {}
        }
    }
    route.interface.clone_from(interface?);
    Some(route)
}

fn neighbour(message: &NeighbourMessage, names: &BTreeMap<u32, String>) -> Option<Neighbour> {
    if message.header.state != NeighbourState::Permanent {
        return None;
    }
    let interface = names.get(&message.header.ifindex)?.clone();
    let (mut address, mut mac) = (None, None);
    for attribute in &message.attributes {
        match attribute {
            NeighbourAttribute::Destination(NeighbourAddress::Inet(v4)) => address = Some(IpAddr::V4(*v4)),
            NeighbourAttribute::Destination(NeighbourAddress::Inet6(v6)) => address = Some(IpAddr::V6(*v6)),
            NeighbourAttribute::LinkLayerAddress(bytes) => mac = bytes.as_slice().try_into().ok().map(Mac),
            _ => {}
        }
    }
    Some(Neighbour {
        interface,
        address: address?,
        mac: mac?,
        router: message.header.flags.contains(NeighbourFlags::Router),
    })
}
