//! Detached mounts: made, adjusted and then attached at an open target, with no path in between.
//!
//! Owns: open_tree, mount_setattr, move_mount, fsopen (Linux 5.12 or later), umount2 and pivot_root.
//! Never: leaves a detached mount behind: dropping a [`Tree`] dissolves it.

use nix::errno::Errno;
use nix::mount::MntFlags;
use std::ffi::{CStr, CString};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

// From linux/mount.h; the C library's headers lack them.
const OPEN_TREE_CLONE: u32 = 1;
const AT_RECURSIVE: u32 = 0x8000;
const MOVE_MOUNT_F_EMPTY_PATH: u32 = 0x04;
const MOVE_MOUNT_T_EMPTY_PATH: u32 = 0x40;
const FSOPEN_CLOEXEC: u32 = 1;
const FSMOUNT_CLOEXEC: u32 = 1;
const FSCONFIG_SET_FLAG: u32 = 0;
const FSCONFIG_SET_STRING: u32 = 1;
const FSCONFIG_CMD_CREATE: u32 = 6;

/// Why a mount could not be made or taken away.
#[derive(Debug, thiserror::Error)]
#[error("{call} {}", target.display())]
pub struct MountError {
    /// What was being done.
    pub call: &'static str,
    /// To which path, file system type or option.
    pub target: PathBuf,
    /// Why it failed.
    #[source]
    pub source: io::Error,
}

/// Per-mount attributes to set; those not set stay as they are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Attributes {
    /// No writing through this mount.
    pub read_only: bool,
    /// Set-user-ID bits have no effect.
    pub no_suid: bool,
    /// Device files cannot be opened.
    pub no_dev: bool,
    /// Nothing can be executed.
    pub no_exec: bool,
}

impl Attributes {
    const fn bits(self) -> u64 {
        // MOUNT_ATTR_RDONLY, _NOSUID, _NODEV, _NOEXEC of linux/mount.h.
        self.read_only as u64
            | (self.no_suid as u64) << 1
            | (self.no_dev as u64) << 2
            | (self.no_exec as u64) << 3
    }
}

/// Mount propagation (mount_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Propagation {
    /// Both ways.
    Shared,
    /// Inwards only.
    Slave,
    /// Not at all.
    Private,
}

impl Propagation {
    const fn bits(self) -> u64 {
        match self {
            Self::Shared => libc::MS_SHARED,
            Self::Slave => libc::MS_SLAVE,
            Self::Private => libc::MS_PRIVATE,
        }
    }
}

#[repr(C)]
#[derive(Default)]
struct MountAttr {
    set: u64,
    clear: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A detached mount, or a detached tree of mounts.
#[derive(Debug)]
pub struct Tree {
    fd: OwnedFd,
}

impl Tree {
    /// A bind of what is at `source` (and, if `recursive`, of what is mounted below it).
    ///
    /// # Errors
    /// [`MountError`] naming the source.
    pub fn bind(source: &Path, recursive: bool) -> Result<Self, MountError> {
        let path = CString::new(source.as_os_str().as_bytes())
            .map_err(|_| error("binding", source, Errno::EINVAL))?;
        Self::open(libc::AT_FDCWD, &path, recursive).map_err(|errno| error("binding", source, errno))
    }

    /// A bind of an open file or directory (`O_PATH` will do).
    ///
    /// # Errors
    /// [`MountError`] naming `what`.
    pub fn bind_fd(source: BorrowedFd<'_>, recursive: bool, what: &Path) -> Result<Self, MountError> {
        Self::open(source.as_raw_fd(), c"", recursive).map_err(|errno| error("binding", what, errno))
    }

    fn open(directory: RawFd, path: &CStr, recursive: bool) -> nix::Result<Self> {
        let mut flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as u32 | libc::AT_EMPTY_PATH as u32;
        if recursive {
            flags |= AT_RECURSIVE;
        }
        // SAFETY: the path is a terminated string that outlives the call.
        let fd = unsafe { libc::syscall(libc::SYS_open_tree, directory, path.as_ptr(), flags) };
        Ok(Self { fd: owned(fd)? })
    }

