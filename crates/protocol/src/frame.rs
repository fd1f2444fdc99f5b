//! The frame both ports speak: layout and encoding. Decoding is in `decoder`.
//!
//! ```text
//!  0      4     5      8        12       16       24       32            36           40
//!  magic  kind  zero   stream   length   epoch    offset   payload sum   header crc   payload …
//! ```
//!
//! All numbers little-endian. The header crc is CRC-32 (ISO-HDLC) of bytes 0 to 35, so that a torn frame's length is
//! never believed. The payload sum is [`sum`]: what it must find is a payload that was cut and continued with other
//! bytes, and a CRC without hardware help costs an emulated guest half a second per 100 MB.
//!
//! Owns: the bytes of a frame. Never: what a frame does (see `guest_end` and `data_port`).

use crate::StreamId;

/// Bytes of a header.
pub const HEADER_BYTES: usize = 40;
/// Largest payload in bytes.
pub const MAX_PAYLOAD_BYTES: usize = 64 * 1024;
/// What fits one virtio-serial write of 32 KiB with its header.
pub(crate) const DATA_BYTES: usize = 32 * 1024 - HEADER_BYTES;
/// The guest keeps at most this many bytes of an output unacknowledged.
pub(crate) const WINDOW_BYTES: u64 = 512 * 1024;
/// The host keeps at most this many bytes of an input unacknowledged: the size of the log a successor finds.
pub(crate) const INPUT_WINDOW_BYTES: u64 = 256 * 1024;
/// Zeroes sent before the Hello of a re-attachment: they complete whatever frame was torn.
pub(crate) const PADDING_BYTES: usize = HEADER_BYTES + MAX_PAYLOAD_BYTES;

pub(crate) const MAGIC: [u8; 4] = *b"BhF1";

/// What a frame is for. "Receiver" and "sender" are meant for the stream's bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Kind {
    /// Opens an epoch: from the host with a new epoch and `HostHello`, answered with the same epoch and `Hello`.
    Hello = 1,
    /// Bytes of the ttrpc connection; offset counts from 0 in each epoch. Control port only.
    Rpc = 2,
    /// Receiver to sender: "I am here, (re)start at this offset". A sender sends nothing before it.
    Resume = 3,
    /// Bytes of a stream from this offset.
    Data = 4,
    /// Receiver to sender: everything below this offset has reached the sink.
    Ack = 5,
    /// Sender to receiver: the stream ends at this offset.
    Eof = 6,
    /// Receiver to sender: done with this stream, because its end was delivered or its sink is gone.
    Close = 7,
    /// Guest to host, once per epoch after its Hello: every input stream it knows has had its Resume.
    Synced = 8,
}

impl Kind {
    /// The kind of a number on the wire.
    #[must_use]
    pub const fn from_wire(number: u8) -> Option<Self> {
        Some(match number {
            1 => Self::Hello,
            2 => Self::Rpc,
            3 => Self::Resume,
            4 => Self::Data,
            5 => Self::Ack,
            6 => Self::Eof,
            7 => Self::Close,
            8 => Self::Synced,
            _ => return None,
        })
    }
}

/// Sum of a payload: two running 64-bit sums over its 8-byte words (the last filled up with zeroes), folded to
/// 32 bits. The second sum makes the place of a word count.
#[must_use]
pub fn sum(payload: &[u8]) -> u32 {
    let mut plain = 0u64;
    let mut placed = 0u64;
    let mut add = |word: &[u8; 8]| {
        plain = plain.wrapping_add(u64::from_le_bytes(*word));
        placed = placed.wrapping_add(plain);
    };
    // By fours: a translated loop costs as much as what is in it.
    let (words, rest) = payload.as_chunks::<8>();
    let (fours, words) = words.as_chunks::<4>();
    for [a, b, c, d] in fours {
        add(a);
        add(b);
        add(c);
        add(d);
    }
    for word in words {
        add(word);
    }
    let mut last = [0; 8];
    last[..rest.len()].copy_from_slice(rest);
    plain = plain.wrapping_add(u64::from_le_bytes(last));
    placed = placed.wrapping_add(plain);
    // The high bits of a sum depend on every lower bit, the low ones do not: multiplying brings them together.
    let folded = (plain ^ placed.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (folded >> 32) as u32
}

/// The head of a frame, without lengths and sums: those follow from the payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    /// What it is for.
    pub kind: Kind,
    /// Which stream; 0 where none is meant.
    pub stream: StreamId,
    /// Which connection it belongs to.
    pub epoch: u64,
    /// Position in the stream in bytes.
    pub offset: u64,
}

impl Header {
    /// The header's bytes for a payload of `length` bytes with [`sum`] `sum`. `length` is at most
    /// [`MAX_PAYLOAD_BYTES`]; the receiver drops anything longer.
    #[must_use]
    pub fn encode(&self, length: usize, sum: u32) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..4].copy_from_slice(&MAGIC);
        bytes[4] = self.kind as u8;
        bytes[8..12].copy_from_slice(&self.stream.to_le_bytes());
        bytes[12..16].copy_from_slice(&u32::try_from(length).unwrap_or(u32::MAX).to_le_bytes());
        bytes[16..24].copy_from_slice(&self.epoch.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.offset.to_le_bytes());
        bytes[32..36].copy_from_slice(&sum.to_le_bytes());
        let head = crc32fast::hash(&bytes[..36]);
        bytes[36..40].copy_from_slice(&head.to_le_bytes());
        bytes
    }

    /// Appends the whole frame to `out`.
    pub fn append(&self, payload: &[u8], out: &mut Vec<u8>) {
        out.reserve(HEADER_BYTES + payload.len());
        out.extend_from_slice(&self.encode(payload.len(), sum(payload)));
        out.extend_from_slice(payload);
    }
}

/// A header read from the wire whose own sum is right.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Parsed {
    /// `None` for a kind of a later version.
    pub(crate) kind: Option<Kind>,
    pub(crate) stream: StreamId,
    pub(crate) length: usize,
    pub(crate) epoch: u64,
    pub(crate) offset: u64,
    pub(crate) sum: u32,
}

/// Reads a header; `None` when magic, sum or length are wrong.
pub(crate) fn parse(bytes: &[u8; HEADER_BYTES]) -> Option<Parsed> {
    let u32_at = |at: usize| u32::from_le_bytes([bytes[at], bytes[at + 1], bytes[at + 2], bytes[at + 3]]);
    let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
    if bytes[0..4] != MAGIC || crc32fast::hash(&bytes[..36]) != u32_at(36) {
        return None;
    }
    let length = u32_at(12) as usize;
    (length <= MAX_PAYLOAD_BYTES).then(|| Parsed {
        kind: Kind::from_wire(bytes[4]),
        stream: u32_at(8),
        length,
        epoch: u64_at(16),
        offset: u64_at(24),
        sum: u32_at(32),
    })
}
