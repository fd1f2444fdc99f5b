//! Memory of virtual machines as files: anonymous ones, and copies of what a sparse file holds. And how large the pages
//! of the processes around them are.
//!
//! Owns: such files until their descriptor is closed. Never: maps them. Called by `vmm`, the template store and
//! supervisors.

use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::memfd::{MFdFlags, memfd_create};
use nix::sys::statvfs::statvfs;
use nix::unistd::{Whence, lseek};
use std::ffi::CStr;
use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;

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

/// A new file at `path`, for its owner alone, of `bytes` bytes without data.
///
/// # Errors
/// open(2): `EEXIST` where there is one; ftruncate(2).
pub fn file(path: &Path, bytes: u64) -> io::Result<OwnedFd> {
    let file = create(path)?;
    file.set_len(bytes)?;
    Ok(file.into())
}

fn create(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(path)
}

/// Checks that a file can have holes where `path` is, which names none yet: one is made there, and removed.
///
/// # Errors
/// open(2), write(2); fallocate(2): `EOPNOTSUPP` on a file system that knows no holes.
pub fn check_holes(path: &Path) -> io::Result<()> {
    const BYTES: u64 = 64 << 10;
    let file = create(path)?;
    std::fs::remove_file(path)?;
    file.write_all_at(&[1; 4096], BYTES - 4096)?;
    punch(&file, 0, BYTES)?;
    match data_after(&file, 0)? {
        None => Ok(()),
        Some(_) => Err(Errno::EOPNOTSUPP.into()),
    }
}

/// Whether less than `bytes` are free in the file system `dir` is on.
///
/// # Errors
/// statvfs(3).
pub fn is_short_of(dir: &Path, bytes: u64) -> io::Result<bool> {
    let free = statvfs(dir)?;
    Ok(free.blocks_available().saturating_mul(free.fragment_size()) < bytes)
}

/// Turns blocks of `file` that hold nothing but zeroes into holes. Returns the bytes given back.
///
/// # Errors
/// lseek(2), read(2), fallocate(2): `EOPNOTSUPP` on a file system that cannot, with the content as it was.
pub fn punch_zeroes(file: &File) -> io::Result<u64> {
    const BLOCK: usize = 4096;
    const ZERO: [u8; BLOCK] = [0; BLOCK];
    let mut given_back = 0;
    let mut buffer = vec![0; 256 * BLOCK];
    let mut position = 0;
    while let Some((start, end)) = data_after(file, position)? {
        let mut at = u64::try_from(start).unwrap_or(0);
        let end = u64::try_from(end).unwrap_or(0);
        while at < end {
            let wanted = usize::try_from(end - at).unwrap_or(usize::MAX).min(buffer.len());
            let chunk = &mut buffer[..wanted];
            file.read_exact_at(chunk, at)?;
            let blocks: Vec<bool> = chunk
                .chunks(BLOCK)
                .map(|block| block == &ZERO[..block.len()])
                .collect();
            let mut first = 0;
            for run in blocks.chunk_by(|a, b| a == b) {
                if run[0] {
                    let length = (run.len() * BLOCK).min(wanted - first * BLOCK);
                    let from = at + (first * BLOCK) as u64;
                    punch(file, from, length as u64)?;
                    given_back += length as u64;
                }
                first += run.len();
            }
            at += wanted as u64;
        }
        position = i64::try_from(end).unwrap_or(i64::MAX);
    }
    Ok(given_back)
}

fn punch(file: &File, from: u64, length: u64) -> io::Result<()> {
    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    let (from, length) = (i64::try_from(from), i64::try_from(length));
    let (Ok(from), Ok(length)) = (from, length) else {
        return Err(io::ErrorKind::InvalidInput.into());
    };
    fallocate(file, flags, from, length)?;
    Ok(())
}

/// Whether the host gives shared memory, and so that of a virtual machine, huge pages: kernel docs, transhuge.
const SHARED_HUGE_PAGES: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

