//! Frames of the guest: whatever comes, in whatever pieces, is a frame or is skipped and counted.
#![no_main]

use bulkhead_protocol::decoder::Decoder;
use bulkhead_protocol::frame::{HEADER_BYTES, Header, Kind, MAX_PAYLOAD_BYTES};
use libfuzzer_sys::fuzz_target;

/// The decoder's epoch; others are those of connections that ended.
const EPOCH: u64 = 1;

/// Kind (noise if there is no such), stream, epoch, offset, which byte is damaged, payload.
type Piece<'a> = (u8, u32, u8, u64, Option<u16>, &'a [u8]);

fuzz_target!(|input: (u8, Vec<Piece<'_>>)| {
    let (size, pieces) = input;
    let mut bytes = Vec::new();
    for (kind, stream, epoch, offset, damage, payload) in pieces {
        let from = bytes.len();
        match Kind::from_wire(kind % 10) {
            Some(kind) => {
                let epoch = u64::from(epoch % 3);
                Header {
                    kind,
                    stream,
                    epoch,
                    offset,
                }
                .append(payload, &mut bytes);
            }
            None => bytes.extend_from_slice(payload),
        }
        if let (Some(at), true) = (damage, bytes.len() > from) {
            let at = from + usize::from(at) % (bytes.len() - from);
            bytes[at] ^= 0x55;
        }
    }
    let whole = frames(bytes.len().max(1), &bytes);
    let pieces = frames(usize::from(size).max(1), &bytes);
    assert_eq!(whole, pieces, "pieces of {size} bytes");
});

/// Frames (stream, offset, payload's length) and skipped bytes.
fn frames(size: usize, bytes: &[u8]) -> (Vec<(u32, u64, usize)>, u64) {
    let mut decoder = Decoder::new();
    decoder.set_epoch(Some(EPOCH));
    let mut frames = Vec::new();
    let mut taken = 0;
    for piece in bytes.chunks(size) {
        decoder.push(piece);
        while let Some(frame) = decoder.pull() {
            assert!(frame.kind == Kind::Hello || frame.epoch == EPOCH);
            assert!(frame.payload.len() <= MAX_PAYLOAD_BYTES);
            taken += HEADER_BYTES + frame.payload.len();
            frames.push((frame.stream, frame.offset, frame.payload.len()));
        }
    }
    let skipped = decoder.skipped_bytes();
    assert!(taken as u64 + skipped <= bytes.len() as u64);
    (frames, skipped)
}
