//! What can be said of a request before anything is touched.
//!
//! Owns: what is refused. Never: touches a card. Called by the network's one call.

use super::NetworkError;
use bulkhead_host::net::link::check_name;
use bulkhead_protocol::GuestNetwork;
use std::collections::BTreeSet;

/// The least MTU of an Ethernet device (RFC 791).
const LEAST_MTU: u32 = 68;
/// What virtio-net takes at most.
const MOST_MTU: u32 = 65535;

/// Checks names, addresses and that everything is on an interface of the request.
pub(super) fn check(network: &GuestNetwork) -> Result<(), NetworkError> {
    let mut names = BTreeSet::new();
    let mut cards = BTreeSet::new();
    for one in &network.interfaces {
        let it = &one.interface;
        let wrong = |what: String| {
            Err(NetworkError::Invalid {
                interface: it.name.clone(),
                what,
            })
        };
        if let Err(what) = check_name(&it.name) {
            return wrong(what);
        }
        if it.name == "lo" {
            return wrong("the guest has its own: expected another name".to_owned());
        }
        if !names.insert(&it.name) {
            return wrong("two interfaces have this name: expected one".to_owned());
        }
        if !cards.insert(&one.pci_path) {
            return wrong(format!(
                "PCI path {:?} belongs to another interface",
                one.pci_path
            ));
        }
        if crate::pci::slots(&one.pci_path).is_none() {
            return wrong(format!(
                "PCI path {:?}: expected one such as 04.0/00.0",
                one.pci_path
            ));
        }
        if !(LEAST_MTU..=MOST_MTU).contains(&it.mtu) {
            return wrong(format!("MTU {}: expected {LEAST_MTU} to {MOST_MTU}", it.mtu));
        }
        let mut addresses = BTreeSet::new();
        for address in &it.addresses {
            if !addresses.insert(address.address) {
                return wrong(format!("duplicate address {address}: expected each address once"));
            }
        }
    }
    let routes = network.routes.iter().map(|route| &route.interface);
    let neighbours = network.neighbours.iter().map(|neighbour| &neighbour.interface);
    for interface in routes.chain(neighbours) {
        if !names.contains(interface) {
            return Err(NetworkError::Invalid {
                interface: interface.clone(),
                what: "a route or neighbour names it: expected an interface of the same request".to_owned(),
            });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::{Interface, InterfaceAddress, Mac, Neighbour};
    use bulkhead_protocol::GuestInterface;

    fn network() -> GuestNetwork {
        let interface = |name: &str, pci: &str| GuestInterface {
            pci_path: pci.into(),
            interface: Interface {
                name: name.into(),
                mtu: 1500,
                addresses: vec![InterfaceAddress {
                    address: "10.0.0.2".parse().unwrap(),
                    prefix: 24,
                    peer: None,
                    broadcast: None,
                    scope: 0,
                }],
                ..Interface::default()
            },
        };
        GuestNetwork {
            interfaces: vec![interface("eth0", "04.0/00.0"), interface("eth1", "05.0/00.0")],
            ..GuestNetwork::default()
        }
    }

    #[test]
    fn a_request_that_cannot_be_met_names_interface_and_reason() {
        check(&network()).unwrap();
        let refused = |change: &dyn Fn(&mut GuestNetwork), interface: &str, what: &str| {
            let mut network = network();
            change(&mut network);
            let text = check(&network).unwrap_err().to_string();
            assert!(text.contains(&format!("interface {interface:?}")), "{text}");
            assert!(text.contains(what), "{text}");
        };
        let long = "a-name-of-sixteen";
        refused(
            &|n| n.interfaces[0].interface.name = long.into(),
            long,
            "1 to 15 bytes",
        );
        refused(
            &|n| n.interfaces[1].interface.name = "eth0".into(),
            "eth0",
            "two interfaces",
        );
        refused(&|n| n.interfaces[1].interface.name = "lo".into(), "lo", "its own");
        refused(
            &|n| n.interfaces[1].pci_path = "04.0/00.0".into(),
            "eth1",
            "another interface",
        );
        refused(&|n| n.interfaces[1].pci_path = "/etc".into(), "eth1", "such as");
        refused(&|n| n.interfaces[1].interface.mtu = 9, "eth1", "68 to 65535");
        refused(
            &|n| {
                let again = n.interfaces[1].interface.addresses[0].clone();
                n.interfaces[1].interface.addresses.push(again);
            },
            "eth1",
            "duplicate address 10.0.0.2/24",
        );
        refused(
            &|n| {
                n.neighbours.push(Neighbour {
                    interface: "eth7".into(),
                    address: "10.0.0.1".parse().unwrap(),
                    mac: Mac::default(),
                    router: false,
                });
            },
            "eth7",
            "same request",
        );
    }
}
