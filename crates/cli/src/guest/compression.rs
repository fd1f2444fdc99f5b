//! Undoing the compressions that kernels and modules come in.
//!
//! Owns: telling a format by its magic bytes and expanding it with a limit. Never: what is inside.
//! Called by [`super::kernel`] and [`super::module`].

use std::io::Read;

/// Largest result in bytes: a debug kernel is far below.
pub(super) const MAX_EXPANDED_BYTES: u64 = 1 << 30;

/// Magic of lz4's legacy frame, the one kernels use.
const LZ4_LEGACY: &[u8] = &[0x02, 0x21, 0x4c, 0x18];

/// Largest expanded block of an lz4 legacy frame.
const LZ4_BLOCK_BYTES: usize = 8 << 20;

/// How bytes are packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compression {
    Gzip,
    Lz4Legacy,
    Xz,
    Zstd,
}

impl Compression {
    /// The compression that these bytes start with.
    pub(super) fn of(bytes: &[u8]) -> Option<Self> {
        [
            (&[0x1f, 0x8b][..], Self::Gzip),
            (LZ4_LEGACY, Self::Lz4Legacy),
            (&[0xfd, b'7', b'z', b'X', b'Z', 0][..], Self::Xz),
            (&[0x28, 0xb5, 0x2f, 0xfd][..], Self::Zstd),
        ]
        .into_iter()
        .find_map(|(magic, kind)| bytes.starts_with(magic).then_some(kind))
    }

    /// Expands the first stream in `bytes`; whatever follows it is ignored.
    ///
    /// # Errors
    /// What is wrong with the data, in words.
    pub(super) fn expand(self, bytes: &[u8]) -> Result<Vec<u8>, String> {
        let mut out = Vec::new();
        match self {
            Self::Gzip => read_all(flate2::read::GzDecoder::new(bytes), &mut out)?,
            Self::Xz => read_all(lzma_rust2::XzReader::new(bytes, false), &mut out)?,
            Self::Zstd => {
                let decoder = ruzstd::decoding::StreamingDecoder::new(bytes).map_err(|e| e.to_string())?;
                read_all(decoder, &mut out)?;
            }
            Self::Lz4Legacy => expand_lz4(bytes.get(LZ4_LEGACY.len()..).unwrap_or_default(), &mut out)?,
        }
        Ok(out)
    }
}

fn read_all(source: impl Read, out: &mut Vec<u8>) -> Result<(), String> {
    let read = source
        .take(MAX_EXPANDED_BYTES + 1)
        .read_to_end(out)
        .map_err(|e| e.to_string())?;
    if read as u64 > MAX_EXPANDED_BYTES {
        return Err(format!("it expands to more than {MAX_EXPANDED_BYTES} bytes"));
    }
    Ok(())
}

/// Blocks of {u32 length, bytes} until something that cannot be a block.
fn expand_lz4(mut rest: &[u8], out: &mut Vec<u8>) -> Result<(), String> {
    let limit = lz4_flex::block::get_maximum_output_size(LZ4_BLOCK_BYTES);
    while let Some((head, tail)) = rest.split_first_chunk::<4>() {
        let length = u32::from_le_bytes(*head) as usize;
        // The kernel appends the size of the expanded image, which looks like an oversized block.
        if length == 0 || length > limit || length > tail.len() {
            break;
        }
        let (block, next) = tail.split_at(length);
        let expanded = lz4_flex::block::decompress(block, LZ4_BLOCK_BYTES).map_err(|e| e.to_string())?;
        out.extend_from_slice(&expanded);
        if out.len() as u64 > MAX_EXPANDED_BYTES {
            return Err(format!("it expands to more than {MAX_EXPANDED_BYTES} bytes"));
        }
        rest = next;
    }
    if out.is_empty() {
        return Err("no lz4 block in it".to_owned());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn gzip_round_trip() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(b"module").unwrap();
        let mut packed = encoder.finish().unwrap();
        packed.extend_from_slice(b"trailing");
        assert_eq!(Compression::of(&packed), Some(Compression::Gzip));
        assert_eq!(Compression::Gzip.expand(&packed).unwrap(), b"module");
    }

    #[test]
    fn lz4_legacy_stops_at_the_size_the_kernel_appends() {
        let block = lz4_flex::block::compress(&[7; 1000]);
        let mut packed = LZ4_LEGACY.to_vec();
        packed.extend_from_slice(&u32::try_from(block.len()).unwrap().to_le_bytes());
        packed.extend_from_slice(&block);
        packed.extend_from_slice(&1000u32.to_le_bytes());
        assert_eq!(Compression::of(&packed), Some(Compression::Lz4Legacy));
        assert_eq!(Compression::Lz4Legacy.expand(&packed).unwrap(), vec![7; 1000]);
    }

    #[test]
    fn zstd_of_the_reference_encoder_is_read() {
        // `printf hello | zstd`
        let packed = [
            0x28, 0xb5, 0x2f, 0xfd, 0x04, 0x58, 0x29, 0, 0, b'h', b'e', b'l', b'l', b'o', 0xa3, 0x6d, 0x9f,
            0x88,
        ];
        assert_eq!(Compression::of(&packed), Some(Compression::Zstd));
        assert_eq!(Compression::Zstd.expand(&packed).unwrap(), b"hello");
    }

    #[test]
    fn garbage_is_an_error_and_no_panic() {
        for kind in [
            Compression::Gzip,
            Compression::Lz4Legacy,
            Compression::Xz,
            Compression::Zstd,
        ] {
            assert!(kind.expand(&[0x55; 64]).is_err(), "{kind:?}");
            assert!(kind.expand(&[]).is_err(), "{kind:?}");
        }
        assert_eq!(Compression::of(b"plain"), None);
    }
}
