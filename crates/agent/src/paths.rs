//! Paths that came from the host: absolute, below `/run/bulkhead`, never through a symbolic link.
//!
//! Owns: the safe join (openat2(2)). Never: hands out a name that could be swapped; callers get descriptors
//! and use them as `/proc/self/fd/N`. Called by `storage` and `spec`.

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{Mode, mkdirat};
use std::fs::File;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

/// Everything the host shares and the agent mounts is below here.
pub(crate) const BASE: &str = "/run/bulkhead";

/// Why a path was refused.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PathError {
    /// Not below [`BASE`], or with `..` or `.` in it.
    #[error("guest path {path:?}: expected an absolute path below {BASE} without \"..\"")]
    Outside {
        /// The path given.
        path: PathBuf,
    },
    /// A symbolic link on the way.
    #[error("guest path {path:?} leads through a symbolic link")]
    Link {
        /// The path given.
        path: PathBuf,
    },
    /// It could not be opened or made.
    #[error("guest path {path:?}")]
    Io {
        /// The path given.
        path: PathBuf,
        /// The kernel's reason.
        #[source]
        source: std::io::Error,
    },
}

/// Checks the text alone: what is left below [`BASE`].
///
/// # Errors
/// [`PathError::Outside`].
pub(crate) fn relative(path: &Path) -> Result<&Path, PathError> {
    let outside = || PathError::Outside {
        path: path.to_owned(),
    };
    let rest = path.strip_prefix(BASE).map_err(|_| outside())?;
    if rest.as_os_str().is_empty() || !rest.components().all(|part| matches!(part, Component::Normal(_))) {
        return Err(outside());
    }
    Ok(rest)
}

fn refuse(path: &Path, errno: Errno) -> PathError {
    match errno {
        Errno::ELOOP => PathError::Link {
            path: path.to_owned(),
        },
        Errno::EXDEV => PathError::Outside {
            path: path.to_owned(),
        },
        errno => PathError::Io {
            path: path.to_owned(),
            source: errno.into(),
        },
    }
}

fn step(base: &OwnedFd, rest: &Path) -> nix::Result<OwnedFd> {
    let how = OpenHow::new().flags(OFlag::O_PATH | OFlag::O_CLOEXEC).resolve(
        ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS,
    );
    openat2(base.as_fd(), rest, how)
}

fn base(path: &Path) -> Result<OwnedFd, PathError> {
    File::open(BASE)
        .map(OwnedFd::from)
        .map_err(|source| PathError::Io {
            path: path.to_owned(),
            source,
        })
}

/// Opens `path` as it is (`O_PATH`).
///
/// # Errors
/// [`PathError`].
pub(crate) fn open(path: &Path) -> Result<OwnedFd, PathError> {
    let rest = relative(path)?;
    step(&base(path)?, rest).map_err(|errno| refuse(path, errno))
}

/// Opens directory `path`, making what is missing of it with mode 0755.
///
/// # Errors
/// [`PathError`].
pub(crate) fn make_directory(path: &Path) -> Result<OwnedFd, PathError> {
    let rest = relative(path)?;
    let mut at = base(path)?;
    for part in rest.components() {
        let part = Path::new(part.as_os_str());
        at = match step(&at, part) {
            Err(Errno::ENOENT) => {
                match mkdirat(at.as_fd(), part, Mode::from_bits_truncate(0o755)) {
                    Ok(()) | Err(Errno::EEXIST) => {}
                    Err(errno) => return Err(refuse(path, errno)),
                }
                step(&at, part).map_err(|errno| refuse(path, errno))?
            }
            other => other.map_err(|errno| refuse(path, errno))?,
        };
    }
    Ok(at)
}

/// Opens `rest` below the directory `base`, through no link.
///
/// # Errors
/// The kernel's: `ELOOP` for a link, `EXDEV` for a way out.
pub(crate) fn open_below(base: &OwnedFd, rest: &Path, flags: OFlag) -> std::io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(flags | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK)
        .resolve(
            ResolveFlag::RESOLVE_BENEATH
                | ResolveFlag::RESOLVE_NO_SYMLINKS
                | ResolveFlag::RESOLVE_NO_MAGICLINKS,
        );
    Ok(openat2(base, rest, how)?)
}

/// A name for an open descriptor that the kernel resolves to exactly that file.
#[must_use]
pub(crate) fn handle(fd: &OwnedFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_raw_fd()))
}

/// Whether the open file is a directory.
#[must_use]
pub(crate) fn is_directory(fd: &OwnedFd) -> bool {
    nix::sys::stat::fstatat(fd.as_fd(), "", AtFlags::AT_EMPTY_PATH)
        .is_ok_and(|stat| stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_plain_paths_below_the_base() {
        assert_eq!(
            relative(Path::new("/run/bulkhead/share/a")).unwrap(),
            Path::new("share/a")
        );
        for bad in [
            "/run/bulkhead",
            "/run/bulkhead/../x",
            "/run/bulkheadx/a",
            "/etc/passwd",
            "share/a",
            "/run/bulkhead/a/../b",
        ] {
            assert!(
                matches!(relative(Path::new(bad)), Err(PathError::Outside { .. })),
                "{bad}"
            );
        }
    }
}
