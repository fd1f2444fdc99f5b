//! One stream from the host to a process in the guest.
//!
//! Owns: the bytes the process has not taken yet, at most the host's window; what is to be said about it.
//! Never: touches the port. Called by `mux`.

use crate::frame::INPUT_WINDOW_BYTES;
use rustix::io::Errno;
use std::os::fd::OwnedFd;

/// Progress that is worth an acknowledgement: a write to the port stops a translated guest for a tenth of a millisecond,
/// and the host has room for as much again.
const ACK_BYTES: u64 = INPUT_WINDOW_BYTES / 2;
/// What was written is dropped from the front of what waits when it is this much.
const DROP_BYTES: usize = 64 * 1024;
/// Capacity of the pipe of a process that was once sent more than fits a pipe, pipe(7).
const PIPE_BYTES: usize = 256 * 1024;
/// A pipe's capacity when nobody asked for another.
const USUAL_PIPE_BYTES: usize = 64 * 1024;

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
    /// The sink has got what pipe there is to be had.
    widened: bool,
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
            widened: false,
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
            if self.taken >= DROP_BYTES {
                // A reader that is always a little behind must not make this grow for ever.
                self.waiting.drain(..self.taken);
                self.taken = 0;
            }
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
        if progress >= ACK_BYTES {
            self.told = self.written;
            return Some(Notice::Ack(self.written));
        }
        None
    }

    /// The sink is full: a larger pipe means fewer switches between its reader and this thread.
    fn widen(&mut self) {
        self.widened = true;
        if let Some(sink) = &self.sink
            // Another capacity is one that was asked for; a terminal has none.
            && rustix::pipe::fcntl_getpipe_size(sink) == Ok(USUAL_PIPE_BYTES)
        {
            // Refused when the user has too many pipes (pipe(7)): then it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(sink, PIPE_BYTES);
        }
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
                Err(Errno::AGAIN) if !self.widened => self.widen(),
                Err(Errno::AGAIN) => self.writable = false,
                // EPIPE; EIO for a terminal without a slave.
                Err(_) => self.sink = None,
            }
        }
        self.written += done as u64;
        done
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pipe() -> (OwnedFd, OwnedFd) {
        use rustix::pipe::{PipeFlags, pipe_with};
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn read(fd: &OwnedFd) -> Vec<u8> {
        let mut bytes = vec![0; 1 << 20];
        let count = rustix::io::read(fd, &mut bytes).unwrap_or(0);
        bytes.truncate(count);
        bytes
    }

    #[test]
    fn repeated_bytes_are_trimmed_and_a_gap_is_reported_once() {
        let (process, sink) = pipe();
        let mut input = Input::new(sink);
        assert_eq!(input.notice(), Some(Notice::Resume(0)));
        input.receive(0, b"abcd");
        assert_eq!(input.notice(), None, "little is not worth a word");
        input.receive(2, b"cdef");
        input.receive(1, b"bc");
        input.receive(9, b"j");
        input.receive(10, b"k");
        assert_eq!(input.notice(), Some(Notice::Resume(6)));
        input.receive(11, b"l");
        assert_eq!(input.notice(), None);
        input.receive(6, b"ghi");
        assert_eq!(read(&process), b"abcdefghi");
    }

    #[test]
    fn half_a_window_is_acknowledged() {
        let (process, sink) = pipe();
        let mut input = Input::new(sink);
        input.notice();
        let half = INPUT_WINDOW_BYTES / 2;
        input.receive(0, &vec![1; usize::try_from(half).unwrap() - 1]);
        assert_eq!(input.notice(), None);
        input.receive(half - 1, &[1]);
        assert_eq!(input.notice(), Some(Notice::Ack(half)));
        assert_eq!(read(&process).len() as u64, half);
    }

    /// A pipe that was once too small becomes larger, unless its size was asked for.
    #[test]
    fn a_full_pipe_becomes_a_larger_one() {
        for (size, after) in [(USUAL_PIPE_BYTES, PIPE_BYTES), (PIPE_BYTES / 2, PIPE_BYTES / 2)] {
            let (process, sink) = pipe();
            rustix::pipe::fcntl_setpipe_size(&process, size).unwrap();
            let mut input = Input::new(sink);
            input.receive(0, &vec![1; size]);
            assert_eq!(rustix::pipe::fcntl_getpipe_size(&process), Ok(size));
            input.receive(size as u64, &[1]);
            assert_eq!(rustix::pipe::fcntl_getpipe_size(&process), Ok(after));
        }
    }

    #[test]
    fn the_end_comes_after_the_last_byte() {
        let (process, sink) = pipe();
        let mut input = Input::new(sink);
        input.notice();
        let big = vec![1; 400 * 1024];
        input.receive(0, &big);
        input.receive_eof(big.len() as u64);
        let mut total = 0;
        while input.notice() != Some(Notice::Close) {
            total += read(&process).len();
            input.writable = true;
            input.pump();
        }
        total += read(&process).len();
        assert_eq!(total, big.len());
        assert_eq!(rustix::io::read(&process, &mut [0; 1]), Ok(0), "end of file");
    }

    #[test]
    fn a_reader_that_is_always_behind_costs_no_memory() {
        let (process, sink) = pipe();
        let mut input = Input::new(sink);
        let block = vec![1; 64 * 1024];
        let mut sent = 0;
        let mut total = 0;
        while sent < 8 * 1024 * 1024 {
            while sent - total < 192 * 1024 {
                input.receive(sent, &block);
                sent += block.len() as u64;
            }
            total += read(&process).len() as u64;
            input.writable = true;
            input.pump();
        }
        assert!(
            input.waiting.capacity() <= 1024 * 1024,
            "{}",
            input.waiting.capacity()
        );
    }

    #[test]
    fn a_reader_that_is_gone_closes_the_stream() {
        let (process, sink) = pipe();
        let mut input = Input::new(sink);
        input.notice();
        drop(process);
        input.receive(0, b"x");
        assert_eq!(input.notice(), Some(Notice::Close));
    }
}
