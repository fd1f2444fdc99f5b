//! Reading from a descriptor of the user so that a killed supervisor loses nothing.
//!
//! ```text
//!  look (tee, MSG_PEEK, pread) ──▶ bytes are logged ──▶ consume (read, recv, lseek)
//! ```
//!
//! Killed in between, the next supervisor reads the same bytes again: at most one read is repeated. A terminal's
//! bytes cannot be looked at; there a key pressed in that very moment is lost.
//!
//! Owns: the two steps. Never: keeps bytes. Called by `input`.

use super::stdio_fd::{Direction, StdioFd, Way, ready};
use rustix::event::PollFlags;
use rustix::fs::{FileType, SeekFrom};
use rustix::io::Errno;
use rustix::net::RecvFlags;
use rustix::pipe::{PipeFlags, SpliceFlags, pipe_with, tee};
use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use tokio::io::Interest;

/// What the user's bytes come from.
#[derive(Debug)]
pub(super) struct Source {
    fd: StdioFd,
    look: Look,
}

#[derive(Debug)]
enum Look {
    /// Bytes are taken when they are read.
    Take,
    /// A pipe: copied into a pipe of our own first (reading and writing end).
    Tee(OwnedFd, OwnedFd),
    /// A stream socket.
    Peek,
    /// A regular file.
    Position,
}

impl Source {
    /// Prepares `fd`; `careful` when somebody may go on after this process. Needs a tokio runtime with I/O.
    pub(super) fn new(fd: OwnedFd, careful: bool) -> io::Result<Self> {
        let fd = StdioFd::new(fd, Direction::Read)?;
        let kind = FileType::from_raw_mode(rustix::fs::fstat(&fd.original)?.st_mode);
        let look = match (kind, &fd.way) {
            _ if !careful => Look::Take,
            (FileType::Fifo, Way::Own(_)) => {
                let (from, to) = pipe_with(PipeFlags::CLOEXEC | PipeFlags::NONBLOCK)?;
                Look::Tee(from, to)
            }
            (FileType::Socket, _) => Look::Peek,
            (FileType::RegularFile, _) => Look::Position,
            _ => Look::Take,
        };
        Ok(Self { fd, look })
    }

    /// Whether a read ends soon by itself and must not be dropped half-way.
    pub(super) const fn is_file(&self) -> bool {
        matches!(self.fd.way, Way::File)
    }

    /// Reads at most `limit` bytes into `buffer`, replacing what was there; 0 is the end of file. What came must be
    /// given to [`Source::consume`] before the next read. Dropping the future loses nothing unless
    /// [`Source::is_file`].
    pub(super) async fn read(&self, buffer: &mut Vec<u8>, limit: usize) -> io::Result<usize> {
        buffer.resize(limit, 0);
        let result = match &self.fd.way {
            Way::Own(fd) => {
                fd.async_io(Interest::READABLE, |fd| match &self.look {
                    Look::Tee(from, to) => {
                        let count = tee(fd, to, limit, SpliceFlags::NONBLOCK)?;
                        fill(from, &mut buffer[..count])
                    }
                    _ => Ok(rustix::io::read(fd, &mut buffer[..])?),
                })
                .await
            }
            Way::Socket(fd) => {
                let peek = match self.look {
                    Look::Peek => RecvFlags::PEEK,
                    _ => RecvFlags::empty(),
                };
                fd.async_io(Interest::READABLE, |fd| {
                    Ok(rustix::net::recv(fd, &mut buffer[..], RecvFlags::DONTWAIT | peek)?.0)
                })
                .await
            }
            Way::Careful(fd) => {
                fd.async_io(Interest::READABLE, |fd| {
                    ready(fd, PollFlags::IN)?;
                    Ok(rustix::io::read(fd, &mut buffer[..])?)
                })
                .await
            }
            Way::File => self.read_file(buffer).await,
        };
        buffer.truncate(*result.as_ref().unwrap_or(&0));
        result
    }

