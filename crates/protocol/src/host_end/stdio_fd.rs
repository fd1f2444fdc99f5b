//! A descriptor of the user, read or written without blocking and without changing it for the user.
//!
//! `O_NONBLOCK` belongs to the open file description, which a shell shares with its children: setting it breaks
//! them. So pipes, FIFOs and terminals are opened once more through `/proc/self/fd` (a description of our own),
//! sockets take a flag per call, and what cannot be waited for (files, /dev/null) is served by a blocking task.
//!
//! Owns: the descriptor and its second opening; writing. Never: knows what flows. Called by `output`; reading is
//! in `source`.

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::net::SendFlags;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

/// A write to a descriptor that may block takes this much at most: `PIPE_BUF` is larger, a terminal's room is not
/// known.
const CAREFUL_BYTES: usize = 512;
/// Device number of /dev/ptmx, which gives a new terminal when opened again (ptmx(4)).
const PTMX: (u32, u32) = (5, 2);

/// Which way bytes flow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Direction {
    /// From the user.
    Read,
    /// To the user.
    Write,
}

/// An open descriptor for one direction.
#[derive(Debug)]
pub(super) struct StdioFd {
    pub(super) way: Way,
    /// Kept: it may be what holds a FIFO open.
    pub(super) original: Arc<OwnedFd>,
}

/// How it can be used without blocking.
#[derive(Debug)]
pub(super) enum Way {
    /// A description of our own with `O_NONBLOCK`.
    Own(AsyncFd<OwnedFd>),
    Socket(AsyncFd<Arc<OwnedFd>>),
    /// Shared and possibly blocking: asked with poll(2) before each call.
    Careful(AsyncFd<Arc<OwnedFd>>),
    /// Always ready as far as the kernel tells.
    File,
}

impl StdioFd {
    /// Prepares `fd`. Needs a tokio runtime with I/O.
    pub(super) fn new(fd: OwnedFd, direction: Direction) -> io::Result<Self> {
        let original = Arc::new(fd);
        let way = way(&original, direction)?;
        Ok(Self { way, original })
    }

    /// Writes some of `bytes[from..]`.
    pub(super) async fn write(&self, bytes: &mut Vec<u8>, from: usize) -> io::Result<usize> {
        match &self.way {
            Way::Own(fd) => {
                fd.async_io(Interest::WRITABLE, |fd| {
                    Ok(rustix::io::write(fd, &bytes[from..])?)
                })
                .await
            }
            Way::Socket(fd) => {
                let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
                fd.async_io(Interest::WRITABLE, |fd| {
                    Ok(rustix::net::send(fd, &bytes[from..], flags)?)
                })
                .await
            }
            Way::Careful(fd) => {
                let upto = bytes.len().min(from + CAREFUL_BYTES);
                fd.async_io(Interest::WRITABLE, |fd| {
                    ready(fd, PollFlags::OUT)?;
                    Ok(rustix::io::write(fd, &bytes[from..upto])?)
                })
                .await
            }
            Way::File => {
                let fd = Arc::clone(&self.original);
                let moved = std::mem::take(bytes);
                let (moved, result) = tokio::task::spawn_blocking(move || {
                    let result = rustix::io::retry_on_intr(|| rustix::io::write(&fd, &moved[from..]));
                    (moved, result)
                })
                .await
                .map_err(io::Error::other)?;
                *bytes = moved;
                Ok(result?)
            }
        }
    }
}

fn way(original: &Arc<OwnedFd>, direction: Direction) -> io::Result<Way> {
    let interest = match direction {
        Direction::Read => Interest::READABLE,
        Direction::Write => Interest::WRITABLE,
    };
    let shared = || watch(Arc::clone(original), interest);
    let stat = rustix::fs::fstat(original)?;
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::Socket => shared().map(Way::Socket),
        FileType::Fifo | FileType::CharacterDevice => {
            let device = (rustix::fs::major(stat.st_rdev), rustix::fs::minor(stat.st_rdev));
            let own = if device == PTMX {
                None
            } else {
                reopen(original, direction)?
            };
            let watched = match own {
                Some(own) => watch(own, interest).map(Way::Own),
                None => shared().map(Way::Careful),
            };
            match watched {
                // epoll_ctl(2): "the target file does not support epoll".
                Err(error) if error.raw_os_error() == Some(Errno::PERM.raw_os_error()) => Ok(Way::File),
                other => other,
            }
        }
        _ => Ok(Way::File),
    }
}

/// Registers a descriptor with the runtime.
///
/// tokio deprecates the safe constructor because an arbitrary `AsRawFd` may close or change its descriptor; the two
/// types used here cannot.
#[allow(deprecated)]
fn watch<T: AsRawFd + Owned>(fd: T, interest: Interest) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(fd, interest)
}

/// Types that keep one descriptor open for as long as they live.
trait Owned {}
impl Owned for OwnedFd {}
impl Owned for Arc<OwnedFd> {}

/// The same file with a description of our own; `None` when it may not be opened again.
fn reopen(fd: &OwnedFd, direction: Direction) -> io::Result<Option<OwnedFd>> {
    let access = match direction {
        Direction::Read => OFlags::RDONLY,
        Direction::Write => OFlags::WRONLY,
    };
    let path = format!("/proc/self/fd/{}", fd.as_raw_fd());
    let flags = access | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    match rustix::fs::open(path, flags, Mode::empty()) {
        Ok(own) => Ok(Some(own)),
        // fifo(7): nobody has it open for reading.
        Err(Errno::NXIO) if direction == Direction::Write => Err(Errno::PIPE.into()),
        Err(_) => Ok(None),
    }
}

/// `WouldBlock` unless poll(2) says that a call would not block.
pub(super) fn ready(fd: &impl AsFd, flags: PollFlags) -> io::Result<()> {
    let now = rustix::event::Timespec {
        tv_sec: 0,
        tv_nsec: 0,
    };
    let mut fds = [PollFd::new(fd, flags)];
    match poll(&mut fds, Some(&now)) {
        Ok(0) | Err(Errno::INTR) => Err(io::ErrorKind::WouldBlock.into()),
        Ok(_) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
