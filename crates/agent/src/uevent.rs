//! Waiting for devices: the kernel's uevents (netlink(7), NETLINK_KOBJECT_UEVENT).
//!
//! Owns: "look, then wait for a change, then look again" with a deadline. Never: polls.
//! Called at boot for the agent's ports and by `storage` for disks and shared file systems.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::time::{Duration, Instant};

/// Calls `look` until it finds something: at once, then after each uevent. `None` at the deadline.
///
/// # Errors
/// The netlink socket's.
pub(crate) fn wait_for<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> io::Result<Option<T>> {
    if let Some(found) = look() {
        return Ok(Some(found));
    }
    let end = Instant::now() + deadline;
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    // Group 1: the kernel's own events. Listening comes before the second look, so none is missed.
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    loop {
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        poll(&mut [PollFd::new(events.as_fd(), PollFlags::POLLIN)], timeout)?;
        let mut message = [0_u8; 8192];
        // Which device it was does not matter: the next look tells. All that is queued is one reason to look.
        while recv(events.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT).is_ok() {}
    }
}