    /// A new instance of a file system, with its options as `key` or `key=value`.
    ///
    /// # Errors
    /// [`MountError`] naming the type or the option refused.
    pub fn filesystem(
        kind: &str,
        options: &[(&str, Option<&str>)],
        attributes: Attributes,
    ) -> Result<Self, MountError> {
        let failed = |call, what: &str| {
            let target = PathBuf::from(what);
            move |errno: Errno| error(call, &target, errno)
        };
        let c = |what: &str| CString::new(what).map_err(|_| failed("mounting", what)(Errno::EINVAL));
        let name = c(kind)?;
        // SAFETY: the name is a terminated string that outlives the call.
        let context = unsafe { libc::syscall(libc::SYS_fsopen, name.as_ptr(), FSOPEN_CLOEXEC) };
        let context = owned(context).map_err(failed("mounting", kind))?;
        let mut all = vec![("source", Some(kind))];
        all.extend(options);
        for (key, value) in all {
            let c_key = c(key)?;
            let c_value = value.map(c).transpose()?;
            let command = match c_value {
                Some(_) => FSCONFIG_SET_STRING,
                None => FSCONFIG_SET_FLAG,
            };
            let value_pointer = c_value.as_ref().map_or(std::ptr::null(), |v| v.as_ptr());
            // SAFETY: key and value are terminated strings (or null for a flag) that outlive the call.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_fsconfig,
                    context.as_raw_fd(),
                    command,
                    c_key.as_ptr(),
                    value_pointer,
                    0,
                )
            };
            Errno::result(result).map_err(failed("setting mount option", key))?;
        }
        let none = std::ptr::null::<libc::c_char>();
        // SAFETY: FSCONFIG_CMD_CREATE takes no key and no value.
        let result = unsafe {
            libc::syscall(
                libc::SYS_fsconfig,
                context.as_raw_fd(),
                FSCONFIG_CMD_CREATE,
                none,
                none,
                0,
            )
        };
        Errno::result(result).map_err(failed("mounting", kind))?;
        // SAFETY: plain numbers.
        let fd = unsafe {
            libc::syscall(
                libc::SYS_fsmount,
                context.as_raw_fd(),
                FSMOUNT_CLOEXEC,
                attributes.bits(),
            )
        };
        Ok(Self {
            fd: owned(fd).map_err(failed("mounting", kind))?,
        })
    }

    /// Sets attributes on the whole tree (`recursive`) or its top mount.
    ///
    /// # Errors
    /// [`MountError`]; attributes a user namespace locked cannot be taken back.
    pub fn set(&self, attributes: Attributes, recursive: bool) -> Result<(), MountError> {
        let change = MountAttr {
            set: attributes.bits(),
            ..MountAttr::default()
        };
        set_attributes(self.fd.as_raw_fd(), c"", recursive, &change)
            .map_err(|errno| error("setting attributes of", Path::new("a detached mount"), errno))
    }

    /// Sets the propagation of the whole tree or its top mount.
    ///
    /// # Errors
    /// [`MountError`].
    pub fn propagate(&self, kind: Propagation, recursive: bool) -> Result<(), MountError> {
        let change = MountAttr {
            propagation: kind.bits(),
            ..MountAttr::default()
        };
        set_attributes(self.fd.as_raw_fd(), c"", recursive, &change)
            .map_err(|errno| error("setting propagation of", Path::new("a detached mount"), errno))
    }

    /// Attaches it on top of an open target, which must be a directory for a directory and a file for a file.
    ///
    /// # Errors
    /// [`MountError`] naming `what`.
    pub fn attach(self, target: BorrowedFd<'_>, what: &Path) -> Result<(), MountError> {
        let flags = MOVE_MOUNT_F_EMPTY_PATH | MOVE_MOUNT_T_EMPTY_PATH;
        // SAFETY: both paths are empty terminated strings; both descriptors are open.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_mount,
                self.fd.as_raw_fd(),
                c"".as_ptr(),
                target.as_raw_fd(),
                c"".as_ptr(),
                flags,
            )
        };
        Errno::result(result)
            .map(drop)
            .map_err(|errno| error("mounting at", what, errno))
    }

    /// Attaches it at a path, links followed. Only for paths nobody else can change.
    ///
    /// # Errors
    /// [`MountError`] naming the path.
    pub fn attach_at(self, target: &Path) -> Result<(), MountError> {
        let fd = nix::fcntl::open(
            target,
            nix::fcntl::OFlag::O_PATH | nix::fcntl::OFlag::O_CLOEXEC,
            nix::sys::stat::Mode::empty(),
        )
        .map_err(|errno| error("opening", target, errno))?;
        self.attach(fd.as_fd(), target)
    }
}

