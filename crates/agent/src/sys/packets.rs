//! Packets with descriptors over a unix socket that keeps their bounds (unix(7), SOCK_SEQPACKET, SCM_RIGHTS).
//!
//! Owns: one packet at a time, whole. Never: what it says. Called by `launch`, between a process that is being started and the
//! agent.

use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recvmsg,
    sendmsg, socketpair,
};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// Longest packet in bytes.
const MAX_BYTES: usize = 16 << 10;

/// Two connected ends, close-on-exec.
///
/// # Errors
/// The kernel's.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?)
}

/// Sends one packet.
///
/// # Errors
/// The kernel's: `EPIPE` if nobody listens.
pub(crate) fn send(socket: &OwnedFd, body: &[u8], descriptor: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let raw: Vec<i32> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    // A reason longer than a packet is cut: its beginning is what counts.
    let body = body.get(..MAX_BYTES).unwrap_or(body);
    sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(body)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    Ok(())
}

/// Receives one packet and the descriptor it may carry; `None` when the other end is closed.
///
/// # Errors
/// The kernel's: `EAGAIN` if the socket has a time-out.
pub(crate) fn receive(socket: &OwnedFd) -> io::Result<Option<(Vec<u8>, Option<OwnedFd>)>> {
    let mut body = vec![0; MAX_BYTES];
    let mut space = nix::cmsg_space!([i32; 1]);
    let mut parts = [IoSliceMut::new(&mut body)];
    let message = loop {
        match recvmsg::<UnixAddr>(
            socket.as_raw_fd(),
            &mut parts,
            Some(&mut space),
            MsgFlags::MSG_CMSG_CLOEXEC,
        ) {
            Err(nix::errno::Errno::EINTR) => {}
            other => break other?,
        }
    };
    let mut descriptor = None;
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            for fd in raw {
                // SAFETY: the kernel has just installed this descriptor for us; nothing else owns it.
                let owned = unsafe { OwnedFd::from_raw_fd(fd) };
                descriptor.get_or_insert(owned);
            }
        }
    }
    let length = message.bytes;
    if length == 0 && descriptor.is_none() {
        return Ok(None);
    }
    body.truncate(length);
    Ok(Some((body, descriptor)))
}