    /// Takes the bytes that the last read gave; they are in `buffer` and stay there.
    pub(super) fn consume(&self, buffer: &mut [u8]) -> io::Result<()> {
        match (&self.look, &self.fd.way) {
            (Look::Tee(..), Way::Own(fd)) => fill(fd.get_ref(), buffer).map(drop),
            (Look::Peek, Way::Socket(fd)) => {
                let mut done = 0;
                while done < buffer.len() {
                    let count = rustix::net::recv(fd.get_ref(), &mut buffer[done..], RecvFlags::DONTWAIT)?.0;
                    if count == 0 {
                        break;
                    }
                    done += count;
                }
                Ok(())
            }
            (Look::Position, _) => {
                let forward = i64::try_from(buffer.len()).unwrap_or(i64::MAX);
                rustix::fs::seek(&self.fd.original, SeekFrom::Current(forward))?;
                Ok(())
            }
            _ => Ok(()),
        }
    }

    async fn read_file(&self, buffer: &mut Vec<u8>) -> io::Result<usize> {
        let fd = Arc::clone(&self.fd.original);
        let look = matches!(self.look, Look::Position);
        let mut moved = std::mem::take(buffer);
        let (moved, result) = tokio::task::spawn_blocking(move || {
            let result = if look {
                rustix::fs::tell(&fd)
                    .and_then(|at| rustix::io::retry_on_intr(|| rustix::io::pread(&fd, &mut moved[..], at)))
            } else {
                rustix::io::retry_on_intr(|| rustix::io::read(&fd, &mut moved[..]))
            };
            (moved, result)
        })
        .await
        .map_err(io::Error::other)?;
        *buffer = moved;
        Ok(result?)
    }
}

/// Reads until `buffer` is full or there is no more; what is read is there already.
fn fill(fd: &OwnedFd, buffer: &mut [u8]) -> io::Result<usize> {
    let mut done = 0;
    while done < buffer.len() {
        match rustix::io::read(fd, &mut buffer[done..]) {
            Ok(0) | Err(Errno::AGAIN) => break,
            Ok(count) => done += count,
            Err(Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::File;
    use std::io::{Read, Seek, Write};
    use std::os::unix::net::UnixStream;

    /// What a next supervisor would read after this one was killed before or after `consume`.
    async fn left(fd: OwnedFd, consume: bool) -> Vec<u8> {
        let again = fd.try_clone().unwrap();
        let source = Source::new(fd, true).unwrap();
        let mut buffer = Vec::new();
        assert_eq!(source.read(&mut buffer, 5).await.unwrap(), 5);
        assert_eq!(buffer, b"first");
        if consume {
            source.consume(&mut buffer).unwrap();
            assert_eq!(buffer, b"first");
        }
        drop(source);
        let next = Source::new(again, true).unwrap();
        let mut all = Vec::new();
        while next.read(&mut buffer, 100).await.unwrap() > 0 {
            next.consume(&mut buffer).unwrap();
            all.extend_from_slice(&buffer);
        }
        all
    }

    fn pipe() -> OwnedFd {
        let (read, mut write) = std::io::pipe().unwrap();
        write.write_all(b"firstsecond").unwrap();
        read.into()
    }

    fn socket() -> OwnedFd {
        let (near, mut far) = UnixStream::pair().unwrap();
        far.write_all(b"firstsecond").unwrap();
        near.into()
    }

    fn file() -> OwnedFd {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"firstsecond").unwrap();
        file.rewind().unwrap();
        file.into()
    }

    #[tokio::test]
    async fn killed_before_consuming_repeats_and_after_it_goes_on() {
        for make in [pipe, socket, file] {
            assert_eq!(left(make(), false).await, b"firstsecond");
            assert_eq!(left(make(), true).await, b"second");
        }
    }

    #[tokio::test]
    async fn without_care_reading_takes() {
        let fd = pipe();
        let mut again = File::from(fd.try_clone().unwrap());
        let source = Source::new(fd, false).unwrap();
        let mut buffer = Vec::new();
        source.read(&mut buffer, 5).await.unwrap();
        let mut rest = String::new();
        again.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "second");
    }
}
