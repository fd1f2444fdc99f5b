//! One stream from a process in the guest to the host.
//!
//! ```text
//!  pipe ──read──▶ [ acked │ sent, kept │ not sent ] ──▶ frames
//!                 acked   ▲ next       ▲          read
//! ```
//!
//! Owns: the bytes until the host acknowledged them, at most [`WINDOW_BYTES`], kept as ready frames so that
//! sending and re-sending copy nothing. Never: touches the port. Called by `mux`.

use crate::StreamId;
use crate::frame::{DATA_BYTES, HEADER_BYTES, Header, Kind, WINDOW_BYTES, sum};
use rustix::buffer::spare_capacity;
use rustix::io::Errno;
use std::collections::VecDeque;
use std::os::fd::OwnedFd;

/// Unacknowledged frames per stream: keeps the cost of many one-byte writes bounded; more are gathered into one.
const FRAMES_IN_FLIGHT: usize = 64;
/// A read at least this large keeps its buffer; smaller ones are copied out of it.
const KEEP_BYTES: usize = 8 * 1024;
/// What draining a terminal reads at most.
const DRAIN_BYTES: u64 = 1024 * 1024;

#[derive(Debug)]
struct Chunk {
    offset: u64,
    /// Header space, then the payload.
    frame: Vec<u8>,
    sum: Option<u32>,
}

impl Chunk {
    fn len(&self) -> usize {
        self.frame.len() - HEADER_BYTES
    }

    fn end(&self) -> u64 {
        self.offset + self.len() as u64
    }
}

