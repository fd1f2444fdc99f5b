//! One stream from a process in the guest to the host.
//!
//! ```text
//!  pipe ──read──▶ [ sent, kept │ not sent ] ──▶ frames
//!               acked          ▲ next     read
//! ```
//!
//! A translated guest pays for every switch between two processes with all it knew of its memory, so bytes go in few, large
//! pieces: a writer that once fills its pipe gets a larger one and a larger ring, and is not read for a
//! little room.
//!
//! Owns: the bytes until the host acknowledged them, at most [`WINDOW_BYTES`]. Never: touches the port. Called by
//! `mux`.

use super::port::PortWriter;
use super::ring::Ring;
use crate::StreamId;
use crate::frame::{Header, Kind, MAX_PAYLOAD_BYTES, WINDOW_BYTES};
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Unacknowledged frames per stream: keeps the cost of many one-byte writes bounded; what comes meanwhile goes into one.
const FRAMES_IN_FLIGHT: usize = 64;
/// What a stream may keep until it has once filled that: a pipe's usual capacity, pipe(7).
const SMALL_BYTES: usize = 64 * 1024;
/// And afterwards.
const LARGE_BYTES: usize = WINDOW_BYTES as usize;
/// Capacity of the pipe of a process that writes more than [`SMALL_BYTES`] at a time.
const PIPE_BYTES: usize = 256 * 1024;
/// Room that makes reading worthwhile.
const WORTHWHILE_BYTES: usize = 64 * 1024;
/// Sent in one go before another stream has its turn.
const TURN_BYTES: u64 = 256 * 1024;
/// What draining a terminal reads at most.
const DRAIN_BYTES: usize = 1024 * 1024;

#[derive(Debug)]
pub(super) struct Output {
    source: Option<OwnedFd>,
    terminal: bool,
    /// Reading may give something.
    pub(super) readable: bool,
    /// Every writer is gone: a short read does not mean that there is nothing more.
    hung_up: bool,
    finishing: bool,
    ring: Ring,
    next: u64,
    /// Ends of the frames sent and not acknowledged.
    flying: VecDeque<u64>,
    granted: bool,
    eof_sent: bool,
}

impl Output {
    pub(super) fn new(source: OwnedFd, terminal: bool) -> Self {
        Self {
            source: Some(source),
            terminal,
            readable: true,
            hung_up: false,
            finishing: false,
            ring: Ring::default(),
            next: 0,
            flying: VecDeque::new(),
            granted: false,
            eof_sent: false,
        }
    }

    pub(super) fn source(&self) -> Option<&OwnedFd> {
        self.source.as_ref()
    }

    /// An edge of the source.
    pub(super) fn woken(&mut self, hung_up: bool) {
        self.readable = true;
        self.hung_up |= hung_up;
    }

    /// Whether [`Output::read_once`] would do something.
    pub(super) fn can_read(&self) -> bool {
        // A small ring is never full: it grows then. A large one is acknowledged for as long as something is in it.
        let worthwhile = self.ring.capacity() < LARGE_BYTES || self.ring.room() >= WORTHWHILE_BYTES;
        self.source.is_some() && self.readable && worthwhile
    }

    /// Reads once from the source.
    pub(super) fn read_once(&mut self) {
        self.ring.grow(SMALL_BYTES);
        let room = self.ring.room();
        let Some(source) = &self.source else { return };
        match self.ring.fill(source) {
            Ok(0) => self.end(),
            Ok(count) if count == room => self.widen(),
            Ok(_) => {
                // A short read of a pipe means it is empty; a terminal gives one line at a time.
                if !self.hung_up && !self.terminal && !self.finishing {
                    self.readable = false;
                }
            }
            Err(Errno::INTR) => {}
            Err(Errno::AGAIN) => {
                self.readable = false;
                if self.finishing {
                    self.end();
                }
            }
            // EIO: the last slave of the terminal was closed.
            Err(_) => self.end(),
        }
    }

    /// The process writes more at a time than there was room for.
    fn widen(&mut self) {
        if self.ring.capacity() >= LARGE_BYTES {
            return;
        }
        self.ring.grow(LARGE_BYTES);
        if let Some(source) = self.source.as_ref().filter(|_| !self.terminal)
            // Another capacity is one that was asked for.
            && rustix::pipe::fcntl_getpipe_size(source) == Ok(SMALL_BYTES)
        {
            // Refused when the user has too many pipes (pipe(7)): then it stays as it is.
            let _ = rustix::pipe::fcntl_setpipe_size(source, PIPE_BYTES);
        }
    }

