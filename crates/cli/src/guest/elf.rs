//! The little of ELF that a guest builder needs: notes of a kernel, sections of a module.
//!
//! Owns: bounds-checked reading of 64-bit little-endian ELF, elf(5). Never: anything about kernels.
//! Called by [`super::kernel`] and [`super::module`].

/// First bytes of every ELF file.
pub(super) const MAGIC: &[u8] = b"\x7fELF";

/// Program header type of a note segment.
const PT_NOTE: u32 = 4;

/// A 64-bit little-endian ELF file in memory.
#[derive(Debug, Clone, Copy)]
pub(super) struct Elf<'a> {
    bytes: &'a [u8],
}

impl<'a> Elf<'a> {
    /// `None` when the bytes are not a 64-bit little-endian ELF file.
    pub(super) fn parse(bytes: &'a [u8]) -> Option<Self> {
        let head = bytes.get(..64)?;
        (head.starts_with(MAGIC) && head.get(4) == Some(&2) && head.get(5) == Some(&1))
            .then_some(Self { bytes })
    }

    /// Contents of the section of this name.
    pub(super) fn section(&self, name: &str) -> Option<&'a [u8]> {
        let table = self.offset(0x28)?;
        let entry_size = usize::from(self.u16(0x3a)?);
        let count = usize::from(self.u16(0x3c)?);
        let names_index = usize::from(self.u16(0x3e)?);
        let entry = |index: usize| index.checked_mul(entry_size)?.checked_add(table);
        let names = self.section_bytes(entry(names_index)?)?;
        (0..count).find_map(|index| {
            let header = entry(index)?;
            let start = usize::try_from(self.u32(header)?).ok()?;
            let found = names.get(start..)?.split(|byte| *byte == 0).next()?;
            (found == name.as_bytes())
                .then(|| self.section_bytes(header))
                .flatten()
        })
    }

    /// Whether a note of this owner and type is there.
    pub(super) fn has_note(&self, owner: &str, kind: u32) -> bool {
        let Some(notes) = self.note_segments() else {
            return false;
        };
        notes.into_iter().any(|notes| note_in(notes, owner, kind))
    }

    fn note_segments(&self) -> Option<Vec<&'a [u8]>> {
        let table = self.offset(0x20)?;
        let entry_size = usize::from(self.u16(0x36)?);
        let count = usize::from(self.u16(0x38)?);
        let mut found = Vec::new();
        for index in 0..count {
            let header = index.checked_mul(entry_size)?.checked_add(table)?;
            if self.u32(header)? != PT_NOTE {
                continue;
            }
            let start = self.offset(header.checked_add(8)?)?;
            let length = self.offset(header.checked_add(32)?)?;
            found.push(self.bytes.get(start..start.checked_add(length)?)?);
        }
        Some(found)
    }

    fn section_bytes(&self, header: usize) -> Option<&'a [u8]> {
        let start = self.offset(header.checked_add(24)?)?;
        let length = self.offset(header.checked_add(32)?)?;
        self.bytes.get(start..start.checked_add(length)?)
    }

    fn u16(&self, at: usize) -> Option<u16> {
        let bytes = self.bytes.get(at..at.checked_add(2)?)?;
        bytes.try_into().ok().map(u16::from_le_bytes)
    }

    fn u32(&self, at: usize) -> Option<u32> {
        u32_at(self.bytes, at)
    }

    fn offset(&self, at: usize) -> Option<usize> {
        let bytes = self.bytes.get(at..at.checked_add(8)?)?;
        usize::try_from(u64::from_le_bytes(bytes.try_into().ok()?)).ok()
    }
}

fn u32_at(bytes: &[u8], at: usize) -> Option<u32> {
    let bytes = bytes.get(at..at.checked_add(4)?)?;
    bytes.try_into().ok().map(u32::from_le_bytes)
}

