//! One stream from the host to a process in the guest.
//!
//! Owns: the bytes the process has not taken yet, at most the host's window; what is to be said about it.
//! Never: touches the port. Called by `mux`.

use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// At least this much progress is worth an acknowledgement while more is waiting.
const ACK_BYTES: u64 = 64 * 1024;

/// What the host is to be told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Notice {
    Resume(u64),
    Ack(u64),
    /// At its end, or the process reads no more: the stream is to be forgotten.
    Close,
}

#[derive(Debug)]
pub(super) struct Input {
    sink: Option<OwnedFd>,
    /// Writing may succeed.
    pub(super) writable: bool,
    waiting: Vec<u8>,
    taken: usize,
    /// Received, in order.
    expected: u64,
    written: u64,
    told: u64,
    eof: bool,
    resume_due: bool,
    /// The offset for which a gap was reported: once is enough.
    gap_at: Option<u64>,
}

impl Input {
    pub(super) fn new(sink: OwnedFd) -> Self {
        Self {
            sink: Some(sink),
            writable: true,
            waiting: Vec::new(),
            taken: 0,
            expected: 0,
            written: 0,
            told: 0,
            eof: false,
            resume_due: true,
            gap_at: None,
        }
    }

    pub(super) fn sink(&self) -> Option<&OwnedFd> {
        self.sink.as_ref()
    }

    /// A new connection: the host is to start over where we are.
    pub(super) fn restart(&mut self) {
        self.resume_due = true;
        self.gap_at = None;
    }

    /// Bytes of the stream from `offset`.
    pub(super) fn receive(&mut self, offset: u64, bytes: &[u8]) {
        let Some(known) = self.expected.checked_sub(offset) else {
            if self.gap_at != Some(self.expected) {
                self.gap_at = Some(self.expected);
                self.resume_due = true;
            }
            return;
        };
        let Some(fresh) = usize::try_from(known).ok().and_then(|known| bytes.get(known..)) else {
            return;
        };
        self.expected += fresh.len() as u64;
        let direct = if self.waiting.is_empty() {
            self.write(fresh)
        } else {
            0
        };
        if self.sink.is_some() {
            self.waiting.extend_from_slice(&fresh[direct..]);
        }
    }

    /// The host's input ends at `offset`.
    pub(super) fn receive_eof(&mut self, offset: u64) {
        if offset == self.expected {
            self.eof = true;
        } else if offset > self.expected {
            self.resume_due = true;
        }
    }

    /// Whether [`Input::pump`] would do something.
    pub(super) fn can_write(&self) -> bool {
        self.writable && !self.waiting.is_empty() && self.sink.is_some()
    }

    /// Writes what is waiting.
    pub(super) fn pump(&mut self) {
        if !self.can_write() {
            return;
        }
        let waiting = std::mem::take(&mut self.waiting);
        self.taken += self.write(&waiting[self.taken..]);
        if self.taken < waiting.len() {
            self.waiting = waiting;
        } else {
            self.taken = 0;
        }
    }

    /// The process reads no more, as far as we are concerned.
    pub(super) fn finish(&mut self) {
        self.sink = None;
    }

    /// What the host is to be told now.
    pub(super) fn notice(&mut self) -> Option<Notice> {
        if self.sink.is_none() || (self.eof && self.waiting.is_empty()) {
            self.sink = None;
            return Some(Notice::Close);
        }
        if self.resume_due {
            self.resume_due = false;
            self.told = self.written;
            return Some(Notice::Resume(self.expected));
        }
        let progress = self.written - self.told;
        if progress >= ACK_BYTES || (progress > 0 && self.waiting.is_empty()) {
            self.told = self.written;
            return Some(Notice::Ack(self.written));
        }
        None
    }

    fn write(&mut self, bytes: &[u8]) -> usize {
        let mut done = 0;
        while let Some(sink) = &self.sink
            && self.writable
            && done < bytes.len()
        {
            match rustix::io::write(sink, &bytes[done..]) {
                Ok(count) => done += count,
                Err(Errno::INTR) => {}
                Err(Errno::AGAIN) => self.writable = false,
                // EPIPE; EIO for a terminal without a slave.
                Err(_) => self.sink = None,
            }
        }
        self.written += done as u64;
        done
    }
}
