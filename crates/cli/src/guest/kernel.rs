//! From any x86-64 kernel file to an uncompressed `vmlinux` that boots by PVH.
//!
//! ```text
//! bzImage ─► payload ─► expand ─┐
//! vmlinux ─────────────────────┴─► ELF with a PVH note, release name
//! ```
//!
//! Owns: the boot protocol's setup header (Documentation/arch/x86/boot.rst) and the PVH check. Never:
//! where files come from or go to. Called by [`super::build`].

use super::compression::Compression;
use super::elf::Elf;

/// Smallest boot protocol version that says where the compressed kernel lies.
const PAYLOAD_PROTOCOL: u16 = 0x0208;

/// Type of the note that holds the PVH entry address (XEN_ELFNOTE_PHYS32_ENTRY).
const PVH_NOTE: u32 = 18;

/// What is wrong with a kernel file.
#[derive(Debug, thiserror::Error)]
pub(crate) enum KernelError {
    /// Neither of the two forms.
    #[error("it is neither an x86 bzImage nor a 64-bit ELF vmlinux")]
    UnknownFormat,
    /// A boot protocol older than 2.08.
    #[error(
        "its boot protocol is {}.{:02}: expected at least 2.08",
        version >> 8,
        version & 0xff
    )]
    OldProtocol {
        /// Protocol version as in the setup header.
        version: u16,
    },
    /// The header points out of the file.
    #[error("its setup header points to bytes {start}..{end} of a file of {length}")]
    Truncated {
        /// First byte.
        start: u64,
        /// Behind the last byte.
        end: u64,
        /// Size of the file in bytes.
        length: u64,
    },
    /// A compression other than the four known.
    #[error("its payload starts with {magic:02x?}: expected gzip, lz4, xz or zstd")]
    UnknownCompression {
        /// The first bytes.
        magic: Vec<u8>,
    },
    /// The payload cannot be expanded.
    #[error("its payload cannot be expanded: {0}")]
    Expand(String),
    /// The payload is no kernel.
    #[error("its payload is not a 64-bit ELF file")]
    NotElf,
    /// A kernel built without PVH.
    #[error("it has no PVH entry point: expected a kernel built with CONFIG_PVH=y")]
    NoPvh,
    /// The release name is nowhere.
    #[error("it does not say its release (no \"Linux version\" in it)")]
    NoRelease,
}

/// An uncompressed kernel.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Kernel {
    /// The ELF file.
    pub(super) vmlinux: Vec<u8>,
    /// What `uname -r` prints.
    pub(super) release: String,
}

impl Kernel {
    /// Reads a bzImage or a vmlinux.
    pub(super) fn parse(file: Vec<u8>) -> Result<Self, KernelError> {
        let (vmlinux, release) = if Elf::parse(&file).is_some() {
            (file, None)
        } else {
            let setup = Setup::parse(&file)?;
            (setup.expand(&file)?, setup.release(&file))
        };
        let elf = Elf::parse(&vmlinux).ok_or(KernelError::NotElf)?;
        if !elf.has_note("Xen", PVH_NOTE) {
            return Err(KernelError::NoPvh);
        }
        let release = release
            .or_else(|| banner(&vmlinux))
            .ok_or(KernelError::NoRelease)?;
        Ok(Self { vmlinux, release })
    }
}

/// The parts of the setup header used here.
struct Setup {
    version: u16,
    /// Offset of the version text, 0 for none.
    text: usize,
    payload: std::ops::Range<u64>,
}

impl Setup {
    fn parse(file: &[u8]) -> Result<Self, KernelError> {
        let header = file.get(..0x250).ok_or(KernelError::UnknownFormat)?;
        if header.get(0x202..0x206) != Some(b"HdrS") {
            return Err(KernelError::UnknownFormat);
        }
        let u16_at = |at: usize| u16::from_le_bytes([header[at], header[at + 1]]);
        let u32_at = |at: usize| {
            u64::from(u32::from_le_bytes([
                header[at],
                header[at + 1],
                header[at + 2],
                header[at + 3],
            ]))
        };
        let version = u16_at(0x206);
        if version < PAYLOAD_PROTOCOL {
            return Err(KernelError::OldProtocol { version });
        }
        // 0 means 4, for historical reasons.
        let sectors = match header[0x1f1] {
            0 => 4,
            n => u64::from(n),
        };
        let start = (sectors + 1) * 512 + u32_at(0x248);
        Ok(Self {
            version,
            text: usize::from(u16_at(0x20e)),
            payload: start..start + u32_at(0x24c),
        })
    }