    fn end(&mut self) {
        self.source = None;
        self.readable = false;
    }

    /// Whether [`Output::send`] would send something.
    pub(super) fn can_send(&self) -> bool {
        let more = self.next < self.ring.end();
        self.granted
            && ((more && self.flying.len() < FRAMES_IN_FLIGHT)
                || (!more && self.source.is_none() && !self.eof_sent))
    }

    /// Hands the port what one turn allows; it counts as sent.
    pub(super) fn send(&mut self, stream: StreamId, epoch: u64, port: &mut PortWriter) {
        if !self.can_send() {
            return;
        }
        let header = |kind, offset| Header {
            kind,
            stream,
            epoch,
            offset,
        };
        let turn = self.next + TURN_BYTES;
        while self.next < turn
            && self.flying.len() < FRAMES_IN_FLIGHT
            && let Some(held) = self.ring.held_from(self.next)
        {
            let payload = &held[..held.len().min(MAX_PAYLOAD_BYTES)];
            port.queue(&header(Kind::Data, self.next), payload);
            self.next += payload.len() as u64;
            self.flying.push_back(self.next);
        }
        if self.source.is_none() && self.next == self.ring.end() {
            self.eof_sent = true;
            port.queue(&header(Kind::Eof, self.next), &[]);
        }
        port.flush();
    }