#[derive(Debug)]
pub(super) struct Output {
    source: Option<OwnedFd>,
    terminal: bool,
    /// Reading may give something.
    pub(super) readable: bool,
    /// Every writer is gone: a short read does not mean that there is nothing more.
    hung_up: bool,
    finishing: bool,
    chunks: VecDeque<Chunk>,
    next: usize,
    read: u64,
    acked: u64,
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
            chunks: VecDeque::new(),
            next: 0,
            read: 0,
            acked: 0,
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
        self.source.is_some() && self.readable && self.read - self.acked < WINDOW_BYTES
    }

    /// Reads once from the source through `scratch`, a spare buffer.
    pub(super) fn read_once(&mut self, scratch: &mut Vec<u8>) {
        let Some(source) = &self.source else { return };
        let gather = self.gathers();
        scratch.clear();
        scratch.resize(HEADER_BYTES, 0);
        scratch.reserve_exact(DATA_BYTES);
        let room = scratch.capacity() - HEADER_BYTES;
        match rustix::io::read(source, spare_capacity(scratch)) {
            Ok(0) => self.end(),
            Ok(count) => {
                // A short read of a pipe means it is empty; a terminal gives one line at a time.
                if count < room && !self.hung_up && !self.terminal && !self.finishing {
                    self.readable = false;
                }
                self.keep(scratch, count, gather);
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

    /// Whether the next bytes go into the last chunk: it was never sent, and both stay below a frame's limit.
    fn gathers(&self) -> bool {
        self.next < self.chunks.len()
            && self
                .chunks
                .back()
                .is_some_and(|tail| tail.len() < DATA_BYTES / 2 && tail.sum.is_none())
    }

    /// Takes the `count` payload bytes of `buffer` in; leaves a buffer for the next read.
    fn keep(&mut self, buffer: &mut Vec<u8>, count: usize, gather: bool) {
        let offset = self.read;
        self.read += count as u64;
        if gather && let Some(tail) = self.chunks.back_mut() {
            tail.frame.extend_from_slice(&buffer[HEADER_BYTES..]);
            return;
        }
        let frame = if count >= KEEP_BYTES {
            std::mem::take(buffer)
        } else {
            buffer.clone()
        };
        self.chunks.push_back(Chunk {
            offset,
            frame,
            sum: None,
        });
    }

    fn end(&mut self) {
        self.source = None;
        self.readable = false;
    }

    /// Whether [`Output::next`] would give a frame.
    pub(super) fn can_send(&self) -> bool {
        self.granted
            && (self.next < self.chunks.len().min(FRAMES_IN_FLIGHT)
                || (self.source.is_none() && self.next == self.chunks.len() && !self.eof_sent))
    }

    /// The next frame to send in `epoch`; it counts as sent. `scratch` holds an end-of-file frame.
    pub(super) fn next<'a>(
        &'a mut self,
        stream: StreamId,
        epoch: u64,
        scratch: &'a mut Vec<u8>,
    ) -> Option<&'a [u8]> {
        if !self.can_send() {
            return None;
        }
        let Some(chunk) = self.chunks.get_mut(self.next) else {
            self.eof_sent = true;
            scratch.clear();
            Header {
                kind: Kind::Eof,
                stream,
                epoch,
                offset: self.read,
            }
            .append(&[], scratch);
            return Some(scratch);
        };
        self.next += 1;
        let sum = *chunk.sum.get_or_insert_with(|| sum(&chunk.frame[HEADER_BYTES..]));
        let header = Header {
            kind: Kind::Data,
            stream,
            epoch,
            offset: chunk.offset,
        };
        let length = chunk.len();
        chunk.frame[..HEADER_BYTES].copy_from_slice(&header.encode(length, sum));
        Some(&chunk.frame)
    }

    /// The host has everything below `offset`.
    pub(super) fn acknowledge(&mut self, offset: u64) {
        if offset <= self.acked || offset > self.read {
            return;
        }
        self.acked = offset;
        while self.chunks.front().is_some_and(|chunk| chunk.end() <= offset) {
            self.chunks.pop_front();
            self.next = self.next.saturating_sub(1);
        }
    }

    /// The host wants the stream from `offset` on, in the current epoch.
    pub(super) fn resume(&mut self, offset: u64) {
        self.acknowledge(offset);
        self.granted = true;
        self.next = 0;
        self.eof_sent = false;
    }

    /// The connection is over: nothing is sent until the host resumes the stream.
    pub(super) fn suspend(&mut self) {
        self.granted = false;
        self.next = 0;
        self.eof_sent = false;
    }

    /// The offset that includes everything written to the source so far.
    pub(super) fn drain(&mut self, scratch: &mut Vec<u8>) -> u64 {
        if !self.terminal {
            let waiting = self
                .source
                .as_ref()
                .and_then(|source| rustix::io::ioctl_fionread(source).ok());
            return self.read + waiting.unwrap_or(0);
        }
        // A terminal's line discipline does not tell how much is on its way; reading until it is empty does.
        self.readable = true;
        let limit = self.read + DRAIN_BYTES;
        while self.source.is_some() && self.readable && self.read < limit {
            self.read_once(scratch);
        }
        self.read
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

    fn nonblocking_pipe() -> (OwnedFd, OwnedFd) {
        use rustix::pipe::{PipeFlags, pipe_with};
        pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK).unwrap()
    }

    fn at(offset: u64) -> u8 {
        (offset % 249) as u8
    }

    /// The host in this test: takes frames, checks them, counts.
    #[derive(Default)]
    struct Host {
        decoder: Decoder,
        got: u64,
        ended: bool,
    }

    impl Host {
        fn take(&mut self, output: &mut Output) {
            self.decoder.set_epoch(Some(1));
            let mut scratch = Vec::new();
            while let Some(frame) = output.next(5, 1, &mut scratch) {
                self.decoder.push(frame);
                let frame = self.decoder.pull().unwrap();
                assert!(frame.offset <= self.got, "a gap");
                if frame.kind == Kind::Eof {
                    assert_eq!(frame.offset, self.got);
                    self.ended = true;
                    continue;
                }
                for (place, byte) in frame.payload.iter().enumerate() {
                    assert_eq!(*byte, at(frame.offset + place as u64));
                }
                self.got = self.got.max(frame.offset + frame.payload.len() as u64);
            }
        }
    }

    proptest! {
        /// Any mix of writes, reads, sends, acknowledgements and lost connections: no gap, no wrong byte, and
        /// everything arrives in the end.
        #[test]
        fn nothing_is_lost(steps in prop::collection::vec((0u8..6, 1usize..30_000), 1..80)) {
            let (source, sink) = nonblocking_pipe();
            let mut output = Output::new(source, false);
            let mut host = Host::default();
            let mut scratch = Vec::new();
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
                    2 if output.can_read() => output.read_once(&mut scratch),
                    3 => host.take(&mut output),
                    4 => output.acknowledge(host.got.saturating_sub(size as u64 / 3)),
                    5 => {
                        output.suspend();
                        prop_assert!(!output.can_send());
                        output.resume(host.got.saturating_sub(size as u64 / 7).max(output.acked));
                    }
                    _ => {}
                }
                prop_assert!(output.read - output.acked < WINDOW_BYTES + 2 * DATA_BYTES as u64);
                prop_assert!(output.drain(&mut scratch) == written);
            }
            drop(sink);
            output.woken(true);
            while !host.ended {
                if output.can_read() {
                    output.read_once(&mut scratch);
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
        output.resume(0);
        let mut scratch = Vec::new();
        let mut sent = 0;
        for n in 0..1000 {
            rustix::io::write(&sink, &[at(n)]).unwrap();
            output.woken(false);
            output.read_once(&mut scratch);
            while output.next(5, 1, &mut Vec::new()).is_some() {
                sent += 1;
            }
        }
        assert_eq!(sent, FRAMES_IN_FLIGHT);
        assert_eq!(output.chunks.len(), FRAMES_IN_FLIGHT + 1, "the rest is gathered");
    }
}
