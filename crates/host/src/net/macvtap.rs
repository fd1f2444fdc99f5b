//! Macvtaps: the frames of one link on descriptors, without a filter.
//!
//! A passthru macvtap takes over the MAC address of its link and all that arrives there; when it goes, the link is
//! as before.
//!
//! Owns: the link and its character device. Never: uses /dev, where the node of an interface is named by its
//! index, which two namespaces may share.

use super::tap::TapError;
use super::{Netlink, NetlinkError, link};
use crate::mount::{Attributes, Tree};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{
    InfoData, InfoKind, InfoMacVtap, LinkAttribute, LinkInfo, LinkMessage, MacVtapMode,
};
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, SFlag, mknodat};
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};

/// Makes the macvtap `name` on the link `lower`, up, and opens one descriptor for each of `queues`, not blocking, with
/// the virtio header on each frame.
///
/// # Errors
/// [`TapError`]; `EINVAL` or `EBUSY` when another macvtap or macvlan is on the link. Nothing is left then.
pub fn macvtap(name: &str, lower: u32, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    let mut netlink = Netlink::open()?;
    make(&mut netlink, name, lower, queues)?;
    let opened = set_up(&mut netlink, name, queues);
    if opened.is_err() {
        // The first error is the one to tell; whoever undoes by the journal comes here again.
        let _ = link::remove(&mut netlink, name);
    }
    opened
}

fn make(netlink: &mut Netlink, name: &str, lower: u32, queues: u16) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Link(lower),
        LinkAttribute::NumTxQueues(u32::from(queues)),
        LinkAttribute::NumRxQueues(u32::from(queues)),
        LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(InfoKind::MacVtap),
            LinkInfo::Data(InfoData::MacVtap(vec![InfoMacVtap::Mode(
                MacVtapMode::Passthrough,
            )])),
        ]),
    ];
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    netlink.change(
        "making the macvtap",
        name,
        RouteNetlinkMessage::NewLink(message),
        flags,
    )
}

fn set_up(netlink: &mut Netlink, name: &str, queues: u16) -> Result<Vec<OwnedFd>, TapError> {
    let failed = |source| TapError::Make {
        name: name.to_owned(),
        source,
    };
    let index = link::index(name)?.ok_or_else(|| failed(io::ErrorKind::NotFound.into()))?;
    let _ = link::silence_ipv6(name);
    link::set_up(netlink, index, true)?;
    let device = device(name, index).map_err(failed)?;
    open_all(device, queues).map_err(failed)
}

/// Number of its character device, from a sysfs of this namespace.
fn device(name: &str, index: u32) -> io::Result<(u64, u64)> {
    let sysfs = Tree::filesystem("sysfs", &[], Attributes::default()).map_err(io::Error::other)?;
    let path = format!("class/net/{name}/macvtap/tap{index}/dev");
    let file = openat(
        sysfs.as_fd(),
        path.as_str(),
        OFlag::O_RDONLY | OFlag::O_CLOEXEC,
        Mode::empty(),
    )?;
    let mut text = String::new();
    std::fs::File::from(file).read_to_string(&mut text)?;
    let numbers = text.trim().split_once(':');
    numbers
        .and_then(|(major, minor)| Some((major.parse().ok()?, minor.parse().ok()?)))
        .ok_or_else(|| io::Error::new(io::ErrorKind::InvalidData, format!("{path}: {text:?}")))
}

/// Opens it by a node of our own in a file system nobody else sees.
fn open_all((major, minor): (u64, u64), queues: u16) -> io::Result<Vec<OwnedFd>> {
    let scratch = Tree::filesystem("tmpfs", &[], Attributes::default()).map_err(io::Error::other)?;
    let number = nix::sys::stat::makedev(major, minor);
    mknodat(
        scratch.as_fd(),
        "tap",
        SFlag::S_IFCHR,
        Mode::from_bits_truncate(0o600),
        number,
    )?;
    let flags = OFlag::O_RDWR | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    (0..queues)
        .map(|_| Ok(openat(scratch.as_fd(), "tap", flags, Mode::empty())?))
        .collect()
}