/// Has this process and all that it starts get small pages only, unless the memory of virtual machines would lose huge
/// ones by it. A VMM has a table of 20 KiB in 2 MiB of address space, and advises the kernel to back it by a huge page; on
/// hosts that give huge pages unasked, each stack and heap is one. Says whether it did.
///
/// # Errors
/// prctl(2), `PR_SET_THP_DISABLE`.
pub fn prefer_small_pages() -> io::Result<bool> {
    let shared = std::fs::read_to_string(SHARED_HUGE_PAGES).unwrap_or_default();
    let lost = gives_huge_pages(&shared);
    if !lost {
        nix::sys::prctl::set_thp_disable(true)?;
    }
    Ok(!lost)
}

/// The word in brackets is the one in force.
fn gives_huge_pages(setting: &str) -> bool {
    !setting.is_empty() && !setting.contains("[never]") && !setting.contains("[deny]")
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
    use std::os::unix::fs::MetadataExt;

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

    /// As on a file system that knows no holes: all of it is data, and all of it arrives.
    #[test]
    fn a_file_without_holes_is_copied_whole() {
        const SIZE: usize = 3 << 20;
        let from = File::from(anonymous(c"from", SIZE as u64).unwrap());
        let content: Vec<u8> = (0..SIZE).map(|at| (at / 4096 % 3) as u8).collect();
        from.write_all_at(&content, 0).unwrap();
        let to = File::from(anonymous(c"to", SIZE as u64).unwrap());
        assert_eq!(copy_data(&from, &to).unwrap(), SIZE as u64);
        let mut there = vec![9; SIZE];
        to.read_exact_at(&mut there, 0).unwrap();
        assert!(there == content);
    }

    #[test]
    fn a_directory_is_asked_whether_files_in_it_can_have_holes() {
        let dir = tempfile::tempdir().unwrap();
        check_holes(&dir.path().join("probe")).unwrap();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 0);
        assert!(check_holes(Path::new("/proc/probe")).is_err());
        assert!(!is_short_of(dir.path(), 1).unwrap());
        assert!(is_short_of(dir.path(), u64::MAX).unwrap());
    }

    #[test]
    fn huge_pages_of_virtual_machines_are_seen() {
        for word in ["always", "within_size", "advise", "force"] {
            let setting =
                "always within_size advise never deny force".replacen(word, &format!("[{word}]"), 1);
            assert!(gives_huge_pages(&setting), "{setting}");
        }
        assert!(!gives_huge_pages(
            "always within_size advise [never] deny force\n"
        ));
        assert!(!gives_huge_pages(
            "always within_size advise never [deny] force\n"
        ));
        // A kernel without them.
        assert!(!gives_huge_pages(""));
    }

    #[test]
    fn small_pages_are_for_the_process() {
        let enabled = || {
            let status = std::fs::read_to_string("/proc/self/status").unwrap();
            status
                .lines()
                .find_map(|line| line.strip_prefix("THP_enabled:"))
                .map(|word| word.trim() == "1")
        };
        let before = enabled();
        if prefer_small_pages().unwrap() {
            assert_ne!(enabled(), Some(true));
            nix::sys::prctl::set_thp_disable(false).unwrap();
        }
        assert_eq!(enabled(), before);
    }

    #[test]
    fn an_empty_file_has_nothing_to_copy() {
        let from = File::from(anonymous(c"from", 4096).unwrap());
        let to = File::from(anonymous(c"to", 4096).unwrap());
        assert_eq!(copy_data(&from, &to).unwrap(), 0);
    }

    #[test]
    fn zeroes_become_holes_and_nothing_else_does() {
        const SIZE: u64 = 8 << 20;
        let file = File::from(anonymous(c"memory", SIZE).unwrap());
        file.write_all_at(&vec![0; SIZE as usize], 0).unwrap();
        for place in [4096, 3 << 20, SIZE - 1] {
            file.write_all_at(&[9], place).unwrap();
        }
        assert_eq!(punch_zeroes(&file).unwrap(), SIZE - 3 * 4096);
        assert_eq!(file.metadata().unwrap().blocks() * 512, 3 * 4096);
        let mut all = vec![1; SIZE as usize];
        file.read_exact_at(&mut all, 0).unwrap();
        let set: Vec<usize> = (0..all.len()).filter(|at| all[*at] != 0).collect();
        assert_eq!(set, [4096, 3 << 20, SIZE as usize - 1]);
    }
}
