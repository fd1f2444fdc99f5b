//! Network namespaces: opening, making, pinning to a path, running code inside.
//!
//! Owns: a descriptor of a namespace. Never: changes the namespace of a thread that goes on to do something
//! else: code runs on a thread of its own that ends with it (contract K-05). Called by `sandbox` and `vmm`.

use crate::mount::{MountError, Tree};
use crate::process::Namespace;
use nix::errno::Errno;
use nix::sched::CloneFlags;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// Why a network namespace is not to be had.
#[derive(Debug, thiserror::Error)]
pub enum NetnsError {
    /// The path cannot be opened.
    #[error("cannot open the network namespace {}", path.display())]
    Open {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The path is something else.
    #[error("{} is not a network namespace: expected a file such as /run/netns/<name> or /proc/<pid>/ns/net", path.display())]
    NotANetns {
        /// The path.
        path: PathBuf,
    },
    /// It could not be entered; the code was not run.
    #[error("cannot enter the network namespace {}", path.display())]
    Enter {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// None could be made.
    #[error("cannot make a network namespace: {step}")]
    Create {
        /// What was being done.
        step: &'static str,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// It could not be pinned to a path.
    #[error("cannot pin the network namespace to {}", path.display())]
    Pin {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The mount that pins it failed.
    #[error("pinning a network namespace")]
    Mount(#[from] MountError),
}

/// A network namespace; it lives at least as long as this does.
#[derive(Debug)]
pub struct Netns {
    file: File,
    path: PathBuf,
}

impl Netns {
    /// Opens the one at `path`.
    ///
    /// # Errors
    /// [`NetnsError::Open`], [`NetnsError::NotANetns`].
    pub fn open(path: &Path) -> Result<Self, NetnsError> {
        // Not blocking: the path may name a FIFO.
        let file = File::options()
            .read(true)
            .custom_flags(libc::O_NONBLOCK | libc::O_NOCTTY)
            .open(path)
            .map_err(|source| NetnsError::Open {
                path: path.to_owned(),
                source,
            })?;
        if !is_netns(&file) {
            return Err(NetnsError::NotANetns {
                path: path.to_owned(),
            });
        }
        Ok(Self {
            file,
            path: path.to_owned(),
        })
    }

    /// The one this thread is in.
    ///
    /// # Errors
    /// [`NetnsError::Open`]: no `/proc`.
    pub fn current() -> Result<Self, NetnsError> {
        Self::open(Path::new("/proc/thread-self/ns/net"))
    }

    /// A new one, empty but for a loopback interface that is down.
    ///
    /// # Errors
    /// [`NetnsError::Create`].
    pub fn new() -> Result<Self, NetnsError> {
        let failed = |step| move |source| NetnsError::Create { step, source };
        on_own_thread(|| {
            nix::sched::unshare(CloneFlags::CLONE_NEWNET).map_err(|e| failed("unshare")(e.into()))?;
            let file = File::open("/proc/thread-self/ns/net").map_err(failed("opening it"))?;
            Ok(Self {
                file,
                path: PathBuf::from("(a new one)"),
            })
        })
        .map_err(failed("starting a thread"))?
    }

    /// Pins it to `path`, which must not exist, so that it lives without a process. Undone by [`unpin`].
    ///
    /// # Errors
    /// [`NetnsError::Pin`], [`NetnsError::Mount`]; nothing is left then.
    pub fn pin(&self, path: &Path) -> Result<(), NetnsError> {
        let target = File::options()
            .write(true)
            .create_new(true)
            .mode(0o444)
            .open(path)
            .map_err(|source| NetnsError::Pin {
                path: path.to_owned(),
                source,
            })?;
        let attached = Tree::bind_fd(self.file.as_fd(), false, &self.path)
            .and_then(|tree| tree.attach(target.as_fd(), path));
        if attached.is_err() {
            let _ = std::fs::remove_file(path);
        }
        Ok(attached?)
    }

    /// Device and inode: equal for two descriptors of one namespace, and for nothing else while it lives.
    ///
    /// # Errors
    /// What fstat(2) reports.
    pub fn identity(&self) -> io::Result<(u64, u64)> {
        let meta = self.file.metadata()?;
        Ok((meta.dev(), meta.ino()))
    }

    /// Whether it is the one this thread is in.
    ///
    /// # Errors
    /// As [`Self::current`]; what fstat(2) reports.
    pub fn is_current(&self) -> Result<bool, NetnsError> {
        let failed = |source| NetnsError::Open {
            path: self.path.clone(),
            source,
        };
        let current = Self::current()?.identity().map_err(failed)?;
        Ok(self.identity().map_err(failed)? == current)
    }

    /// Runs `code` inside, on a thread of its own (K-05): the caller's thread never leaves its namespace,
    /// not even when the code panics.
    ///
    /// # Errors
    /// [`NetnsError::Enter`]; the code was not run then.
    pub fn run<T: Send>(&self, code: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
        let failed = |source| NetnsError::Enter {
            path: self.path.clone(),
            source,
        };
        on_own_thread(|| {
            let flag = CloneFlags::from_bits_retain(Namespace::Network.flag());
            nix::sched::setns(self.file.as_fd(), flag).map_err(|e| failed(e.into()))?;
            Ok(code())
        })
        .map_err(failed)?
    }

    /// A descriptor of its own, to hand to a process.
    ///
    /// # Errors
    /// What fcntl(2) reports.
    pub fn to_fd(&self) -> io::Result<OwnedFd> {
        self.file.as_fd().try_clone_to_owned()
    }
}

impl AsFd for Netns {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

/// Runs `code` inside the namespace at `path`; an empty path runs it in place, on this thread (K-05).
///
/// # Errors
/// As [`Netns::open`] and [`Netns::run`]; the code was not run then.
pub fn run_in<T: Send>(path: &Path, code: impl FnOnce() -> T + Send) -> Result<T, NetnsError> {
    if path.as_os_str().is_empty() {
        return Ok(code());
    }
    Netns::open(path)?.run(code)
}

/// Undoes [`Netns::pin`]; what is not there is success.
///
/// # Errors
/// [`NetnsError::Mount`], [`NetnsError::Pin`].
pub fn unpin(path: &Path) -> Result<(), NetnsError> {
    crate::mount::unmount(path)?;
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => Err(NetnsError::Pin {
            path: path.to_owned(),
            source: error,
        }),
        _ => Ok(()),
    }
}

fn is_netns(file: &File) -> bool {
    let Ok(stat) = nix::sys::statfs::fstatfs(file) else {
        return false;
    };
    if stat.filesystem_type() != nix::sys::statfs::NSFS_MAGIC {
        return false;
    }
    // SAFETY: NS_GET_NSTYPE takes no argument and returns the CLONE_NEW* flag (ioctl_ns(2)).
    let kind = unsafe { libc::ioctl(file.as_raw_fd(), libc::NS_GET_NSTYPE) };
    Errno::result(kind) == Ok(Namespace::Network.flag())
}

fn on_own_thread<T: Send>(code: impl FnOnce() -> T + Send) -> io::Result<T> {
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, code)?;
        match thread.join() {
            Ok(value) => Ok(value),
            Err(panic) => std::panic::resume_unwind(panic),
        }
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_network_namespace_is_refused_by_name() {
        for path in ["/etc/passwd", "/proc/self/ns/mnt", "/dev/null"] {
            let error = Netns::open(Path::new(path)).unwrap_err();
            assert!(matches!(error, NetnsError::NotANetns { .. }), "{error:?}");
            assert!(error.to_string().contains(path));
        }
        assert!(matches!(
            Netns::open(Path::new("/no/such")),
            Err(NetnsError::Open { .. })
        ));
    }

    #[test]
    fn k_05_an_empty_path_runs_in_place() {
        let here = std::thread::current().id();
        assert_eq!(
            run_in(Path::new(""), || std::thread::current().id()).unwrap(),
            here
        );
    }

    #[test]
    fn k_05_an_error_entering_is_returned_and_the_code_not_run() {
        let mut ran = false;
        assert!(run_in(Path::new("/etc/passwd"), || ran = true).is_err());
        assert!(!ran);
    }

    #[test]
    fn the_current_one_is_current() {
        assert!(Netns::current().unwrap().is_current().unwrap());
    }

    #[test]
    #[ignore = "needs root"]
    fn k_05_code_runs_inside_and_the_caller_stays_outside() {
        let outside = Netns::current().unwrap().identity().unwrap();
        let new = Netns::new().unwrap();
        let inside = new.run(|| Netns::current().unwrap().identity().unwrap()).unwrap();
        assert_eq!(inside, new.identity().unwrap());
        assert_ne!(inside, outside);
        assert!(!new.is_current().unwrap());
        let panicked =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| new.run(|| panic!("inside"))));
        assert!(panicked.is_err());
        assert_eq!(Netns::current().unwrap().identity().unwrap(), outside);
    }

    #[test]
    #[ignore = "needs root"]
    fn a_pinned_one_outlives_its_descriptor_until_unpinned() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("ns");
        let new = Netns::new().unwrap();
        let identity = new.identity().unwrap();
        new.pin(&path).unwrap();
        drop(new);
        let again = Netns::open(&path).unwrap();
        assert_eq!(again.identity().unwrap(), identity);
        assert!(matches!(again.pin(&path), Err(NetnsError::Pin { .. })), "in use");
        unpin(&path).unwrap();
        assert!(!path.exists());
        unpin(&path).unwrap();
    }
}
