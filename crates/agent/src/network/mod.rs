//! The guest's network: cards that were plugged become the interfaces of the pod.
//!
//! ```text
//!  request ─► checked ─► cards found (waits) ─► named ─► what is no longer asked for, away ─► what is, made
//! ```
//! A request is the whole network, so a repeated one changes nothing. What an earlier request named and this one
//! does not is taken away; what containers made stays.
//!
//! Owns: which request was applied last. Never: loopback (see `boot`). Called by `guest`.

mod cards;
mod check;
mod entries;

use crate::launch::Refusal;
use crate::modules::Modules;
use bulkhead_host::net::{Netlink, NetlinkError, link};
use bulkhead_model::{FailureKind, InterfaceAddress, Neighbour, Route, failure::chain};
use bulkhead_protocol::GuestNetwork;
use bulkhead_protocol::api::agent::UpdateNetworkRequest;
use std::collections::BTreeMap;
use std::io;
use std::sync::{Mutex, PoisonError};

/// Why the network is not what was asked for. Each names the interface.
#[derive(Debug, thiserror::Error)]
pub(crate) enum NetworkError {
    /// The request makes no sense.
    #[error("interface {interface:?}: {what}")]
    Invalid {
        /// Whose.
        interface: String,
        /// What is wrong, and what was expected.
        what: String,
    },
    /// No card turned up.
    #[error(
        "interface {interface:?}: no network card at PCI path {pci_path:?}: expected one within {seconds} s"
    )]
    NoCard {
        /// Whose.
        interface: String,
        /// Where it was looked for.
        pci_path: String,
        /// For how long.
        seconds: u64,
    },
    /// Waiting for it failed.
    #[error("interface {interface:?}: waiting for its card")]
    Wait {
        /// Whose.
        interface: String,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The kernel refused something.
    #[error("interface {interface:?}")]
    Kernel {
        /// Whose.
        interface: String,
        /// What, and why.
        #[source]
        source: NetlinkError,
    },
    /// The driver.
    #[error("the driver of network cards")]
    Driver(#[source] crate::modules::ModuleError),
    /// No netlink at all.
    #[error(transparent)]
    Netlink(NetlinkError),
}

impl NetworkError {
    fn kernel(interface: &str) -> impl FnOnce(NetlinkError) -> Self {
        let interface = interface.to_owned();
        move |source| Self::Kernel { interface, source }
    }

    fn refusal(&self) -> Refusal {
        let kind = match self {
            Self::Invalid { .. } => FailureKind::InvalidArgument,
            _ => FailureKind::Internal,
        };
        Refusal {
            kind,
            message: chain(self),
        }
    }
}

/// What was made by request, by index of its interface in the guest.
#[derive(Debug, Default)]
struct Made {
    addresses: Vec<(u32, InterfaceAddress)>,
    routes: Vec<(u32, Route)>,
    neighbours: Vec<(u32, Neighbour)>,
}

/// The guest's network. One update at a time.
#[derive(Debug, Default)]
pub(crate) struct Networks {
    made: Mutex<Made>,
}

impl Networks {
    /// Makes the network what `request` says.
    ///
    /// # Errors
    /// [`Refusal`] naming the interface; what was made until then stays, and the next request goes on from there.
    pub(crate) fn update(&self, modules: &Modules, request: &UpdateNetworkRequest) -> Result<(), Refusal> {
        let wanted = GuestNetwork::read(request).map_err(|error| Refusal {
            kind: FailureKind::InvalidArgument,
            message: error.to_string(),
        })?;
        check::check(&wanted).map_err(|error| error.refusal())?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        apply(modules, &wanted, &mut made).map_err(|error| error.refusal())
    }
}

fn apply(modules: &Modules, wanted: &GuestNetwork, made: &mut Made) -> Result<(), NetworkError> {
    if !wanted.interfaces.is_empty() {
        modules
            .load_if_there("virtio_net")
            .map_err(NetworkError::Driver)?;
    }
    let mut netlink = Netlink::open().map_err(NetworkError::Netlink)?;
    let indexes = cards::find(wanted)?;
    let next = numbered(wanted, &indexes);
    // First what has to go: a new route may take the place of an old one.
    take_away(&mut netlink, made, &next);
    cards::name(&mut netlink, wanted, &indexes)?;
    for (one, index) in wanted.interfaces.iter().zip(&indexes) {
        cards::shape(&mut netlink, &one.interface, *index)?;
    }
    for (index, address) in &next.addresses {
        let done = entries::add_address(&mut netlink, *index, address);
        done.map_err(NetworkError::kernel(&name(wanted, &indexes, *index)))?;
        if !made.addresses.contains(&(*index, address.clone())) {
            made.addresses.push((*index, address.clone()));
        }
    }
    for (one, index) in wanted.interfaces.iter().zip(&indexes) {
        let interface = &one.interface;
        link::set_up(&mut netlink, *index, interface.up).map_err(NetworkError::kernel(&interface.name))?;
    }
    for (index, route) in &next.routes {
        let up = |one: &bulkhead_protocol::GuestInterface| {
            one.interface.name == route.interface && one.interface.up
        };
        // Routes of an interface that is down come when it is up.
        if !wanted.interfaces.iter().any(up) {
            continue;
        }
        let done = entries::add_route(&mut netlink, *index, route);
        done.map_err(NetworkError::kernel(&route.interface))?;
        if !made.routes.contains(&(*index, route.clone())) {
            made.routes.push((*index, route.clone()));
        }
    }
    for (index, neighbour) in &next.neighbours {
        let done = entries::add_neighbour(&mut netlink, *index, neighbour);
        done.map_err(NetworkError::kernel(&neighbour.interface))?;
        if !made.neighbours.contains(&(*index, neighbour.clone())) {
            made.neighbours.push((*index, neighbour.clone()));
        }
    }
    Ok(())
}

/// The entries of a request with the indexes of their interfaces; routes that lead to gateways come after those
/// that make them reachable.
fn numbered(wanted: &GuestNetwork, indexes: &[u32]) -> Made {
    let by_name: BTreeMap<&str, u32> = wanted
        .interfaces
        .iter()
        .zip(indexes)
        .map(|(one, index)| (one.interface.name.as_str(), *index))
        .collect();
    let of = |name: &str| by_name.get(name).copied();
    let addresses = wanted.interfaces.iter().zip(indexes);
    let mut routes: Vec<(u32, Route)> = wanted
        .routes
        .iter()
        .filter_map(|route| Some((of(&route.interface)?, route.clone())))
        .collect();
    routes.sort_by_key(|(_, route)| {
        (
            route.gateway.is_some(),
            std::cmp::Reverse(route.destination.length),
        )
    });
    Made {
        addresses: addresses
            .flat_map(|(one, index)| one.interface.addresses.iter().map(|it| (*index, it.clone())))
            .collect(),
        routes,
        neighbours: wanted
            .neighbours
            .iter()
            .filter_map(|it| Some((of(&it.interface)?, it.clone())))
            .collect(),
    }
}

/// Takes away what was made and is not wanted; what does not go is gone with its card, or by a container.
fn take_away(netlink: &mut Netlink, made: &mut Made, next: &Made) {
    let Made {
        addresses,
        routes,
        neighbours,
    } = made;
    neighbours.retain(|entry| {
        next.neighbours.contains(entry) || {
            let _ = entries::remove_neighbour(netlink, entry.0, &entry.1);
            false
        }
    });
    routes.retain(|entry| {
        next.routes.contains(entry) || {
            let _ = entries::remove_route(netlink, entry.0, &entry.1);
            false
        }
    });
    addresses.retain(|entry| {
        next.addresses.contains(entry) || {
            let _ = entries::remove_address(netlink, entry.0, &entry.1);
            false
        }
    });
}

fn name(wanted: &GuestNetwork, indexes: &[u32], index: u32) -> String {
    let at = indexes.iter().position(|one| *one == index);
    at.and_then(|at| wanted.interfaces.get(at))
        .map(|one| one.interface.name.clone())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::{Interface, Prefix};
    use bulkhead_protocol::GuestInterface;

    #[test]
    fn gateways_come_after_what_makes_them_reachable() {
        let route = |destination: &str, length, gateway: Option<&str>| Route {
            interface: "eth0".into(),
            destination: Prefix {
                address: destination.parse().unwrap(),
                length,
            },
            gateway: gateway.map(|gateway| gateway.parse().unwrap()),
            source: None,
            scope: 0,
            metric: None,
            onlink: false,
            protocol: 4,
            mtu: None,
        };
        let network = GuestNetwork {
            interfaces: vec![GuestInterface {
                pci_path: "04.0/00.0".into(),
                interface: Interface {
                    name: "eth0".into(),
                    ..Interface::default()
                },
            }],
            routes: vec![
                route("0.0.0.0", 0, Some("10.1.0.1")),
                route("10.1.0.0", 16, Some("10.0.0.1")),
                route("10.0.0.1", 32, None),
            ],
            neighbours: Vec::new(),
        };
        let order: Vec<u8> = numbered(&network, &[7])
            .routes
            .iter()
            .map(|(index, route)| {
                assert_eq!(*index, 7);
                route.destination.length
            })
            .collect();
        assert_eq!(order, [32, 16, 0]);
    }
}
