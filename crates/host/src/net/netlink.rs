//! A conversation with the kernel about its network (rtnetlink(7)).
//!
//! Owns: one socket, requests and their answers. Never: decides what to ask. The kernel answers before it
//! returns from the send, so nothing waits but for a kernel that does not answer at all.

use crate::deadline::{Deadline, readable};
use netlink_packet_core::{
    NLM_F_ACK, NLM_F_DUMP, NLM_F_REQUEST, NetlinkHeader, NetlinkMessage, NetlinkPayload,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::protocols::NETLINK_ROUTE;
use netlink_sys::{Socket, SocketAddr};
use std::io;
use std::os::fd::AsFd;
use std::time::Duration;

/// For a kernel that answers in microseconds.
const ANSWER: Duration = Duration::from_secs(30);

/// A dump that changes while it is read begins again at most this often; then what was read counts, and the
/// change is told to whoever watches.
const MOST_DUMPS: u32 = 8;

/// The flag of linux/netlink.h that a dump is inconsistent.
const DUMP_INTERRUPTED: u16 = 0x10;

/// Why the kernel did not do what was asked.
#[derive(Debug, thiserror::Error)]
#[error("{step}{}{subject}", if subject.is_empty() { "" } else { " " })]
pub struct NetlinkError {
    /// What was being done.
    pub step: &'static str,
    /// To what.
    pub subject: String,
    /// The kernel's reason.
    #[source]
    pub source: io::Error,
}

impl NetlinkError {
    /// An error of `step` on `subject`.
    pub fn new(step: &'static str, subject: impl Into<String>, source: io::Error) -> Self {
        Self {
            step,
            subject: subject.into(),
            source,
        }
    }

    /// Whether the kernel refused with this errno.
    #[must_use]
    pub fn is(&self, errno: nix::errno::Errno) -> bool {
        self.source.raw_os_error() == Some(errno as i32)
    }
}

/// One socket, in the namespace it was made in.
#[derive(Debug)]
pub struct Netlink {
    socket: Socket,
    sequence: u32,
}

impl Netlink {
    /// A socket in this thread's namespace.
    ///
    /// # Errors
    /// socket(2), bind(2).
    pub fn open() -> Result<Self, NetlinkError> {
        let failed = |source| NetlinkError::new("opening a netlink socket", "", source);
        let mut socket = Socket::new(NETLINK_ROUTE).map_err(failed)?;
        socket.bind_auto().map_err(failed)?;
        socket.connect(&SocketAddr::new(0, 0)).map_err(failed)?;
        Ok(Self { socket, sequence: 0 })
    }

    /// Asks for a change and waits until it is made. `flags` are NLM_F_CREATE and the like.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn change(
        &mut self,
        step: &'static str,
        subject: &str,
        message: RouteNetlinkMessage,
        flags: u16,
    ) -> Result<(), NetlinkError> {
        let failed = |source| NetlinkError::new(step, subject, source);
        let sequence = self.send(message, flags | NLM_F_ACK).map_err(failed)?;
        loop {
            for answer in self.receive().map_err(failed)? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                if let NetlinkPayload::Error(error) = answer.payload {
                    return match error.code {
                        None => Ok(()),
                        Some(_) => Err(failed(error.to_io())),
                    };
                }
            }
        }
    }

    /// Everything of one kind.
    ///
    /// # Errors
    /// The kernel's reason.
    pub fn dump(
        &mut self,
        step: &'static str,
        message: &RouteNetlinkMessage,
    ) -> Result<Vec<RouteNetlinkMessage>, NetlinkError> {
        let failed = |source| NetlinkError::new(step, "", source);
        let mut found = Vec::new();
        for _ in 0..MOST_DUMPS {
            found.clear();
            let sequence = self.send(message.clone(), NLM_F_DUMP).map_err(failed)?;
            if self.collect(sequence, &mut found).map_err(failed)? {
                break;
            }
        }
        Ok(found)
    }

    /// Reads one dump; false if it changed meanwhile.
    fn collect(&mut self, sequence: u32, found: &mut Vec<RouteNetlinkMessage>) -> io::Result<bool> {
        let mut consistent = true;
        loop {
            for answer in self.receive()? {
                if answer.header.sequence_number != sequence {
                    continue;
                }
                consistent &= answer.header.flags & DUMP_INTERRUPTED == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(message) => found.push(message),
                    NetlinkPayload::Done(_) => return Ok(consistent),
                    NetlinkPayload::Error(error) if error.code.is_some() => return Err(error.to_io()),
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, message: RouteNetlinkMessage, flags: u16) -> io::Result<u32> {
        self.sequence = self.sequence.wrapping_add(1);
        let mut header = NetlinkHeader::default();
        header.flags = NLM_F_REQUEST | flags;
        header.sequence_number = self.sequence;
        let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(message));
        message.finalize();
        let mut bytes = vec![0; message.buffer_len()];
        message.serialize(&mut bytes);
        self.socket.send(&bytes, 0)?;
        Ok(self.sequence)
    }

    /// One datagram's messages.
    fn receive(&self) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
        if !readable(self.socket.as_fd(), Deadline::after(ANSWER))? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("the kernel did not answer within {} s", ANSWER.as_secs()),
            ));
        }
        let (bytes, _) = self.socket.recv_from_full()?;
        parse(&bytes)
    }
}

/// The messages of one datagram.
pub(super) fn parse(bytes: &[u8]) -> io::Result<Vec<NetlinkMessage<RouteNetlinkMessage>>> {
    let mut rest = bytes;
    let mut messages = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<RouteNetlinkMessage>::deserialize(rest)
            .map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error.to_string()))?;
        // Each begins at a multiple of four bytes.
        let length = usize::try_from(message.header.length).unwrap_or(usize::MAX);
        let next = length.checked_next_multiple_of(4).unwrap_or(usize::MAX);
        rest = rest.get(next..).filter(|_| length > 0).unwrap_or_default();
        messages.push(message);
    }
    Ok(messages)
}

#[cfg(test)]
mod tests {
    use super::*;
    use netlink_packet_route::link::{LinkAttribute, LinkMessage};

    #[test]
    fn loopback_is_there_and_what_is_not_is_refused_by_name() {
        let mut netlink = Netlink::open().unwrap();
        let links = netlink
            .dump(
                "listing links",
                &RouteNetlinkMessage::GetLink(LinkMessage::default()),
            )
            .unwrap();
        let is_lo = |message: &RouteNetlinkMessage| match message {
            RouteNetlinkMessage::NewLink(link) => {
                link.attributes.contains(&LinkAttribute::IfName("lo".into()))
            }
            _ => false,
        };
        assert!(links.iter().any(is_lo), "{links:?}");
        let mut absent = LinkMessage::default();
        absent.header.index = 0x7fff_fff0;
        let error = netlink
            .change("changing", "nothing", RouteNetlinkMessage::SetLink(absent), 0)
            .unwrap_err();
        assert!(!error.is(nix::errno::Errno::EEXIST));
        assert_eq!(error.to_string(), "changing nothing");
    }
}
