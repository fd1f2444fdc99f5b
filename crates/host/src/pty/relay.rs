//! Copies between a user's terminal and a pty master.
//!
//! ```text
//!  input ─► to_master ─► master      master ─► to_output ─► output
//!           4 KiB each; a full direction is not read from; EIO or 0 from the master is the hang-up
//! ```
//!
//! Owns: the two buffers. Never: decides when to stop: the caller steps it and watches its own descriptors
//! in the same poll. Input and output are lent and may be shared with a shell, so they stay blocking.

use super::{WindowSize, set_window_size, window_size};
use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use nix::fcntl::{FcntlArg, OFlag};
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

/// A pipe that polls writable takes this much without blocking (PIPE_BUF).
const CHUNK_BYTES: usize = 4096;

/// Why [`Relay::run`] returned.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayEvent {
    /// Nobody has the slave open any more and all of its output was written.
    HungUp,
    /// The watched descriptor at this index is readable or hung up.
    Watched(usize),
    /// The deadline passed.
    Deadline,
}

#[derive(Debug, Default)]
struct Buffer {
    bytes: Vec<u8>,
    written: usize,
}

impl Buffer {
    fn is_empty(&self) -> bool {
        self.written == self.bytes.len()
    }

    /// `None` at the end (0 or a hang-up), else whether anything came.
    fn fill(&mut self, from: BorrowedFd<'_>) -> io::Result<Option<bool>> {
        self.bytes.resize(CHUNK_BYTES, 0);
        self.written = 0;
        let read = nix::unistd::read(from, &mut self.bytes);
        self.bytes.truncate(*read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) | Err(Errno::EIO) => Ok(None),
            Ok(_) => Ok(Some(true)),
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(Some(false)),
            Err(errno) => Err(errno.into()),
        }
    }

    /// False when the other side is gone; what is left is discarded then.
    fn drain(&mut self, to: BorrowedFd<'_>) -> io::Result<bool> {
        match nix::unistd::write(to, self.bytes.get(self.written..).unwrap_or_default()) {
            Ok(n) => {
                self.written += n;
                Ok(true)
            }
            Err(Errno::EAGAIN | Errno::EINTR) => Ok(true),
            Err(Errno::EPIPE | Errno::EIO) => {
                self.written = self.bytes.len();
                Ok(false)
            }
            Err(errno) => Err(errno.into()),
        }
    }
}

/// Copies between a terminal and a master until the slave hangs up.
#[derive(Debug)]
pub struct Relay<'a> {
    input: Option<BorrowedFd<'a>>,
    output: Option<BorrowedFd<'a>>,
    master: OwnedFd,
    to_master: Buffer,
    to_output: Buffer,
    hung_up: bool,
}

impl<'a> Relay<'a> {
    /// Between the user's `input` and `output` and a master that is ours alone. The master takes the window
    /// size of the output if that is a terminal.
    ///
    /// # Errors
    /// What fcntl(2) reports on the master.
    pub fn new(input: BorrowedFd<'a>, output: BorrowedFd<'a>, master: OwnedFd) -> io::Result<Self> {
        let flags = OFlag::from_bits_retain(nix::fcntl::fcntl(&master, FcntlArg::F_GETFL)?);
        nix::fcntl::fcntl(&master, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        let relay = Self {
            input: Some(input),
            output: Some(output),
            master,
            to_master: Buffer::default(),
            to_output: Buffer::default(),
            hung_up: false,
        };
        relay.follow_window_size();
        Ok(relay)
    }

    /// Gives the master the window size the user's terminal has now: call it on SIGWINCH.
    pub fn follow_window_size(&self) {
        let of = |fd: Option<BorrowedFd<'_>>| fd.and_then(|fd| window_size(fd).ok());
        if let Some(size) = of(self.output).or_else(|| of(self.input)) {
            // A master whose slave is gone needs no size.
            let _ = set_window_size(self.master.as_fd(), WindowSize { ..size });
        }
    }

    /// Copies until the slave hangs up, a watched descriptor has an event, or the deadline passes. May be
    /// called again after the latter two.
    ///
    /// # Errors
    /// An I/O error other than either side being gone.
    pub fn run(&mut self, watched: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<RelayEvent> {
        loop {
            if self.hung_up && self.to_output.is_empty() {
                return Ok(RelayEvent::HungUp);
            }
            let ready = self.wait(watched, deadline)?;
            if let Some(index) = ready.watched {
                return Ok(RelayEvent::Watched(index));
            }
            if !ready.any {
                return Ok(RelayEvent::Deadline);
            }
            if ready.master_in {
                match self.to_output.fill(self.master.as_fd())? {
                    None => self.hung_up = true,
                    Some(_) if self.output.is_none() => self.to_output.written = self.to_output.bytes.len(),
                    Some(_) => {}
                }
            }
            if ready.output
                && let Some(output) = self.output
                && !self.to_output.drain(output)?
            {
                self.output = None;
            }
            if ready.input
                && let Some(input) = self.input
                && self.to_master.fill(input)?.is_none()
            {
                self.input = None;
            }
            if ready.slave_gone {
                // Nobody reads it any more, and a hang-up stays: polling for room would spin.
                self.to_master = Buffer::default();
                self.input = None;
            } else if ready.master_out && !self.to_master.drain(self.master.as_fd())? {
                self.input = None;
            }
        }
    }

    fn wait(&self, watched: &[BorrowedFd<'_>], deadline: Deadline) -> io::Result<Ready> {
        let mut fds: Vec<PollFd<'_>> = watched
            .iter()
            .map(|fd| PollFd::new(*fd, PollFlags::POLLIN))
            .collect();
        let master = Some(self.master.as_fd());
        let wanted = [
            (
                master,
                !self.hung_up && self.to_output.is_empty(),
                PollFlags::POLLIN,
            ),
            (master, !self.to_master.is_empty(), PollFlags::POLLOUT),
            (
                self.input,
                !self.hung_up && self.to_master.is_empty(),
                PollFlags::POLLIN,
            ),
            (self.output, !self.to_output.is_empty(), PollFlags::POLLOUT),
        ];
        let mut at = [None; 4];
        for (slot, (fd, wanted, flag)) in at.iter_mut().zip(wanted) {
            if let Some(fd) = fd.filter(|_| wanted) {
                *slot = Some(fds.len());
                fds.push(PollFd::new(fd, flag));
            }
        }
        let [master_in, master_out, input, output] = at;
        let any = deadline::poll(&mut fds, deadline)? > 0;
        let events = |at: Option<usize>| {
            at.and_then(|at| fds.get(at))
                .and_then(PollFd::revents)
                .unwrap_or(PollFlags::empty())
        };
        let has_event = |at| !events(at).is_empty();
        Ok(Ready {
            any,
            watched: (0..watched.len()).find(|index| has_event(Some(*index))),
            master_in: has_event(master_in),
            master_out: has_event(master_out),
            slave_gone: events(master_out).contains(PollFlags::POLLHUP),
            input: has_event(input),
            output: has_event(output),
        })
    }
}

struct Ready {
    any: bool,
    watched: Option<usize>,
    master_in: bool,
    master_out: bool,
    slave_gone: bool,
    input: bool,
    output: bool,
}
