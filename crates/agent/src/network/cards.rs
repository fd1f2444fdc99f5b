//! Cards: found by PCI path, given their names, shaped.
//!
//! Owns: the wait for a card that is being plugged, and the order of renames. Never: addresses.

use super::NetworkError;
use crate::{pci, uevent};
use bulkhead_host::net::{Netlink, link};
use bulkhead_model::Interface;
use bulkhead_protocol::GuestNetwork;
use std::fs;
use std::path::Path;
use std::time::Duration;

/// For a card to turn up: 0.1 s on a quiet machine.
const DEADLINE: Duration = Duration::from_secs(60);

/// Indexes of the interfaces' cards in the guest, in their order; waits for each.
pub(super) fn find(network: &GuestNetwork) -> Result<Vec<u32>, NetworkError> {
    let find_one = |one: &bulkhead_protocol::GuestInterface| {
        let interface = || one.interface.name.clone();
        let slots = pci::slots(&one.pci_path).unwrap_or_default();
        uevent::wait_for(DEADLINE, || card(&slots))
            .map_err(|source| NetworkError::Wait {
                interface: interface(),
                source,
            })?
            .ok_or_else(|| NetworkError::NoCard {
                interface: interface(),
                pci_path: one.pci_path.clone(),
                seconds: DEADLINE.as_secs(),
            })
    };
    network.interfaces.iter().map(find_one).collect()
}

/// Index of the interface of the virtio device at a place of the PCI bus.
fn card(slots: &[u8]) -> Option<u32> {
    let device = pci::directory(slots)?;
    let virtio = pci::children(&device).find(|name| name.starts_with("virtio"))?;
    let net = device.join(virtio).join("net");
    let name = pci::children(&net).next()?;
    let index = fs::read_to_string(net.join(name).join("ifindex")).ok()?;
    index.trim().parse().ok()
}

/// Gives every interface its name. A card that has the name of another one steps aside first.
pub(super) fn name(
    netlink: &mut Netlink,
    network: &GuestNetwork,
    indexes: &[u32],
) -> Result<(), NetworkError> {
    let wanted = || network.interfaces.iter().zip(indexes);
    let wrong: Vec<(&Interface, u32)> = wanted()
        .map(|(one, index)| (&one.interface, *index))
        .filter(|(interface, index)| link::name(*index).as_deref() != Some(&interface.name))
        .collect();
    for (interface, index) in &wrong {
        let current = link::name(*index).unwrap_or_default();
        let taken = |name: &str| wrong.iter().any(|(other, _)| other.name == name);
        if taken(&current) {
            rename(netlink, interface, *index, &format!("card-{index}"))?;
        }
    }
    for (interface, index) in &wrong {
        rename(netlink, interface, *index, &interface.name)?;
    }
    Ok(())
}

fn rename(netlink: &mut Netlink, interface: &Interface, index: u32, name: &str) -> Result<(), NetworkError> {
    let kernel = || NetworkError::kernel(&interface.name);
    link::set_up(netlink, index, false).map_err(kernel())?;
    link::set_name(netlink, index, name).map_err(kernel())
}

/// MAC address, MTU and the rest of what is not an address.
pub(super) fn shape(netlink: &mut Netlink, interface: &Interface, index: u32) -> Result<(), NetworkError> {
    let kernel = || NetworkError::kernel(&interface.name);
    let sys = Path::new("/sys/class/net").join(&interface.name);
    let has =
        |file: &str, value: String| fs::read_to_string(sys.join(file)).is_ok_and(|text| text.trim() == value);
    if !has("address", interface.mac.to_string()) {
        link::set_mac(netlink, index, interface.mac.0).map_err(kernel())?;
    }
    if !has("mtu", interface.mtu.to_string()) {
        link::set_mtu(netlink, index, interface.mtu).map_err(kernel())?;
    }
    link::set_arp(netlink, index, interface.arp).map_err(kernel())?;
    // Exactly the addresses of the host's end: none of the kernel's own making (ip-sysctl.rst). A kernel without
    // IPv6 has no such file.
    let mode = format!("/proc/sys/net/ipv6/conf/{}/addr_gen_mode", interface.name);
    let _ = fs::write(mode, "1");
    Ok(())
}