impl AsFd for Tree {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}

/// Sets the propagation of an existing mount.
///
/// # Errors
/// [`MountError`]; `EINVAL` when `target` is no mount point.
pub fn propagate(target: &Path, kind: Propagation, recursive: bool) -> Result<(), MountError> {
    let change = MountAttr {
        propagation: kind.bits(),
        ..MountAttr::default()
    };
    let path = CString::new(target.as_os_str().as_bytes())
        .map_err(|_| error("setting propagation of", target, Errno::EINVAL))?;
    set_attributes(libc::AT_FDCWD, &path, recursive, &change)
        .map_err(|errno| error("setting propagation of", target, errno))
}

/// Sets attributes on an existing mount (`recursive`: and on all below it).
///
/// # Errors
/// [`MountError`]; `EINVAL` when `target` is no mount point.
pub fn restrict(target: &Path, attributes: Attributes, recursive: bool) -> Result<(), MountError> {
    let change = MountAttr {
        set: attributes.bits(),
        ..MountAttr::default()
    };
    let path = CString::new(target.as_os_str().as_bytes())
        .map_err(|_| error("setting attributes of", target, Errno::EINVAL))?;
    set_attributes(libc::AT_FDCWD, &path, recursive, &change)
        .map_err(|errno| error("setting attributes of", target, errno))
}

/// Unmounts the topmost mount at `target`; a busy one is detached, which happens to it at the latest when
/// its last user lets go. True when it was detached. What is not mounted (or not there) is success.
///
/// # Errors
/// [`MountError`].
pub fn unmount(target: &Path) -> Result<bool, MountError> {
    match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) | Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
        Err(Errno::EBUSY) => {
            match nix::mount::umount2(target, MntFlags::UMOUNT_NOFOLLOW | MntFlags::MNT_DETACH) {
                Ok(()) => Ok(true),
                Err(Errno::EINVAL | Errno::ENOENT) => Ok(false),
                Err(errno) => Err(error("unmounting", target, errno)),
            }
        }
        Err(errno) => Err(error("unmounting", target, errno)),
    }
}

/// Makes the mount at `root` the root of this mount namespace and lets go of the old one: nothing of it can
/// be reached any more by path. The working directory is the new root then.
///
/// # Errors
/// [`MountError`]; pivot_root(2) refuses a `root` that is no mount point, and an initramfs as the old root.
pub fn move_to_root(root: &Path) -> Result<(), MountError> {
    let failed = |call| move |errno| error(call, root, errno);
    nix::unistd::chdir(root).map_err(failed("changing directory to"))?;
    nix::unistd::pivot_root(".", ".").map_err(failed("pivoting to"))?;
    // The old root is now mounted on top of the new one, and "." is the old root (pivot_root(2), NOTES).
    propagate(Path::new("."), Propagation::Private, true)?;
    nix::mount::umount2(".", MntFlags::MNT_DETACH).map_err(failed("letting go of the old root for"))?;
    nix::unistd::chdir("/").map_err(failed("changing directory to"))
}

fn set_attributes(directory: RawFd, path: &CStr, recursive: bool, change: &MountAttr) -> nix::Result<()> {
    let mut flags = libc::AT_EMPTY_PATH as u32;
    if recursive {
        flags |= AT_RECURSIVE;
    }
    // SAFETY: the path is a terminated string and the structure has the layout of mount_attr, whose size is
    // given; both outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            directory,
            path.as_ptr(),
            flags,
            std::ptr::from_ref(change),
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop)
}

fn owned(result: libc::c_long) -> nix::Result<OwnedFd> {
    let fd = RawFd::try_from(Errno::result(result)?).map_err(|_| Errno::EBADF)?;
    // SAFETY: only called with the result of a system call that returns a new descriptor.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn error(call: &'static str, target: &Path, errno: Errno) -> MountError {
    MountError {
        call,
        target: target.to_owned(),
        source: errno.into(),
    }
}
