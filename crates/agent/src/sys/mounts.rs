//! open_tree(2), move_mount(2), mount_setattr(2): mounts as descriptors.
//!
//! Owns: the calls and their constants (linux/mount.h). Never: which mounts (see `launch::root`).

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

/// MOUNT_ATTR_RDONLY.
pub(crate) const READ_ONLY: u64 = 0x1;
/// MOUNT_ATTR_NOSUID.
pub(crate) const NO_SUID: u64 = 0x2;
/// MOUNT_ATTR_NODEV.
pub(crate) const NO_DEV: u64 = 0x4;
/// MOUNT_ATTR_NOEXEC.
pub(crate) const NO_EXEC: u64 = 0x8;
/// MOUNT_ATTR__ATIME: the bits that hold one of the next three (or 0, which is relatime).
pub(crate) const ATIME: u64 = 0x70;
/// MOUNT_ATTR_NOATIME.
pub(crate) const NO_ATIME: u64 = 0x10;
/// MOUNT_ATTR_STRICTATIME.
pub(crate) const STRICT_ATIME: u64 = 0x20;
/// MOUNT_ATTR_NODIRATIME.
pub(crate) const NO_DIR_ATIME: u64 = 0x80;
/// MOUNT_ATTR_NOSYMFOLLOW.
pub(crate) const NO_SYMFOLLOW: u64 = 0x0020_0000;

const OPEN_TREE_CLONE: u32 = 1;
const AT_RECURSIVE: u32 = 0x8000;
const AT_EMPTY_PATH: u32 = 0x1000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x4;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;

/// `struct mount_attr`.
#[repr(C)]
#[derive(Default)]
struct Attributes {
    set: u64,
    clear: u64,
    propagation: u64,
    users: u64,
}

/// A copy of the mount `from` is in, beginning at `from` itself, attached nowhere yet; with all mounts below it if
/// `recursive`.
///
/// # Errors
/// The kernel's: `EINVAL` if mounts below must stay in place and are left out.
pub(crate) fn copy(from: BorrowedFd<'_>, recursive: bool) -> io::Result<OwnedFd> {
    let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | AT_EMPTY_PATH;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: an open descriptor, an empty NUL-terminated string, and flags.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, from.as_raw_fd(), c"".as_ptr(), flags) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: the call returned a new descriptor that nothing else owns; descriptors fit in an i32.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Puts the unattached `tree` over the file or directory `onto`.
///
/// # Errors
/// The kernel's: `EINVAL` if one is a directory and the other is not.
pub(crate) fn attach(tree: BorrowedFd<'_>, onto: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: two open descriptors, two empty NUL-terminated strings, and flags.
    let done = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree.as_raw_fd(),
            c"".as_ptr(),
            onto.as_raw_fd(),
            c"".as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH,
        )
    };
    done_or_error(done)
}

/// Sets and clears attributes of the mount `at` is the root of, and its propagation (`MS_SHARED` and its kin, 0 to
/// leave it); of all below too if `recursive`.
///
/// # Errors
/// The kernel's: `EPERM` for what the creator of a namespace locked.
pub(crate) fn change(
    at: BorrowedFd<'_>,
    recursive: bool,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let flags = AT_EMPTY_PATH | if recursive { AT_RECURSIVE } else { 0 };
    change_at(at.as_raw_fd(), c"", flags, set, clear, propagation)
}

fn change_at(
    directory: i32,
    path: &CStr,
    flags: u32,
    set: u64,
    clear: u64,
    propagation: u64,
) -> io::Result<()> {
    let attributes = Attributes {
        set,
        clear,
        propagation,
        users: 0,
    };
    // SAFETY: a descriptor, a NUL-terminated string, and a structure of the given size, which is only read.
    let done = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
            &raw const attributes,
            size_of::<Attributes>(),
        )
    };
    done_or_error(done)
}

fn done_or_error(done: libc::c_long) -> io::Result<()> {
    if done < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
