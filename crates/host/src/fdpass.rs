//! Descriptors over unix sockets, and sockets bound in a directory.
//!
//! Owns: SCM_RIGHTS both ways (unix(7)) and the limit of a socket path. Never: framing; one call is one
//! sendmsg or recvmsg. Called by the supervisor's server, stubs, and the console socket.

use crate::deadline::{self, Deadline};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessage, ControlMessageOwned, MsgFlags, recvmsg, sendmsg};
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

/// Longest path of a unix socket in bytes: `sun_path` has 108, one of them the terminating zero (unix(7)).
pub(crate) const MAX_SOCKET_PATH_BYTES: usize = 107;

/// Most descriptors one message carries (`SCM_MAX_FD`, unix(7)).
pub const MAX_FDS: usize = 253;

/// Why a socket could not be bound, or descriptors not passed.
#[derive(Debug, thiserror::Error)]
pub enum PassError {
    /// Longer than a socket address allows.
    #[error("socket path {} has {bytes} bytes: expected at most {MAX_SOCKET_PATH_BYTES}", path.display())]
    PathTooLong {
        /// The path.
        path: PathBuf,
        /// Its length.
        bytes: usize,
    },
    /// Binding failed.
    #[error("cannot bind the socket {}", path.display())]
    Bind {
        /// The path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// Too many descriptors for one message.
    #[error("{count} descriptors in one message: expected at most {MAX_FDS}")]
    TooMany {
        /// How many.
        count: usize,
    },
    /// The message carried more descriptors than were asked for; all of them were closed.
    #[error("more descriptors arrived than the {expected} expected")]
    Truncated {
        /// How many there was room for.
        expected: usize,
    },
    /// The other side did not take or send anything in time.
    #[error("no answer on the socket in time")]
    Deadline,
    /// The socket failed.
    #[error("{call} on a unix socket")]
    Socket {
        /// sendmsg, recvmsg or poll.
        call: &'static str,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// Checks that `path` fits a socket address.
///
/// # Errors
/// [`PassError::PathTooLong`].
pub(crate) fn check_socket_path(path: &Path) -> Result<(), PassError> {
    let bytes = path.as_os_str().as_bytes().len();
    if bytes > MAX_SOCKET_PATH_BYTES {
        return Err(PassError::PathTooLong {
            path: path.to_owned(),
            bytes,
        });
    }
    Ok(())
}

/// Binds a listening stream socket at `path`, which must not exist yet.
///
/// # Errors
/// [`PassError::PathTooLong`], [`PassError::Bind`].
pub fn listen(path: &Path) -> Result<UnixListener, PassError> {
    check_socket_path(path)?;
    UnixListener::bind(path).map_err(|source| PassError::Bind {
        path: path.to_owned(),
        source,
    })
}

/// Sends `bytes` (at least one) with `fds` attached to the first of them; returns how many bytes went out.
///
/// # Errors
/// [`PassError::TooMany`], [`PassError::Socket`]; a closed peer is `BrokenPipe`, without a SIGPIPE.
pub fn send(socket: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> Result<usize, PassError> {
    if fds.len() > MAX_FDS {
        return Err(PassError::TooMany { count: fds.len() });
    }
    let raw: Vec<i32> = fds.iter().map(AsRawFd::as_raw_fd).collect();
    let rights = [ControlMessage::ScmRights(&raw)];
    let control: &[ControlMessage<'_>] = if raw.is_empty() { &[] } else { &rights };
    loop {
        let sent = sendmsg::<()>(
            socket.as_raw_fd(),
            &[IoSlice::new(bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        );
        match sent {
            Err(Errno::EINTR) => {}
            other => {
                return other.map_err(|errno| PassError::Socket {
                    call: "sendmsg",
                    source: errno.into(),
                });
            }
        }
    }
}

/// Receives into `buffer`, waiting at most until `deadline`; 0 bytes means the other side closed.
/// The descriptors are close-on-exec.
///
/// # Errors
/// [`PassError::Truncated`] when more than `most` descriptors came, [`PassError::Deadline`],
/// [`PassError::Socket`].
pub fn receive(
    socket: BorrowedFd<'_>,
    buffer: &mut [u8],
    most: usize,
    deadline: Deadline,
) -> Result<(usize, Vec<OwnedFd>), PassError> {
    let failed = |call| move |source: io::Error| PassError::Socket { call, source };
    if most > MAX_FDS {
        return Err(PassError::TooMany { count: most });
    }
    // CMSG_SPACE rounds up to words, so an odd number leaves room for one more: counted below.
    let mut space = nix::cmsg_space!([i32; MAX_FDS]);
    let flags = MsgFlags::MSG_CMSG_CLOEXEC | MsgFlags::MSG_DONTWAIT;
    loop {
        let mut slices = [IoSliceMut::new(buffer)];
        let message = match recvmsg::<()>(socket.as_raw_fd(), &mut slices, Some(&mut space), flags) {
            Ok(message) => message,
            Err(Errno::EINTR) => continue,
            Err(Errno::EAGAIN) => {
                if deadline::readable(socket, deadline).map_err(failed("poll"))? {
                    continue;
                }
                return Err(PassError::Deadline);
            }
            Err(errno) => return Err(failed("recvmsg")(errno.into())),
        };
        let mut fds = Vec::new();
        for control in message.cmsgs().map_err(|e| failed("recvmsg")(e.into()))? {
            if let ControlMessageOwned::ScmRights(raw) = control {
                // SAFETY: the kernel just installed these descriptors for us; nobody else owns them.
                fds.extend(raw.into_iter().map(|fd| unsafe { OwnedFd::from_raw_fd(fd) }));
            }
        }
        if message.flags.contains(MsgFlags::MSG_CTRUNC) || fds.len() > most {
            return Err(PassError::Truncated { expected: most });
        }
        return Ok((message.bytes, fds));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;
    use std::os::unix::net::UnixStream;
    use std::time::Duration;

    fn soon() -> Deadline {
        Deadline::after(Duration::from_secs(60))
    }

    #[test]
    fn bytes_and_descriptors_arrive_together_and_close_on_exec() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        assert_eq!(send(a.as_fd(), b"hi", &[write.as_fd(), read.as_fd()]).unwrap(), 2);
        let mut buffer = [0; 16];
        let (n, mut fds) = receive(b.as_fd(), &mut buffer, 2, soon()).unwrap();
        assert_eq!((&buffer[..n], fds.len()), (b"hi".as_slice(), 2));
        let flags = nix::fcntl::fcntl(&fds[0], nix::fcntl::FcntlArg::F_GETFD).unwrap();
        assert_eq!(flags & libc::FD_CLOEXEC, libc::FD_CLOEXEC);
        drop(write);
        File::from(fds.remove(0)).write_all(b"x").unwrap();
        let mut text = String::new();
        File::from(read).read_to_string(&mut text).unwrap();
        assert_eq!(text, "x");
    }

    #[test]
    fn more_descriptors_than_expected_are_closed_and_an_error() {
        let (a, b) = UnixStream::pair().unwrap();
        let (read, write) = nix::unistd::pipe().unwrap();
        send(a.as_fd(), b"x", &[write.as_fd(), write.as_fd()]).unwrap();
        drop(write);
        let error = receive(b.as_fd(), &mut [0; 1], 1, soon()).unwrap_err();
        assert!(matches!(error, PassError::Truncated { expected: 1 }));
        // End of file only if no copy of the write end survived.
        assert_eq!(File::from(read).read(&mut [0; 1]).unwrap(), 0);
    }

    #[test]
    fn a_silent_peer_ends_at_the_deadline_and_a_closed_one_at_once() {
        let (a, b) = UnixStream::pair().unwrap();
        let short = Deadline::after(Duration::from_millis(20));
        assert!(matches!(
            receive(b.as_fd(), &mut [0; 1], 0, short),
            Err(PassError::Deadline)
        ));
        drop(a);
        assert_eq!(receive(b.as_fd(), &mut [0; 1], 0, soon()).unwrap().0, 0);
        match send(b.as_fd(), b"x", &[]) {
            Err(PassError::Socket { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::BrokenPipe),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn a_socket_path_above_107_bytes_is_an_error_with_its_length() {
        let path = PathBuf::from(format!("/{}", "x".repeat(107)));
        let text = listen(&path).unwrap_err().to_string();
        assert!(
            text.contains("108 bytes") && text.contains("at most 107"),
            "{text}"
        );
        assert!(check_socket_path(Path::new(&"x".repeat(107))).is_ok());
    }
}
