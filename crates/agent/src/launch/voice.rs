//! What a process that is being started has to say, and what it is told.
//!
//! ```text
//!  process ──Born(pid)+terminal──► ──Ready──► (waits) ◄──go── agent
//!          └──Refused at any point; execve closes the socket, which says the rest
//! ```
//!
//! Owns: the process's end of the socket. The agent's end is in `launcher`.

use super::order::{Message, Refusal};
use crate::sys::packets;
use nix::errno::Errno;
use nix::unistd::{read, write};
use std::io;
use std::os::fd::{BorrowedFd, OwnedFd};

/// The process's end.
pub(super) struct Voice(OwnedFd);

impl Voice {
    /// Speaks through `socket`.
    pub(super) const fn new(socket: OwnedFd) -> Self {
        Self(socket)
    }

    /// It exists. `/proc` is still the guest's then: that knows the pid by which the agent knows this process.
    pub(super) fn born(&self, pid: i32, terminal: Option<BorrowedFd<'_>>) -> io::Result<()> {
        packets::send(&self.0, &encode(&Message::Born(pid)), terminal)
    }

    /// Only the program is missing. A seccomp filter may stand by now: write(2) is what every program needs.
    pub(super) fn ready(&self) -> io::Result<()> {
        self.write(&Message::Ready)
    }

    /// It will not become its program. An agent that no longer listens needs no reason.
    pub(super) fn refused(&self, refusal: Refusal) {
        let _ = self.write(&Message::Refused(refusal));
    }

    /// Waits until the program may run; `false`: it never will.
    pub(super) fn wait(&self) -> io::Result<bool> {
        loop {
            match read(&self.0, &mut [0]) {
                Err(Errno::EINTR) => {}
                other => return Ok(other? != 0),
            }
        }
    }

    fn write(&self, message: &Message) -> io::Result<()> {
        // A packet is sent whole or not at all.
        write(&self.0, &encode(message))?;
        Ok(())
    }
}

fn encode(message: &Message) -> Vec<u8> {
    // Plain enums of text and numbers can always be encoded.
    postcard::to_stdvec(message).unwrap_or_default()
}

/// The pid of this process as the agent knows it.
pub(super) fn outer_pid() -> io::Result<i32> {
    std::fs::read_link("/proc/self")?
        .to_str()
        .and_then(|text| text.parse().ok())
        .ok_or_else(|| io::Error::from(io::ErrorKind::InvalidData))
}
