//! Addresses, routes and permanent neighbours as rtnetlink(7) requests.
//!
//! Owns: the messages. Never: which ones. What is there already is success: a container may have made it.

use bulkhead_host::net::{Netlink, NetlinkError};
use bulkhead_model::{InterfaceAddress, Neighbour, Route};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::neighbour::{
    NeighbourAddress, NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteType, RouteVia,
};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::errno::Errno;
use std::net::IpAddr;

fn family(address: IpAddr) -> AddressFamily {
    match address {
        IpAddr::V4(_) => AddressFamily::Inet,
        IpAddr::V6(_) => AddressFamily::Inet6,
    }
}

fn there_already(result: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match result {
        Err(error) if error.is(Errno::EEXIST) => Ok(()),
        other => other,
    }
}

fn address_message(index: u32, it: &InterfaceAddress) -> AddressMessage {
    let mut message = AddressMessage::default();
    message.header.family = family(it.address);
    message.header.prefix_len = it.prefix;
    message.header.scope = it.scope.into();
    message.header.index = index;
    message.attributes = vec![
        AddressAttribute::Local(it.address),
        AddressAttribute::Address(it.peer.unwrap_or(it.address)),
    ];
    message
}

/// Adds an address. It is known to be nobody else's, and its network's route comes as one of the routes.
pub(super) fn add_address(
    netlink: &mut Netlink,
    index: u32,
    it: &InterfaceAddress,
) -> Result<(), NetlinkError> {
    let mut message = address_message(index, it);
    if let Some(broadcast) = it.broadcast {
        message.attributes.push(AddressAttribute::Broadcast(broadcast));
    }
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    message.attributes.push(AddressAttribute::Flags(flags));
    let request = RouteNetlinkMessage::NewAddress(message);
    there_already(netlink.change("adding address", &it.to_string(), request, NLM_F_CREATE))
}

/// Takes an address away.
pub(super) fn remove_address(
    netlink: &mut Netlink,
    index: u32,
    it: &InterfaceAddress,
) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::DelAddress(address_message(index, it));
    netlink.change("removing address", &it.to_string(), request, 0)
}

fn route_address(address: IpAddr) -> RouteAddress {
    match address {
        IpAddr::V4(v4) => RouteAddress::Inet(v4),
        IpAddr::V6(v6) => RouteAddress::Inet6(v6),
    }
}

fn route_message(index: u32, it: &Route) -> RouteMessage {
    let mut message = RouteMessage::default();
    let destination = it.destination.address;
    message.header.address_family = family(destination);
    message.header.destination_prefix_length = it.destination.length;
    message.header.table = RouteHeader::RT_TABLE_MAIN;
    message.header.kind = RouteType::Unicast;
    message.header.scope = it.scope.into();
    message.header.protocol = it.protocol.into();
    if it.onlink {
        message.header.flags = RouteFlags::Onlink;
    }
    let attributes = &mut message.attributes;
    attributes.push(RouteAttribute::Oif(index));
    if it.destination.length > 0 {
        attributes.push(RouteAttribute::Destination(route_address(destination)));
    }
    match it.gateway {
        Some(gateway) if gateway.is_ipv4() == destination.is_ipv4() => {
            attributes.push(RouteAttribute::Gateway(route_address(gateway)));
        }
        Some(IpAddr::V4(gateway)) => attributes.push(RouteAttribute::Via(RouteVia::Inet(gateway))),
        Some(IpAddr::V6(gateway)) => attributes.push(RouteAttribute::Via(RouteVia::Inet6(gateway))),
        None => {}
    }
    if let Some(source) = it.source {
        attributes.push(RouteAttribute::PrefSource(route_address(source)));
    }
    if let Some(metric) = it.metric {
        attributes.push(RouteAttribute::Priority(metric));
    }
    if let Some(mtu) = it.mtu {
        attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    message
}

/// Adds a route.
pub(super) fn add_route(netlink: &mut Netlink, index: u32, it: &Route) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::NewRoute(route_message(index, it));
    // Neither exclusive nor replacing: IPv6 has routes of one network on several interfaces.
    there_already(netlink.change("adding route", &it.destination.to_string(), request, NLM_F_CREATE))
}

/// Takes a route away.
pub(super) fn remove_route(netlink: &mut Netlink, index: u32, it: &Route) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::DelRoute(route_message(index, it));
    netlink.change("removing route", &it.destination.to_string(), request, 0)
}

fn neighbour_message(index: u32, it: &Neighbour) -> NeighbourMessage {
    let mut message = NeighbourMessage::default();
    message.header.family = family(it.address);
    message.header.ifindex = index;
    message.header.state = NeighbourState::Permanent;
    if it.router {
        message.header.flags = NeighbourFlags::Router;
    }
    let address = match it.address {
        IpAddr::V4(v4) => NeighbourAddress::Inet(v4),
        IpAddr::V6(v6) => NeighbourAddress::Inet6(v6),
    };
    message.attributes = vec![
        NeighbourAttribute::Destination(address),
        NeighbourAttribute::LinkLayerAddress(it.mac.0.to_vec()),
    ];
    message
}

/// Makes a neighbour known for good.
pub(super) fn add_neighbour(netlink: &mut Netlink, index: u32, it: &Neighbour) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::NewNeighbour(neighbour_message(index, it));
    netlink.change(
        "adding neighbour",
        &it.address.to_string(),
        request,
        NLM_F_CREATE | NLM_F_REPLACE,
    )
}

/// Forgets a neighbour.
pub(super) fn remove_neighbour(
    netlink: &mut Netlink,
    index: u32,
    it: &Neighbour,
) -> Result<(), NetlinkError> {
    let request = RouteNetlinkMessage::DelNeighbour(neighbour_message(index, it));
    netlink.change("removing neighbour", &it.address.to_string(), request, 0)
}