    fn expand(&self, file: &[u8]) -> Result<Vec<u8>, KernelError> {
        debug_assert!(self.version >= PAYLOAD_PROTOCOL);
        let out_of_file = || KernelError::Truncated {
            start: self.payload.start,
            end: self.payload.end,
            length: file.len() as u64,
        };
        let index = |at: u64| usize::try_from(at).map_err(|_| out_of_file());
        let payload = file
            .get(index(self.payload.start)?..index(self.payload.end)?)
            .ok_or_else(out_of_file)?;
        let compression = Compression::of(payload).ok_or_else(|| KernelError::UnknownCompression {
            magic: payload.iter().take(6).copied().collect(),
        })?;
        compression.expand(payload).map_err(KernelError::Expand)
    }

    fn release(&self, file: &[u8]) -> Option<String> {
        (self.text != 0)
            .then(|| word(file.get(self.text + 0x200..)?))
            .flatten()
    }
}

/// The release in the banner every kernel carries.
fn banner(vmlinux: &[u8]) -> Option<String> {
    const BANNER: &[u8] = b"Linux version ";
    let mut rest = vmlinux;
    loop {
        let at = memchr::memmem::find(rest, BANNER)?;
        rest = rest.get(at + BANNER.len()..)?;
        // The format string of the same banner has "%s" there.
        if let Some(release) = word(rest).filter(|r| r.starts_with(|c: char| c.is_ascii_digit())) {
            return Some(release);
        }
    }
}

/// The printable word that `bytes` start with.
fn word(bytes: &[u8]) -> Option<String> {
    let end = bytes.iter().take(256).position(|b| !b.is_ascii_graphic())?;
    let word = String::from_utf8(bytes.get(..end)?.to_vec()).ok()?;
    (!word.is_empty() && !word.contains('/')).then_some(word)
}

#[cfg(test)]
mod tests {
    use super::super::elf::tests::sample;
    use super::*;
    use std::io::Write;

    fn vmlinux(note: u32) -> Vec<u8> {
        let text = b"Linux version %s\0Linux version 6.12.1-test (a@b)\0";
        sample(".rodata", text, "Xen", note)
    }

    fn bzimage(payload: &[u8]) -> Vec<u8> {
        let mut file = vec![0u8; 1024];
        file[0x1f1] = 1;
        file[0x202..0x206].copy_from_slice(b"HdrS");
        file[0x206..0x208].copy_from_slice(&0x020fu16.to_le_bytes());
        file[0x20e..0x210].copy_from_slice(&0x100u16.to_le_bytes());
        let text = b"6.12.2-image (x@y) #1\0";
        file[0x300..0x300 + text.len()].copy_from_slice(text);
        file[0x248..0x24c].copy_from_slice(&16u32.to_le_bytes());
        file[0x24c..0x250].copy_from_slice(&u32::try_from(payload.len()).unwrap().to_le_bytes());
        file.extend_from_slice(&[0; 16]);
        file.extend_from_slice(payload);
        file
    }

    fn gzip(bytes: &[u8]) -> Vec<u8> {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
        encoder.write_all(bytes).unwrap();
        encoder.finish().unwrap()
    }

    #[test]
    fn a_vmlinux_is_taken_as_it_is() {
        let kernel = Kernel::parse(vmlinux(PVH_NOTE)).unwrap();
        assert_eq!(kernel.release, "6.12.1-test");
        assert_eq!(kernel.vmlinux, vmlinux(PVH_NOTE));
    }

    #[test]
    fn a_bzimage_is_expanded() {
        let kernel = Kernel::parse(bzimage(&gzip(&vmlinux(PVH_NOTE)))).unwrap();
        assert_eq!(kernel.release, "6.12.2-image");
        assert_eq!(kernel.vmlinux, vmlinux(PVH_NOTE));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let error = |file: Vec<u8>| Kernel::parse(file).unwrap_err().to_string();
        assert!(error(b"MZ".to_vec()).contains("neither"));
        assert!(error(vmlinux(1)).contains("CONFIG_PVH=y"));
        assert!(error(bzimage(b"????????")).contains("expected gzip, lz4, xz or zstd"));
        assert!(error(bzimage(&gzip(b"no kernel"))).contains("not a 64-bit ELF"));
        let mut old = bzimage(b"");
        old[0x206] = 0x04;
        assert!(error(old).contains("2.04"));
        let mut cut = bzimage(&gzip(&vmlinux(PVH_NOTE)));
        cut.truncate(1040);
        assert!(error(cut).contains("of a file of 1040"));
    }
}
