//! Paths inside a directory that cannot lead out of it.
//!
//! Owns: openat2(2) with `RESOLVE_IN_ROOT`, and creating what is missing. Never: follows a link, `..` or a
//! magic link beyond the directory. Called for container root file systems, whose content is hostile.

use nix::errno::Errno;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;
use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// As the kernel: more links than this in one path are a loop (path_resolution(7)).
const MAX_LINKS: usize = 40;

/// openat2 answers EAGAIN when the tree changed under a `..`; that often is an attack.
const MAX_RACES: usize = 128;

/// What a mount target is to be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TargetKind {
    /// An empty directory.
    Directory,
    /// An empty regular file.
    File,
}

/// A directory that paths are resolved in.
#[derive(Debug)]
pub struct InRoot {
    root: OwnedFd,
}

impl InRoot {
    /// Of an existing directory on the host; links in `path` itself are followed as usual.
    ///
    /// # Errors
    /// What open(2) reports, `ENOTDIR` among it.
    pub fn open_root(path: &Path) -> io::Result<Self> {
        let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        Ok(Self {
            root: nix::fcntl::open(path, flags, Mode::empty())?,
        })
    }

    /// Of an open directory.
    #[must_use]
    pub fn from_fd(root: OwnedFd) -> Self {
        Self { root }
    }

    /// Opens `path` as if this directory were the root, following links inside of it. `O_CLOEXEC` is added.
    ///
    /// # Errors
    /// What openat2(2) reports.
    pub fn open(&self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        Ok(self.open_errno(path, flags)?)
    }

    /// Opens the thing at `path` for use as a mount source or target (`O_PATH`).
    ///
    /// # Errors
    /// What openat2(2) reports.
    pub fn locate(&self, path: &Path) -> io::Result<OwnedFd> {
        self.open(path, OFlag::O_PATH)
    }

    /// As [`Self::locate`], creating an empty target and missing parents (mode 0755) first. Something of
    /// another kind that is already there is opened as it is.
    ///
    /// # Errors
    /// What openat2(2), mkdirat(2) or openat(2) report; `ELOOP` for links without end.
    pub fn ensure(&self, path: &Path, kind: TargetKind) -> io::Result<OwnedFd> {
        Ok(self.ensure_errno(&clean(path), kind, MAX_LINKS)?)
    }

    fn ensure_errno(&self, path: &Path, kind: TargetKind, links: usize) -> nix::Result<OwnedFd> {
        match self.open_errno(path, OFlag::O_PATH) {
            Err(Errno::ENOENT) => {}
            other => return other,
        }
        if links == 0 {
            return Err(Errno::ELOOP);
        }
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else {
            return Err(Errno::ENOENT);
        };
        let directory = self.ensure_errno(parent, TargetKind::Directory, links)?;
        match create(directory.as_fd(), name, kind) {
            Ok(()) => self.open_errno(path, OFlag::O_PATH),
            Err(Errno::EEXIST) => {
                // Either somebody was faster, or it is a link to nothing: then its target is created.
                match nix::fcntl::readlinkat(&directory, name) {
                    Ok(link) => self.ensure_errno(&clean_join(parent, Path::new(&link)), kind, links - 1),
                    Err(_) => self.open_errno(path, OFlag::O_PATH),
                }
            }
            Err(errno) => Err(errno),
        }
    }

    fn open_errno(&self, path: &Path, flags: OFlag) -> nix::Result<OwnedFd> {
        let path = if path.as_os_str().is_empty() {
            Path::new("/")
        } else {
            path
        };
        let how = OpenHow::new()
            .flags(flags | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let mut races = 0;
        loop {
            match openat2(&self.root, path, how) {
                Err(Errno::EINTR) => {}
                Err(Errno::EAGAIN) if races < MAX_RACES => races += 1,
                other => return other,
            }
        }
    }
}

impl AsFd for InRoot {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }
}

fn create(directory: BorrowedFd<'_>, name: &OsStr, kind: TargetKind) -> nix::Result<()> {
    match kind {
        TargetKind::Directory => nix::sys::stat::mkdirat(directory, name, Mode::from_bits_truncate(0o755)),
        TargetKind::File => {
            let flags =
                OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC | OFlag::O_WRONLY;
            nix::fcntl::openat(directory, name, flags, Mode::from_bits_truncate(0o755)).map(drop)
        }
    }
}

/// Without `.`, `..` and doubled slashes, as the text says, absolute.
fn clean(path: &Path) -> PathBuf {
    let mut cleaned = PathBuf::from("/");
    for component in path.components() {
        match component {
            Component::ParentDir => {
                cleaned.pop();
            }
            Component::Normal(name) => cleaned.push(name),
            Component::CurDir | Component::RootDir | Component::Prefix(_) => {}
        }
    }
    cleaned
}

/// Where a link to nothing leads, as the text says. With `..` behind a further link the text may name another
/// place than the kernel would: still one inside the root, which is all that is promised.
fn clean_join(parent: &Path, link: &Path) -> PathBuf {
    if link.is_absolute() {
        clean(link)
    } else {
        clean(&parent.join(link))
    }
}
