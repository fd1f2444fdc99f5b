//! Messages with descriptors over a unix stream socket (unix(7), SCM_RIGHTS).
//!
//! A message is its length as a little-endian u32, which carries the descriptors, and its bytes.
//!
//! Owns: the framing. Never: what is said. Called by `launch`, between the agent and the fork server.

use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, UnixAddr, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut, Read, Write};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Most bytes of one message: a spec with a megabyte of environment fits.
pub(crate) const MAX_BYTES: usize = 16 << 20;
/// Most descriptors of one message.
pub(crate) const MAX_DESCRIPTORS: usize = 8;

/// Sends `body` and `descriptors`.
///
/// # Errors
/// `EINVAL` above a maximum; the socket's.
pub(crate) fn send(socket: &UnixStream, body: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    let length = u32::try_from(body.len()).map_err(|_| io::Error::from_raw_os_error(libc::EINVAL))?;
    if body.len() > MAX_BYTES || descriptors.len() > MAX_DESCRIPTORS {
        return Err(io::Error::from_raw_os_error(libc::EINVAL));
    }
    let header = length.to_le_bytes();
    let raw: Vec<i32> = descriptors.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    let sent = sendmsg::<UnixAddr>(
        socket.as_raw_fd(),
        &[IoSlice::new(&header)],
        control,
        MsgFlags::MSG_NOSIGNAL,
        None,
    )?;
    (&mut &*socket).write_all(&header[sent..])?;
    (&mut &*socket).write_all(body)
}

/// Receives one message; descriptors are close-on-exec. `None` at the end of the stream.
///
/// # Errors
/// `UnexpectedEof` inside a message; `InvalidData` for a length above the maximum; the socket's.
pub(crate) fn receive(socket: &UnixStream) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut header = [0_u8; 4];
    let mut space = nix::cmsg_space!([i32; MAX_DESCRIPTORS]);
    let mut parts = [IoSliceMut::new(&mut header)];
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
    let mut descriptors = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(raw) = control {
            // SAFETY: the kernel has just installed these descriptors for us; nothing else owns them.
            descriptors.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
        }
    }
    let got = message.bytes;
    if got == 0 {
        return Ok(None);
    }
    (&mut &*socket).read_exact(&mut header[got..])?;
    let length = u32::from_le_bytes(header) as usize;
    if length > MAX_BYTES {
        return Err(io::Error::from(io::ErrorKind::InvalidData));
    }
    let mut body = vec![0; length];
    (&mut &*socket).read_exact(&mut body)?;
    Ok(Some((body, descriptors)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsFd;

    #[test]
    fn a_message_arrives_with_its_descriptors() {
        let (left, right) = UnixStream::pair().unwrap();
        let (mut reader, writer) = std::io::pipe().unwrap();
        let body = vec![7_u8; 300_000];
        let expected = body.clone();
        let sender = std::thread::spawn(move || {
            send(&left, &body, &[writer.as_fd()]).unwrap();
        });
        let (got, descriptors) = receive(&right).unwrap().unwrap();
        sender.join().unwrap();
        assert_eq!(got, expected);
        assert_eq!(descriptors.len(), 1);
        let mut file = std::fs::File::from(descriptors.into_iter().next().unwrap());
        file.write_all(b"x").unwrap();
        drop(file);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
        assert!(receive(&right).unwrap().is_none());
    }
}
