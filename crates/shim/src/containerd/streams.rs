//! Standard streams as containerd names them: FIFOs, files, logging programs.
//!
//! | name | becomes |
//! | --- | --- |
//! | empty | no stream |
//! | a path, `fifo://path` | the FIFO there, held open both ways for output: a client may go away and come back; an input ends with its last client |
//! | a path that is a regular file, `file://path` | the file, appended to |
//! | `binary://path?key=value` | a program that gets both outputs (see [`super::logger`]) |
//!
//! Owns: opening. Never: data; the descriptors go to the sandbox's data port. Called by create and exec.

use super::logger::{Logger, Owner};
use crate::stub::Handover;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::StdioSet;
use nix::fcntl::OFlag;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use nix::sys::stat::Mode;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};

/// The streams of one process, by name.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Uris {
    pub(super) stdin: String,
    pub(super) stdout: String,
    pub(super) stderr: String,
    pub(super) terminal: bool,
}

/// They, open.
#[derive(Debug)]
pub(super) struct Streams {
    /// For the supervisor.
    pub(super) handover: Handover,
    /// Keeps the input from ending before a client has had it open.
    pub(super) keeper: Option<Keeper>,
    /// The logging program, if one was named.
    pub(super) logger: Option<Logger>,
}

/// A writing end of an input FIFO, so that it does not end before it began. Dropped, the input ends when no client has
/// it open.
#[derive(Debug)]
pub(super) struct Keeper {
    write: OwnedFd,
    closed: OwnedFd,
}

impl Keeper {
    /// For the FIFO at `path`. Its events are watched before there is a reader: until then no client can open it.
    fn watch(path: &Path) -> nix::Result<Inotify> {
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        inotify.add_watch(path, AddWatchFlags::IN_CLOSE_WRITE)?;
        Ok(inotify)
    }

    /// The writing end, and a descriptor that becomes readable when a client has closed its own.
    pub(super) fn split(self) -> (OwnedFd, OwnedFd) {
        (self.write, self.closed)
    }
}

