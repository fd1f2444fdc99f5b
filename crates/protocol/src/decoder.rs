//! Frames out of a byte stream that may have lost pieces.
//!
//! ```text
//!   hunting ──"BhF1" and a right header sum──▶ framed ──payload complete, sum right──▶ frame
//!      ▲                                          │
//!      └────────── one byte on ◀── sum wrong ─────┘
//! ```
//!
//! Owns: resynchronisation, the checks, the epoch filter. Never: interprets a frame; never fails, never
//! panics: what does not check is skipped and counted. Called by both ends, for both ports; fuzzed.

use crate::StreamId;
use crate::frame::{HEADER_BYTES, Kind, MAGIC, MAX_PAYLOAD_BYTES, Parsed, parse, sum};

const CAPACITY_BYTES: usize = 2 * (HEADER_BYTES + MAX_PAYLOAD_BYTES);

/// A frame that passed every check; the payload lies in the decoder's buffer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Frame<'a> {
    /// What it is for.
    pub kind: Kind,
    /// Which stream.
    pub stream: StreamId,
    /// Its connection; equals the decoder's epoch except for a [`Kind::Hello`].
    pub epoch: u64,
    /// Position in the stream in bytes.
    pub offset: u64,
    /// Its bytes.
    pub payload: &'a [u8],
}

/// Turns bytes into frames. Feed it with [`Decoder::push`], or without a copy with [`Decoder::space`] and
/// [`Decoder::filled`]; take frames with [`Decoder::pull`] until it has none.
#[derive(Debug)]
pub struct Decoder {
    buffer: Vec<u8>,
    start: usize,
    end: usize,
    epoch: Option<u64>,
    skipped: u64,
}

impl Default for Decoder {
    fn default() -> Self {
        Self::new()
    }
}

impl Decoder {
    /// A decoder that accepts only a Hello until it is given an epoch.
    #[must_use]
    pub fn new() -> Self {
        Self {
            buffer: Vec::new(),
            start: 0,
            end: 0,
            epoch: None,
            skipped: 0,
        }
    }

    /// From now on frames of `epoch` pass (`None`: only Hello does). Hello of any epoch always passes.
    pub fn set_epoch(&mut self, epoch: Option<u64>) {
        self.epoch = epoch;
    }

    /// Bytes that belonged to no frame, and bytes of frames of another epoch or an unknown kind.
    #[must_use]
    pub const fn skipped_bytes(&self) -> u64 {
        self.skipped
    }

    /// Appends bytes as they came.
    pub fn push(&mut self, bytes: &[u8]) {
        self.compact();
        let needed = self.end + bytes.len();
        if self.buffer.len() < needed {
            self.buffer.resize(needed, 0);
        }
        self.buffer[self.end..needed].copy_from_slice(bytes);
        self.end = needed;
    }

    /// Room for at least one frame's worth of bytes once [`Decoder::pull`] has returned `None`.
    pub fn space(&mut self) -> &mut [u8] {
        self.compact();
        if self.buffer.len() < self.end + HEADER_BYTES + MAX_PAYLOAD_BYTES {
            self.buffer
                .resize(CAPACITY_BYTES.max(self.end + HEADER_BYTES + MAX_PAYLOAD_BYTES), 0);
        }
        &mut self.buffer[self.end..]
    }

    /// Says that `count` bytes were put at the start of [`Decoder::space`].
    pub fn filled(&mut self, count: usize) {
        self.end = (self.end + count).min(self.buffer.len());
    }

