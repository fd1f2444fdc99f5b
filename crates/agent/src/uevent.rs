//! Waiting for devices: the kernel's uevents (netlink(7), NETLINK_KOBJECT_UEVENT).
//!
//! Owns: "look, then wait for a change, then look again" with a deadline; the socket of the last wait, for the next one.
//! Never: polls. Called at boot for the agent's ports and by `storage` for disks and shared file systems.

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, setsockopt, socket,
    sockopt,
};
use nix::sys::time::TimeVal;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// A machine that is saved goes on with it: then nothing has to be made before the first wait. Whoever waits has it
/// alone; who waits beside makes another.
static KEPT: Mutex<Option<OwnedFd>> = Mutex::new(None);

/// Bytes of events that are kept while nobody waits. What is lost beyond is told, and a reason to look.
const KEPT_BYTES: usize = 16 << 10;

/// Longest event there is (`UEVENT_BUFFER_SIZE` is 2048, and the path before it).
const MAX_EVENT: usize = 8192;

/// Calls `look` until it finds something: at once, then after each uevent. `None` at the deadline.
///
/// # Errors
/// The netlink socket's.
pub(crate) fn wait_for<T>(deadline: Duration, mut look: impl FnMut() -> Option<T>) -> io::Result<Option<T>> {
    let end = Instant::now() + deadline;
    let kept = take();
    if kept.is_none()
        && let Some(found) = look()
    {
        return Ok(Some(found));
    }
    let events = kept.map_or_else(listen, Ok)?;
    let found = wait(&events, end, look);
    keep(events);
    found
}

/// Makes the socket now that the first wait will need.
///
/// # Errors
/// The kernel's.
pub(crate) fn prepare() -> io::Result<()> {
    keep(take().map_or_else(listen, Ok)?);
    Ok(())
}

fn take() -> Option<OwnedFd> {
    KEPT.lock().unwrap_or_else(PoisonError::into_inner).take()
}

fn keep(events: OwnedFd) {
    *KEPT.lock().unwrap_or_else(PoisonError::into_inner) = Some(events);
}

fn listen() -> io::Result<OwnedFd> {
    let events = socket(
        AddressFamily::Netlink,
        SockType::Datagram,
        SockFlag::SOCK_CLOEXEC,
        SockProtocol::NetlinkKObjectUEvent,
    )?;
    setsockopt(&events, sockopt::RcvBuf, &KEPT_BYTES)?;
    // Group 1: the kernel's own events.
    bind(events.as_raw_fd(), &NetlinkAddr::new(0, 1))?;
    Ok(events)
}

fn wait<T>(events: &OwnedFd, end: Instant, mut look: impl FnMut() -> Option<T>) -> io::Result<Option<T>> {
    let mut message = [0_u8; MAX_EVENT];
    loop {
        // Which device it was does not matter: the look tells. All that is queued before it is one reason to look, and
        // what comes after is not missed.
        while matches!(
            recv(events.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT),
            Ok(_) | Err(Errno::ENOBUFS | Errno::EINTR)
        ) {}
        if let Some(found) = look() {
            return Ok(Some(found));
        }
        let left = end.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Ok(None);
        }
        // A time-out of 0 is none.
        let left = TimeVal::new(
            i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
            i64::from(left.subsec_micros()).max(1),
        );
        setsockopt(events, sockopt::ReceiveTimeout, &left)?;
        match recv(events.as_raw_fd(), &mut message, MsgFlags::empty()) {
            // The deadline, or events that were lost.
            Ok(_) | Err(Errno::EAGAIN | Errno::ENOBUFS | Errno::EINTR) => {}
            Err(errno) => return Err(errno.into()),
        }
    }
}