/// Why a stream cannot be opened.
#[derive(Debug, thiserror::Error)]
pub(super) enum StreamError {
    #[error("{stream} {uri:?}: expected a FIFO, a file:// or a binary:// name")]
    Scheme { stream: &'static str, uri: String },
    #[error("opening {stream} {}", path.display())]
    Open {
        stream: &'static str,
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("the logging program {}", path.display())]
    Logger {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
}

impl StreamError {
    pub(super) fn failure(&self) -> Failure {
        Failure::from_chain(FailureKind::InvalidArgument, self)
    }
}

/// Opens the streams of `owner`'s process. Blocks only on a logging program that starts.
///
/// # Errors
/// [`StreamError`] naming the stream; nothing stays open.
pub(super) fn open(uris: &Uris, owner: &Owner<'_>) -> Result<Streams, StreamError> {
    let mut set = StdioSet {
        terminal: uris.terminal,
        ..StdioSet::default()
    };
    let mut fds = Vec::new();
    let mut keeper = None;
    if !uris.stdin.is_empty() {
        let (read, kept) = input(&uris.stdin)?;
        fds.push(read);
        keeper = kept;
        set.stdin = true;
    }
    if let Some(program) = uris.stdout.strip_prefix("binary://") {
        let (logger, stdout, stderr) = Logger::start(program, owner)?;
        set.stdout = true;
        fds.push(stdout);
        if !uris.terminal {
            set.stderr = true;
            fds.push(stderr);
        }
        return Ok(Streams {
            handover: Handover { set, fds, size: None },
            keeper,
            logger: Some(logger),
        });
    }
    if !uris.stdout.is_empty() {
        set.stdout = true;
        fds.push(output("stdout", &uris.stdout)?);
    } else if uris.terminal {
        // A terminal's output has to go somewhere.
        set.stdout = true;
        fds.push(open_at("stdout", Path::new("/dev/null"), OFlag::O_WRONLY)?);
    }
    if !uris.stderr.is_empty() && !uris.terminal {
        set.stderr = true;
        fds.push(output("stderr", &uris.stderr)?);
    }
    Ok(Streams {
        handover: Handover { set, fds, size: None },
        keeper,
        logger: None,
    })
}

/// The path of a plain or `fifo://` name.
fn plain<'a>(stream: &'static str, uri: &'a str) -> Result<&'a Path, StreamError> {
    let path = uri.strip_prefix("fifo://").unwrap_or(uri);
    if path.starts_with('/') {
        return Ok(Path::new(path));
    }
    Err(StreamError::Scheme {
        stream,
        uri: uri.to_owned(),
    })
}

/// The reading end and, for a FIFO, a writing end that keeps it from ending.
fn input(uri: &str) -> Result<(OwnedFd, Option<Keeper>), StreamError> {
    let path = plain("stdin", uri)?;
    let closed = Keeper::watch(path).map_err(|errno| StreamError::Open {
        stream: "stdin",
        path: path.to_owned(),
        source: errno.into(),
    })?;
    let read = open_at("stdin", path, OFlag::O_RDONLY)?;
    if !is_fifo(path) {
        return Ok((read, None));
    }
    let keeper = Keeper {
        write: open_at("stdin", path, OFlag::O_WRONLY)?,
        closed: closed.into(),
    };
    Ok((read, Some(keeper)))
}

fn output(stream: &'static str, uri: &str) -> Result<OwnedFd, StreamError> {
    if let Some(path) = uri.strip_prefix("file://") {
        let path = PathBuf::from(super::logger::decoded(path));
        return append(stream, &path, true);
    }
    let path = plain(stream, uri)?;
    if is_fifo(path) {
        // Both ways: it neither waits for a reader nor breaks when one goes away.
        return open_at(stream, path, OFlag::O_RDWR);
    }
    append(stream, path, false)
}

fn append(stream: &'static str, path: &Path, create: bool) -> Result<OwnedFd, StreamError> {
    if create && let Some(parent) = path.parent() {
        // The open says what is wrong with it.
        let _ = std::fs::create_dir_all(parent);
    }
    OpenOptions::new()
        .append(true)
        .create(create)
        .open(path)
        .map(OwnedFd::from)
        .map_err(|source| StreamError::Open {
            stream,
            path: path.to_owned(),
            source,
        })
}

fn is_fifo(path: &Path) -> bool {
    std::fs::metadata(path).is_ok_and(|meta| meta.file_type().is_fifo())
}

fn open_at(stream: &'static str, path: &Path, access: OFlag) -> Result<OwnedFd, StreamError> {
    let flags = access | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|errno| StreamError::Open {
        stream,
        path: path.to_owned(),
        source: errno.into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Write};
    use std::os::fd::AsFd;

    const OWNER: Owner<'_> = Owner {
        namespace: "n",
        id: "c",
        marker: "m",
    };

    fn fifo(dir: &Path, name: &str) -> String {
        let path = dir.join(name);
        nix::unistd::mkfifo(&path, Mode::from_bits_truncate(0o600)).unwrap();
        path.display().to_string()
    }

    #[test]
    fn a_reader_may_go_away_and_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let uris = Uris {
            stdout: fifo(dir.path(), "out"),
            ..Uris::default()
        };
        let streams = open(&uris, &OWNER).unwrap();
        assert!(streams.handover.set.stdout && !streams.handover.set.stderr);
        let mut sink = std::fs::File::from(streams.handover.fds.into_iter().next().unwrap());
        for word in ["one", "two"] {
            let mut reader = std::fs::File::open(&uris.stdout).unwrap();
            sink.write_all(word.as_bytes()).unwrap();
            let mut got = [0; 3];
            reader.read_exact(&mut got).unwrap();
            assert_eq!(got, word.as_bytes());
        }
        // Nobody reads: the bytes stay.
        sink.write_all(b"end").unwrap();
        let mut reader = std::fs::File::open(&uris.stdout).unwrap();
        drop(sink);
        let mut rest = String::new();
        reader.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "end");
    }

    #[test]
    fn input_ends_when_the_keeper_and_the_clients_are_gone() {
        let dir = tempfile::tempdir().unwrap();
        let uris = Uris {
            stdin: fifo(dir.path(), "in"),
            ..Uris::default()
        };
        let streams = open(&uris, &OWNER).unwrap();
        let mut source = std::fs::File::from(streams.handover.fds.into_iter().next().unwrap());
        let mut client = OpenOptions::new().write(true).open(&uris.stdin).unwrap();
        client.write_all(b"x").unwrap();
        drop(client);
        let mut byte = [0; 2];
        assert_eq!(source.read(&mut byte).unwrap(), 1);
        assert_eq!(
            source.read(&mut byte).unwrap_err().kind(),
            io::ErrorKind::WouldBlock
        );
        let (write, closed) = streams.keeper.unwrap().split();
        let told =
            bulkhead_host::deadline::readable(closed.as_fd(), bulkhead_host::deadline::Deadline::NEVER);
        assert!(told.unwrap(), "the client's close is told");
        drop(write);
        assert_eq!(source.read(&mut byte).unwrap(), 0);
    }

    #[test]
    fn what_cannot_be_opened_is_named() {
        for (uri, named) in [("/nonexistent/fifo", "/nonexistent/fifo"), ("ftp://x", "ftp://x")] {
            let uris = Uris {
                stderr: uri.into(),
                ..Uris::default()
            };
            let failure = open(&uris, &OWNER).unwrap_err().failure();
            assert!(
                failure.message.contains(named) && failure.message.contains("stderr"),
                "{failure}"
            );
        }
    }

    #[test]
    fn a_file_is_appended_to_and_made() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a b/log");
        let uris = Uris {
            stdout: format!("file://{}/a%20b/log", dir.path().display()),
            ..Uris::default()
        };
        for _ in 0..2 {
            let streams = open(&uris, &OWNER).unwrap();
            let fd = streams.handover.fds.into_iter().next().unwrap();
            std::fs::File::from(fd).write_all(b"x").unwrap();
        }
        assert_eq!(std::fs::read_to_string(path).unwrap(), "xx");
    }
}
