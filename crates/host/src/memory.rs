//! Memory of virtual machines as files: anonymous ones, and copies of what a sparse file holds.
//!
//! Owns: such files until their descriptor is closed. Never: maps them. Called by `vmm` and the template store.

use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::unistd::{Whence, lseek};
use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::OwnedFd;

/// A file of `bytes` bytes, all zero, that lives in memory and goes with its last descriptor. `name` is for
/// `/proc/<pid>/fd`.
///
/// # Errors
/// memfd_create(2), ftruncate(2).
pub fn anonymous(name: &CStr, bytes: u64) -> io::Result<OwnedFd> {
    let fd = memfd_create(name, MFdFlags::MFD_CLOEXEC)?;
    let file = File::from(fd);
    file.set_len(bytes)?;
    Ok(file.into())
}

/// Copies everything that is not a hole from `from` to the same place in `to`, which is as long and all holes.
/// Returns the bytes copied. Both files' positions move.
///
/// # Errors
/// lseek(2), read(2), write(2); `UnexpectedEof` when `from` shrinks meanwhile.
pub fn copy_data(from: &File, to: &File) -> io::Result<u64> {
    let mut copied = 0;
    let mut position = 0;
    while let Some((start, end)) = data_after(from, position)? {
        lseek(from, start, Whence::SeekSet)?;
        lseek(to, start, Whence::SeekSet)?;
        let length = u64::try_from(end - start).unwrap_or(0);
        // Within the kernel where it can: one copy, no buffer of ours.
        let count = io::copy(&mut from.take(length), &mut &*to)?;
        if count != length {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        copied += count;
        position = end;
    }
    Ok(copied)
}

/// The first range at or after `position` that holds data: lseek(2), `SEEK_DATA`, `SEEK_HOLE`. A file system that
/// knows no holes reports one range to the end.
fn data_after(file: &File, position: i64) -> io::Result<Option<(i64, i64)>> {
    let start = match lseek(file, position, Whence::SeekData) {
        Ok(start) => start,
        Err(Errno::ENXIO) => return Ok(None),
        Err(errno) => return Err(errno.into()),
    };
    let end = lseek(file, start, Whence::SeekHole)?;
    Ok(Some((start, end)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{FileExt, MetadataExt};

    #[test]
    fn data_is_copied_and_holes_stay() {
        const SIZE: u64 = 64 << 20;
        let from = File::from(anonymous(c"from", SIZE).unwrap());
        for place in [0, 12 << 20, SIZE - 4096] {
            from.write_all_at(&[place as u8 | 7; 4096], place).unwrap();
        }
        let to = File::from(anonymous(c"to", SIZE).unwrap());
        let copied = copy_data(&from, &to).unwrap();
        assert!((3 * 4096..=SIZE / 4).contains(&copied), "{copied}");
        for place in [0, 12 << 20, SIZE - 4096, 1 << 20] {
            let mut here = [0; 4096];
            let mut there = [0; 4096];
            from.read_exact_at(&mut here, place).unwrap();
            to.read_exact_at(&mut there, place).unwrap();
            assert!(here == there, "at {place}");
        }
        assert!(to.metadata().unwrap().blocks() * 512 < SIZE / 4);
    }

    #[test]
    fn an_empty_file_has_nothing_to_copy() {
        let from = File::from(anonymous(c"from", 4096).unwrap());
        let to = File::from(anonymous(c"to", 4096).unwrap());
        assert_eq!(copy_data(&from, &to).unwrap(), 0);
    }
}
