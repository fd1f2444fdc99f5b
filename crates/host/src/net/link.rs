//! One link of this thread's namespace: looked up, switched, named, removed.
//!
//! Owns: the requests. Never: undoes anything by itself.

use super::{Netlink, NetlinkError};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkFlags, LinkMessage};
use nix::errno::Errno;
use std::io;

/// What is said of a name that does not fit: IFNAMSIZ with its final zero is 16.
const NAME_RULE: &str = "expected 1 to 15 bytes, no `/`, `:` or blank, neither `.` nor `..`";

/// Checks an interface name as the kernel does (dev_valid_name).
///
/// # Errors
/// What is expected.
pub fn check_name(name: &str) -> Result<(), String> {
    let odd = |byte: u8| byte == b'/' || byte == b':' || byte == 0 || byte.is_ascii_whitespace();
    if name.is_empty() || name.len() > 15 || name == "." || name == ".." || name.bytes().any(odd) {
        return Err(format!("name of {} bytes: {NAME_RULE}", name.len()));
    }
    Ok(())
}

/// Index of the link `name`, `None` if there is none.
///
/// # Errors
/// The kernel's reason.
pub fn index(name: &str) -> Result<Option<u32>, NetlinkError> {
    match nix::net::if_::if_nametoindex(name) {
        Ok(index) => Ok(Some(index)),
        Err(Errno::ENODEV | Errno::ENXIO) => Ok(None),
        Err(errno) => Err(NetlinkError::new("looking for", name, errno.into())),
    }
}

/// Name of the link with this index, `None` if there is none. A filter whose link is gone has index 0, for which the
/// library has an empty name.
#[must_use]
pub fn name(index: u32) -> Option<String> {
    let name = nix::net::if_::if_indextoname(index).ok()?;
    name.into_string().ok().filter(|name| !name.is_empty())
}

fn message(index: u32) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message
}

fn set(
    netlink: &mut Netlink,
    step: &'static str,
    index: u32,
    attribute: LinkAttribute,
) -> Result<(), NetlinkError> {
    let mut message = message(index);
    message.attributes.push(attribute);
    let subject = name(index).unwrap_or_else(|| format!("interface {index}"));
    netlink.change(step, &subject, RouteNetlinkMessage::SetLink(message), 0)
}

/// Switches it on or off.
///
/// # Errors
/// The kernel's reason.
pub fn set_up(netlink: &mut Netlink, index: u32, up: bool) -> Result<(), NetlinkError> {
    set_flag(netlink, index, LinkFlags::Up, up)
}

/// Switches the search for neighbours (ARP, NDP) on or off.
///
/// # Errors
/// The kernel's reason.
pub fn set_arp(netlink: &mut Netlink, index: u32, arp: bool) -> Result<(), NetlinkError> {
    set_flag(netlink, index, LinkFlags::Noarp, !arp)
}

fn set_flag(netlink: &mut Netlink, index: u32, flag: LinkFlags, on: bool) -> Result<(), NetlinkError> {
    let mut message = message(index);
    message.header.change_mask = flag;
    if on {
        message.header.flags = flag;
    }
    let subject = name(index).unwrap_or_else(|| format!("interface {index}"));
    netlink.change("switching", &subject, RouteNetlinkMessage::SetLink(message), 0)
}

/// Gives it another name; older kernels want it down for that.
///
/// # Errors
/// The kernel's reason; `EEXIST` when the name is taken.
pub fn set_name(netlink: &mut Netlink, index: u32, name: &str) -> Result<(), NetlinkError> {
    set(netlink, "renaming", index, LinkAttribute::IfName(name.to_owned()))
}

/// Gives it another MAC address.
///
/// # Errors
/// The kernel's reason.
pub fn set_mac(netlink: &mut Netlink, index: u32, mac: [u8; 6]) -> Result<(), NetlinkError> {
    let attribute = LinkAttribute::Address(mac.to_vec());
    set(netlink, "setting the MAC address of", index, attribute)
}

/// Sets the largest packet in bytes.
///
/// # Errors
/// The kernel's reason.
pub fn set_mtu(netlink: &mut Netlink, index: u32, mtu: u32) -> Result<(), NetlinkError> {
    set(netlink, "setting the MTU of", index, LinkAttribute::Mtu(mtu))
}

/// Removes the link `name`; one that is not there is success.
///
/// # Errors
/// The kernel's reason.
pub fn remove(netlink: &mut Netlink, name: &str) -> Result<(), NetlinkError> {
    let Some(index) = index(name)? else { return Ok(()) };
    match netlink.change("removing", name, RouteNetlinkMessage::DelLink(message(index)), 0) {
        Err(error) if error.is(Errno::ENODEV) => Ok(()),
        other => other,
    }
}

/// Keeps this namespace's own IPv6 off the link: no address of its own, no router solicitation, no multicast
/// report of the host's in the guest's stream. A kernel without IPv6 has nothing to switch off.
///
/// # Errors
/// What writing the switch reports.
pub(crate) fn silence_ipv6(name: &str) -> io::Result<()> {
    match std::fs::write(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6"), "1") {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_as_the_kernel_takes_them() {
        for good in ["eth0", "a", "fifteen-bytes-x", "net1.100", "wän"] {
            check_name(good).unwrap();
        }
        for bad in ["", "sixteen-bytes-xx", "a/b", "a b", "a:b", ".", "..", "a\tb"] {
            assert!(check_name(bad).unwrap_err().contains("expected"), "{bad:?}");
        }
    }
}
