//! `tmpcopyup`: a tmpfs that begins with what the image has at its place.
//!
//! ```text
//!  take: the image's directory, opened ─► (the tmpfs is mounted over it) ─► put: copied into the tmpfs
//! ```
//!
//! Owns: the copy, with owners, modes and links. Called by `root`.

use nix::dir::{Dir, Type};
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, SFlag, fchmodat, fstatat, mkdirat, mknodat};
use nix::unistd::{Gid, Uid, fchownat, symlinkat};
use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;

const READ: OFlag = OFlag::O_RDONLY.union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// The directory as the image has it.
pub(super) fn take(path: &Path) -> io::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    Ok(nix::fcntl::open(path, flags, Mode::empty())?)
}

/// Copies all of it to `path`.
pub(super) fn put(image: &OwnedFd, path: &Path) -> io::Result<()> {
    let to = take(path)?;
    Ok(copy(image.as_fd(), to.as_fd())?)
}

fn copy(from: BorrowedFd<'_>, to: BorrowedFd<'_>) -> nix::Result<()> {
    let mut entries = Dir::openat(from, ".", READ | OFlag::O_DIRECTORY, Mode::empty())?;
    for entry in entries.iter() {
        let entry = entry?;
        let name = entry.file_name();
        if matches!(name.to_bytes(), b"." | b"..") {
            continue;
        }
        let about = fstatat(from, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        one(from, to, name, entry.file_type(), &about)?;
        fchownat(
            to,
            name,
            Some(Uid::from_raw(about.st_uid)),
            Some(Gid::from_raw(about.st_gid)),
            AtFlags::AT_SYMLINK_NOFOLLOW,
        )?;
        if about.st_mode & libc::S_IFMT == libc::S_IFREG {
            // The set-id bits survive neither a write nor a change of owner.
            let mode = Mode::from_bits_truncate(about.st_mode & 0o7777);
            fchmodat(to, name, mode, FchmodatFlags::FollowSymlink)?;
        }
    }
    Ok(())
}

fn one(
    from: BorrowedFd<'_>,
    to: BorrowedFd<'_>,
    name: &CStr,
    kind: Option<Type>,
    about: &FileStat,
) -> nix::Result<()> {
    let mode = Mode::from_bits_truncate(about.st_mode & 0o7777);
    match SFlag::from_bits_truncate(about.st_mode) & SFlag::S_IFMT {
        SFlag::S_IFDIR => {
            mkdirat(to, name, mode)?;
            let inner = openat(from, name, READ | OFlag::O_DIRECTORY, Mode::empty())?;
            let outer = openat(to, name, READ | OFlag::O_DIRECTORY, Mode::empty())?;
            copy(inner.as_fd(), outer.as_fd())
        }
        SFlag::S_IFLNK => symlinkat(readlinkat(from, name)?.as_os_str(), to, name),
        SFlag::S_IFREG => {
            let mut source = File::from(openat(from, name, READ, Mode::empty())?);
            let make = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut target = File::from(openat(to, name, make, mode)?);
            io::copy(&mut source, &mut target)
                .map_err(|error| Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)))?;
            Ok(())
        }
        other => {
            // A socket means nothing without the process that listens on it.
            if kind == Some(Type::Socket) {
                return mknodat(to, name, SFlag::S_IFREG, mode, 0);
            }
            mknodat(to, name, other, mode, about.st_rdev)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::{MetadataExt, PermissionsExt};

    #[test]
    fn files_links_and_modes_are_copied() {
        let from = tempfile::tempdir().unwrap();
        let to = tempfile::tempdir().unwrap();
        std::fs::create_dir(from.path().join("d")).unwrap();
        std::fs::write(from.path().join("d/file"), "text").unwrap();
        std::os::unix::fs::symlink("nowhere", from.path().join("link")).unwrap();
        let mode = std::fs::Permissions::from_mode(0o640);
        std::fs::set_permissions(from.path().join("d/file"), mode).unwrap();
        let image = take(from.path()).unwrap();
        put(&image, to.path()).unwrap();
        let copied = to.path().join("d/file");
        assert_eq!(std::fs::read_to_string(&copied).unwrap(), "text");
        assert_eq!(std::fs::metadata(&copied).unwrap().mode() & 0o7777, 0o640);
        assert_eq!(
            std::fs::read_link(to.path().join("link")).unwrap(),
            Path::new("nowhere")
        );
    }
}