fn note_in(notes: &[u8], owner: &str, kind: u32) -> bool {
    let round = |n: usize| n.checked_add(3).map(|n| n & !3);
    let mut at = 0usize;
    let step = |at: usize| -> Option<(bool, usize)> {
        let name_length = usize::try_from(u32_at(notes, at)?).ok()?;
        let data_length = usize::try_from(u32_at(notes, at.checked_add(4)?)?).ok()?;
        let this_kind = u32_at(notes, at.checked_add(8)?)?;
        let name_at = at.checked_add(12)?;
        let name = notes.get(name_at..name_at.checked_add(name_length)?)?;
        let name = name.strip_suffix(b"\0").unwrap_or(name);
        let next = name_at
            .checked_add(round(name_length)?)?
            .checked_add(round(data_length)?)?;
        Some((name == owner.as_bytes() && this_kind == kind, next))
    };
    while let Some((matches, next)) = step(at) {
        if matches {
            return true;
        }
        at = next;
    }
    false
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    /// An ELF file with one section and one note segment.
    pub(crate) fn sample(section: &str, contents: &[u8], owner: &str, kind: u32) -> Vec<u8> {
        let mut note = Vec::new();
        let mut name = owner.as_bytes().to_vec();
        name.push(0);
        note.extend_from_slice(&u32::try_from(name.len()).unwrap().to_le_bytes());
        note.extend_from_slice(&4u32.to_le_bytes());
        note.extend_from_slice(&kind.to_le_bytes());
        name.resize(name.len().div_ceil(4) * 4, 0);
        note.extend_from_slice(&name);
        note.extend_from_slice(&[0; 4]);
        let names = format!("\0{section}\0");
        let phdr = 64usize;
        let shdr = phdr + 56;
        let contents_at = shdr + 3 * 64;
        let names_at = contents_at + contents.len();
        let note_at = names_at + names.len();
        let mut file = vec![0u8; contents_at];
        file[..4].copy_from_slice(MAGIC);
        file[4] = 2;
        file[5] = 1;
        let put =
            |file: &mut Vec<u8>, at: usize, bytes: &[u8]| file[at..at + bytes.len()].copy_from_slice(bytes);
        put(&mut file, 0x20, &(phdr as u64).to_le_bytes());
        put(&mut file, 0x28, &(shdr as u64).to_le_bytes());
        for (at, value) in [(0x36, 56u16), (0x38, 1), (0x3a, 64), (0x3c, 3), (0x3e, 2)] {
            put(&mut file, at, &value.to_le_bytes());
        }
        put(&mut file, phdr, &PT_NOTE.to_le_bytes());
        put(&mut file, phdr + 8, &(note_at as u64).to_le_bytes());
        put(&mut file, phdr + 32, &(note.len() as u64).to_le_bytes());
        put(&mut file, shdr + 64, &1u32.to_le_bytes());
        put(&mut file, shdr + 64 + 24, &(contents_at as u64).to_le_bytes());
        put(&mut file, shdr + 64 + 32, &(contents.len() as u64).to_le_bytes());
        put(&mut file, shdr + 128 + 24, &(names_at as u64).to_le_bytes());
        put(&mut file, shdr + 128 + 32, &(names.len() as u64).to_le_bytes());
        file.extend_from_slice(contents);
        file.extend_from_slice(names.as_bytes());
        file.extend_from_slice(&note);
        file
    }

    #[test]
    fn sections_and_notes_are_found() {
        let file = sample(".modinfo", b"depends=a,b\0", "Xen", 18);
        let elf = Elf::parse(&file).unwrap();
        assert_eq!(elf.section(".modinfo"), Some(&b"depends=a,b\0"[..]));
        assert_eq!(elf.section(".text"), None);
        assert!(elf.has_note("Xen", 18));
        assert!(!elf.has_note("Xen", 17));
        assert!(!elf.has_note("GNU", 18));
    }

    #[test]
    fn a_file_cut_anywhere_is_no_panic() {
        let file = sample(".modinfo", b"depends=a,b\0", "Xen", 18);
        for length in 0..file.len() {
            if let Some(elf) = Elf::parse(&file[..length]) {
                let _ = elf.section(".modinfo");
                let _ = elf.has_note("Xen", 18);
            }
        }
    }
}