    /// The host has everything below `offset`.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        if offset <= self.ring.start() || offset > self.ring.end() {
            return;
        }
        self.ring.release(offset);
        self.next = self.next.max(offset);
        while self.flying.front().is_some_and(|end| *end <= offset) {
            self.flying.pop_front();
        }
    }

    /// The host wants the stream from `offset` on, in the current epoch.
    pub(super) fn resume(&mut self, offset: u64) {
        self.acknowledge(offset);
        self.suspend();
        self.granted = true;
    }

    /// The connection is over: nothing is sent until the host resumes the stream.
    pub(super) fn suspend(&mut self) {
        self.granted = false;
        self.next = self.ring.start();
        self.flying.clear();
        self.eof_sent = false;
    }

    /// The offset that includes everything written to the source so far.
    pub(super) fn drain(&mut self) -> u64 {
        if !self.terminal {
            let waiting = self
                .source
                .as_ref()
                .and_then(|source| rustix::io::ioctl_fionread(source).ok());
            return self.ring.end() + waiting.unwrap_or(0);
        }
        // A terminal's line discipline does not tell how much is on its way; reading until it is empty does.
        self.readable = true;
        let limit = self.ring.end() + DRAIN_BYTES as u64;
        while self.source.is_some() && self.readable && self.ring.end() < limit {
            if self.ring.room() == 0 {
                self.ring.grow(self.ring.capacity() + SMALL_BYTES);
            }
            self.read_once();
        }
        self.ring.end()
    }

    /// No more is to be read than is there now.
    pub(super) fn finish(&mut self) {
        self.finishing = true;
        self.readable = true;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decoder::Decoder;
    use proptest::prelude::*;
    use std::os::unix::net::UnixStream;
    use std::sync::Arc;

    fn nonblocking_pipe() -> (OwnedFd, OwnedFd) {
        use rustix::pipe::{PipeFlags, pipe_with};
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn at(offset: u64) -> u8 {
        (offset % 249) as u8
    }

    /// The host in this test: takes frames, checks them, counts.
    struct Host {
        port: PortWriter,
        far: UnixStream,
        decoder: Decoder,
        buffer: Vec<u8>,
        got: u64,
        frames: usize,
        ended: bool,
    }

    impl Host {
        fn new() -> Self {
            let (near, far) = UnixStream::pair().unwrap();
            for end in [&near, &far] {
                end.set_nonblocking(true).unwrap();
            }
            let mut decoder = Decoder::new();
            decoder.set_epoch(Some(1));
            Self {
                port: PortWriter::new(Arc::new(near.into())),
                far,
                decoder,
                buffer: vec![0; 1 << 20],
                got: 0,
                frames: 0,
                ended: false,
            }
        }

        fn take(&mut self, output: &mut Output) {
            while output.can_send() || self.port.waiting_bytes() > 0 {
                if self.port.waiting_bytes() == 0 {
                    output.send(5, 1, &mut self.port);
                }
                self.listen();
            }
        }

        fn listen(&mut self) {
            self.port.writable = true;
            self.port.flush();
            if let Ok(count) = rustix::io::read(&self.far, &mut self.buffer) {
                self.decoder.push(&self.buffer[..count]);
            }
            while let Some(frame) = self.decoder.pull() {
                assert!(frame.offset <= self.got, "a gap");
                if frame.kind == Kind::Eof {
                    assert_eq!(frame.offset, self.got);
                    self.ended = true;
                    continue;
                }
                for (place, byte) in frame.payload.iter().enumerate() {
                    assert_eq!(*byte, at(frame.offset + place as u64));
                }
                self.frames += 1;
                self.got = self.got.max(frame.offset + frame.payload.len() as u64);
            }
        }
    }

    proptest! {
        /// Any mix of writes, reads, sends, acknowledgements and lost connections: no gap, no wrong byte, and
        /// everything arrives in the end.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0u8..6, 1usize..200_000), 1..80)) {
            let (source, sink) = nonblocking_pipe();
            let mut output = Output::new(source, false);
            let mut host = Host::new();
            let mut written = 0u64;
            output.resume(0);
            for (step, size) in steps {
                match step {
                    0 | 1 => {
                        let bytes: Vec<u8> = (written..written + size as u64).map(at).collect();
                        if let Ok(count) = rustix::io::write(&sink, &bytes) {
                            written += count as u64;
                            output.woken(false);
                        }
                    }
                    2 if output.can_read() => output.read_once(),
                    3 => host.take(&mut output),
                    4 => output.acknowledge(host.got.saturating_sub(size as u64 / 3)),
                    5 => {
                        output.suspend();
                        prop_assert!(!output.can_send());
                        output.resume(host.got.saturating_sub(size as u64 / 7).max(output.ring.start()));
                    }
                    _ => {}
                }
                prop_assert!(output.ring.capacity() as u64 <= WINDOW_BYTES);
                prop_assert!(output.drain() == written);
            }
            drop(sink);
            output.woken(true);
            while !host.ended {
                if output.can_read() {
                    output.read_once();
                }
                host.take(&mut output);
                output.acknowledge(host.got);
            }
            prop_assert_eq!(host.got, written);
        }
    }

    #[test]
    fn few_frames_are_under_way_however_small_the_writes() {
        let (source, sink) = nonblocking_pipe();
        let mut output = Output::new(source, false);
        let mut host = Host::new();
        output.resume(0);
        for n in 0..1000 {
            rustix::io::write(&sink, &[at(n)]).unwrap();
            output.woken(false);
            output.read_once();
            host.take(&mut output);
        }
        assert_eq!(host.frames, FRAMES_IN_FLIGHT);
        output.acknowledge(host.got);
        host.take(&mut output);
        assert_eq!(
            (host.frames, host.got),
            (FRAMES_IN_FLIGHT + 1, 1000),
            "the rest is gathered"
        );
    }

    /// The pipe of a process that fills it becomes a larger one, unless its size was asked for; one of a process that
    /// writes little stays as it is.
    #[test]
    fn a_writer_that_fills_its_pipe_gets_a_larger_one() {
        let read = |size: Option<usize>, count: usize| {
            let (source, sink) = nonblocking_pipe();
            if let Some(size) = size {
                rustix::pipe::fcntl_setpipe_size(&sink, size).unwrap();
            }
            let mut output = Output::new(source, false);
            rustix::io::write(&sink, &vec![1; count]).unwrap();
            output.read_once();
            let pipe = rustix::pipe::fcntl_getpipe_size(&sink).unwrap();
            (pipe, output.ring.capacity())
        };
        assert_eq!(read(None, SMALL_BYTES - 1), (SMALL_BYTES, SMALL_BYTES));
        assert_eq!(read(None, SMALL_BYTES), (PIPE_BYTES, LARGE_BYTES));
        assert_eq!(
            read(Some(2 * SMALL_BYTES), SMALL_BYTES),
            (2 * SMALL_BYTES, LARGE_BYTES)
        );
    }

    /// What a terminal holds when its process ends may be more than the window.
    #[test]
    fn draining_a_terminal_takes_all_of_it() {
        let (source, sink) = nonblocking_pipe();
        rustix::pipe::fcntl_setpipe_size(&sink, 2 * LARGE_BYTES).unwrap();
        let mut output = Output::new(source, true);
        let count = rustix::io::write(&sink, &vec![1; LARGE_BYTES + 1000]).unwrap();
        assert_eq!(output.drain(), count as u64);
        assert_eq!(output.ring.end(), count as u64);
    }
}
