//! The least a program can be, elf(5): code that the agent brings along itself.
//!
//! Owns: the headers. Never: the code. Called by `rehearsal` and `pause`.

use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

/// Where the file is mapped.
const BASE: u64 = 0x40_0000;

/// Bytes of both headers: the code follows them.
const HEADERS: u64 = 64 + 56;

/// Writes a program that runs `code`, which is position-independent x86-64, to `path` in a directory that is made for it.
///
/// # Errors
/// What the kernel reports.
pub(crate) fn write(path: &Path, code: &[u8]) -> io::Result<()> {
    if let Some(directory) = path.parent() {
        fs::create_dir_all(directory)?;
    }
    let mut file = File::create(path)?;
    file.write_all(&program(code))?;
    file.set_permissions(Permissions::from_mode(0o755))
}

fn program(code: &[u8]) -> Vec<u8> {
    let mut file = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let size = HEADERS + code.len() as u64;
    // e_type (executable), e_machine (x86-64), e_version, e_entry, e_phoff, e_shoff, e_flags
    file.extend([2_u8, 0, 62, 0, 1, 0, 0, 0]);
    for word in [BASE + HEADERS, 64, 0] {
        file.extend(word.to_le_bytes());
    }
    file.extend(0_u32.to_le_bytes());
    // e_ehsize, e_phentsize, e_phnum, and no sections
    for half in [64_u16, 56, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    // p_type (load), p_flags (read, execute)
    for word in [1_u32, 5] {
        file.extend(word.to_le_bytes());
    }
    // p_offset, p_vaddr, p_paddr, p_filesz, p_memsz, p_align
    for word in [0, BASE, BASE, size, size, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[cfg(test)]
mod tests {
    use super::write;
    use std::process::Command;

    #[test]
    fn what_is_written_runs() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/exit");
        // mov edi, 7; mov eax, SYS_exit; syscall
        write(&path, &[0xbf, 7, 0, 0, 0, 0xb8, 60, 0, 0, 0, 0x0f, 0x05]).unwrap();
        assert_eq!(Command::new(&path).status().unwrap().code(), Some(7));
    }
}