    /// The next good frame, or `None` when more bytes are needed.
    pub fn pull(&mut self) -> Option<Frame<'_>> {
        loop {
            if !self.hunt() {
                return None;
            }
            let head = self.buffer[self.start..self.end].first_chunk::<HEADER_BYTES>()?;
            let Some(parsed) = parse(head) else {
                self.skip(1);
                continue;
            };
            let total = HEADER_BYTES + parsed.length;
            if self.end - self.start < total {
                return None;
            }
            let payload = self.start + HEADER_BYTES..self.start + total;
            if sum(&self.buffer[payload.clone()]) != parsed.sum {
                self.skip(1);
                continue;
            }
            let Some(kind) = self.passes(&parsed) else {
                self.skip(total);
                continue;
            };
            self.start += total;
            return Some(Frame {
                kind,
                stream: parsed.stream,
                epoch: parsed.epoch,
                offset: parsed.offset,
                payload: &self.buffer[payload],
            });
        }
    }

    fn passes(&self, parsed: &Parsed) -> Option<Kind> {
        parsed
            .kind
            .filter(|kind| *kind == Kind::Hello || self.epoch == Some(parsed.epoch))
    }

    /// Moves `start` to the next place where a magic is or could begin; false when none is complete.
    fn hunt(&mut self) -> bool {
        let waiting = &self.buffer[self.start..self.end];
        if waiting.starts_with(&MAGIC) {
            return true;
        }
        let mut at = 0;
        while at < waiting.len() {
            let Some(step) = waiting[at..].iter().position(|byte| *byte == MAGIC[0]) else {
                at = waiting.len();
                break;
            };
            at += step;
            let rest = &waiting[at..waiting.len().min(at + MAGIC.len())];
            if MAGIC.starts_with(rest) {
                break;
            }
            at += 1;
        }
        let found = waiting.len() - at >= MAGIC.len();
        self.skip(at);
        found
    }

    fn skip(&mut self, count: usize) {
        self.start += count;
        self.skipped += count as u64;
    }

    fn compact(&mut self) {
        if self.start == self.end {
            self.start = 0;
            self.end = 0;
        } else if self.start > 0 {
            self.buffer.copy_within(self.start..self.end, 0);
            self.end -= self.start;
            self.start = 0;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::frame::{Header, PADDING_BYTES};
    use proptest::prelude::*;

    type Owned = (Kind, StreamId, u64, u64, Vec<u8>);

    fn frame(kind: Kind, stream: StreamId, epoch: u64, offset: u64, payload: &[u8]) -> Vec<u8> {
        let mut out = Vec::new();
        Header {
            kind,
            stream,
            epoch,
            offset,
        }
        .append(payload, &mut out);
        out
    }

    fn drain(decoder: &mut Decoder) -> Vec<Owned> {
        let mut frames = Vec::new();
        while let Some(f) = decoder.pull() {
            frames.push((f.kind, f.stream, f.epoch, f.offset, f.payload.to_vec()));
        }
        frames
    }

    fn feed(decoder: &mut Decoder, bytes: &[u8], chunk: usize) -> Vec<Owned> {
        bytes
            .chunks(chunk.max(1))
            .flat_map(|piece| {
                decoder.push(piece);
                drain(decoder)
            })
            .collect()
    }

    #[test]
    fn other_epochs_and_unknown_kinds_are_dropped() {
        let mut decoder = Decoder::new();
        let mut bytes = frame(Kind::Data, 1, 7, 0, b"before any hello");
        bytes.extend(frame(Kind::Hello, 0, 7, 0, b"h"));
        assert_eq!(
            feed(&mut decoder, &bytes, 9),
            [(Kind::Hello, 0, 7, 0, b"h".to_vec())]
        );
        decoder.set_epoch(Some(7));
        let mut unknown = Header {
            kind: Kind::Data,
            stream: 1,
            epoch: 7,
            offset: 0,
        }
        .encode(0, 0);
        unknown[4] = 200;
        let sum = crc32fast::hash(&unknown[..36]);
        unknown[36..].copy_from_slice(&sum.to_le_bytes());
        let mut bytes = frame(Kind::Data, 1, 6, 0, b"old");
        bytes.extend(unknown);
        bytes.extend(frame(Kind::Data, 1, 7, 3, b"new"));
        assert_eq!(
            feed(&mut decoder, &bytes, 64),
            [(Kind::Data, 1, 7, 3, b"new".to_vec())]
        );
        assert!(decoder.skipped_bytes() > 0);
    }

    #[test]
    fn a_flipped_bit_costs_one_frame() {
        let good = frame(Kind::Data, 1, 7, 0, b"first");
        for bit in 0..good.len() * 8 {
            let mut bytes = good.clone();
            bytes[bit / 8] ^= 1 << (bit % 8);
            bytes.extend(frame(Kind::Data, 1, 7, 5, b"second"));
            let mut decoder = Decoder::new();
            decoder.set_epoch(Some(7));
            assert_eq!(
                feed(&mut decoder, &bytes, 1000),
                [(Kind::Data, 1, 7, 5, b"second".to_vec())],
                "bit {bit}"
            );
        }
    }

    #[test]
    fn padding_ends_a_torn_frame() {
        let torn = frame(Kind::Data, 1, 7, 0, &vec![1; MAX_PAYLOAD_BYTES]);
        for cut in [
            1,
            HEADER_BYTES - 1,
            HEADER_BYTES,
            HEADER_BYTES + 1,
            torn.len() - 1,
        ] {
            let mut bytes = torn[..cut].to_vec();
            bytes.extend(vec![0; PADDING_BYTES]);
            bytes.extend(frame(Kind::Hello, 0, 8, 0, b"again"));
            let mut decoder = Decoder::new();
            decoder.set_epoch(Some(7));
            assert_eq!(
                feed(&mut decoder, &bytes, 4096),
                [(Kind::Hello, 0, 8, 0, b"again".to_vec())],
                "cut {cut}"
            );
        }
    }

    #[test]
    fn space_always_takes_a_whole_frame() {
        let big = frame(Kind::Data, 1, 7, 0, &vec![9; MAX_PAYLOAD_BYTES]);
        let mut decoder = Decoder::new();
        decoder.set_epoch(Some(7));
        decoder.push(&big[..100]);
        assert!(decoder.pull().is_none());
        let space = decoder.space();
        assert!(space.len() >= big.len() - 100);
        space[..big.len() - 100].copy_from_slice(&big[100..]);
        decoder.filled(big.len() - 100);
        assert_eq!(drain(&mut decoder).len(), 1);
    }

    fn any_frame() -> impl Strategy<Value = Owned> {
        (
            4u8..7,
            any::<u32>(),
            any::<u64>(),
            prop::collection::vec(any::<u8>(), 0..300),
        )
            .prop_map(|(kind, stream, offset, payload)| {
                (
                    Kind::from_wire(kind).unwrap_or(Kind::Data),
                    stream,
                    7,
                    offset,
                    payload,
                )
            })
    }

    /// Bytes that look like frames more often than chance would have it.
    fn any_garbage() -> impl Strategy<Value = Vec<u8>> {
        prop::collection::vec(
            prop_oneof![
                prop::collection::vec(any::<u8>(), 0..50),
                (1usize..=4).prop_map(|n| MAGIC[..n].to_vec()),
                (any_frame(), 0usize..HEADER_BYTES)
                    .prop_map(|((k, s, e, o, p), cut)| { frame(k, s, e, o, &p)[..cut].to_vec() }),
            ],
            0..6,
        )
        .prop_map(|parts| parts.concat())
    }

    proptest! {
        #[test]
        fn frames_survive_any_chunking(frames in prop::collection::vec(any_frame(), 0..8), chunk in 1usize..500) {
            let bytes: Vec<u8> = frames.iter().flat_map(|(k, s, e, o, p)| frame(*k, *s, *e, *o, p)).collect();
            let mut decoder = Decoder::new();
            decoder.set_epoch(Some(7));
            prop_assert_eq!(feed(&mut decoder, &bytes, chunk), frames);
            prop_assert_eq!(decoder.skipped_bytes(), 0);
        }

        #[test]
        fn a_hello_is_found_behind_any_garbage(garbage in any_garbage(), chunk in 1usize..200) {
            let mut bytes = garbage;
            bytes.extend(frame(Kind::Hello, 0, 99, 0, b"hello"));
            let mut decoder = Decoder::new();
            let frames = feed(&mut decoder, &bytes, chunk);
            prop_assert_eq!(frames.last(), Some(&(Kind::Hello, 0, 99, 0, b"hello".to_vec())));
        }

        #[test]
        fn garbage_never_panics(bytes in prop::collection::vec(any::<u8>(), 0..2000), chunk in 1usize..100) {
            let mut decoder = Decoder::new();
            decoder.set_epoch(Some(0));
            feed(&mut decoder, &bytes, chunk);
        }
    }
}
