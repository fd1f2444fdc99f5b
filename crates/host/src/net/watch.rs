//! Being told that a network namespace changed (rtnetlink(7) multicast).
//!
//! Owns: a socket that stays in the namespace it was made in. Never: says what changed: whoever is told looks
//! again.

use super::NetlinkError;
use super::netlink::parse;
use netlink_packet_core::NetlinkPayload;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::neighbour::NeighbourState;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, RawFd};

/// RTMGRP_LINK, _NEIGH, _IPV4_IFADDR, _IPV4_ROUTE, _IPV6_IFADDR, _IPV6_ROUTE of linux/rtnetlink.h.
const GROUPS: u32 = 0x1 | 0x4 | 0x10 | 0x40 | 0x100 | 0x400;

/// Readable when links, addresses, routes or neighbours have changed since the last [`Watch::drain`].
#[derive(Debug)]
pub struct Watch {
    socket: Socket,
}

impl Watch {
    /// Begins to watch this thread's namespace.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn begin() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::new("watching a network namespace", "", source);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind(&SocketAddr::new(0, GROUPS)).map_err(failed)?;
        socket.set_non_blocking(true).map_err(failed)?;
        Ok(Self { socket })
    }

    /// Takes in all that was told; true if any of it matters. More than the socket holds is a change too.
    ///
    /// # Errors
    /// recv(2).
    pub fn drain(&self) -> io::Result<bool> {
        let mut changed = false;
        loop {
            match self.socket.recv_from_full() {
                // What cannot be read is a change like any other.
                Ok((bytes, _)) => changed |= parse(&bytes).map_or(true, |all| all.iter().any(matters)),
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Ok(changed),
                Err(error) if error.raw_os_error() == Some(libc::ENOBUFS) => changed = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) => return Err(error),
            }
        }
    }
}

/// Neighbours come and go by themselves; only permanent ones are passed on.
fn matters(message: &netlink_packet_core::NetlinkMessage<RouteNetlinkMessage>) -> bool {
    match &message.payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewNeighbour(it) | RouteNetlinkMessage::DelNeighbour(it),
        ) => it.header.state == NeighbourState::Permanent,
        _ => true,
    }
}

impl AsRawFd for Watch {
    fn as_raw_fd(&self) -> RawFd {
        self.socket.as_raw_fd()
    }
}

impl AsFd for Watch {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}
