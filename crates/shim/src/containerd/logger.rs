//! A logging program that a client named by `binary://`.
//!
//! ```text
//!  outputs ─► pipes ─► descriptors 3 and 4 of the program; descriptor 5: it closes it when it is ready
//! ```
//! It gets `CONTAINER_ID` and `CONTAINER_NAMESPACE` in its environment and the query's keys and values as arguments.
//!
//! Owns: the program. It ends with its input. Called by `streams`.

use super::streams::StreamError;
use bulkhead_host::deadline::{Deadline, readable};
use bulkhead_host::process::{Child, MARKER, Spawn};
use nix::fcntl::OFlag;
use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::path::PathBuf;
use std::time::Duration;

/// How long the program may take to say that it is ready.
const READY_DEADLINE: Duration = Duration::from_secs(30);

/// How long it may write after its input ended.
const END_DEADLINE: Duration = Duration::from_secs(10);

/// Whose output it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Owner<'a> {
    /// containerd's namespace.
    pub(super) namespace: &'a str,
    /// Container or exec id.
    pub(super) id: &'a str,
    /// The sandbox's marker.
    pub(super) marker: &'a str,
}

/// A running program. Dropped, it is killed.
#[derive(Debug)]
pub(super) struct Logger {
    child: Child,
}

impl Logger {
    /// Starts `uri`, which is what follows `binary://`; returns the two pipes to write to as well.
    ///
    /// # Errors
    /// A program that cannot be started or does not become ready.
    pub(super) fn start(uri: &str, owner: &Owner<'_>) -> Result<(Self, OwnedFd, OwnedFd), StreamError> {
        let (path, query) = uri.split_once('?').unwrap_or((uri, ""));
        let path = PathBuf::from(decoded(path));
        Self::run(&path, query, owner).map_err(|source| StreamError::Logger { path, source })
    }

    fn run(path: &PathBuf, query: &str, owner: &Owner<'_>) -> io::Result<(Self, OwnedFd, OwnedFd)> {
        let pipe = || nix::unistd::pipe2(OFlag::O_CLOEXEC);
        let (out, stdout) = pipe()?;
        let (err, stderr) = pipe()?;
        let (ready, far) = pipe()?;
        let started = Spawn::new(path)
            .args(arguments(query))
            .env("CONTAINER_ID", owner.id)
            .env("CONTAINER_NAMESPACE", owner.namespace)
            .env(MARKER, format!("{}/logger", owner.marker))
            .fd(out, 3)
            .fd(err, 4)
            .fd(far, 5)
            .directory("/")
            .new_session()
            .spawn()
            .map_err(io::Error::other)?;
        let logger = Self { child: started.child };
        if !readable(ready.as_fd(), Deadline::after(READY_DEADLINE))? {
            return Err(io::Error::new(
                io::ErrorKind::TimedOut,
                format!("not ready within {} s", READY_DEADLINE.as_secs()),
            ));
        }
        Ok((logger, stdout, stderr))
    }

    /// Waits for its end, which comes when its input ended; blocks.
    pub(super) fn finish(self) {
        match self.child.wait(END_DEADLINE) {
            Ok(Some(_)) => {}
            other => tracing::warn!(?other, "a logging program does not end: it is killed"),
        }
    }
}

impl Drop for Logger {
    fn drop(&mut self) {
        // One that has ended already is success.
        let _ = self.child.kill_and_wait(END_DEADLINE);
    }
}

/// Keys and values of a query in turn; keys without a value alone.
fn arguments(query: &str) -> Vec<OsString> {
    query
        .split('&')
        .filter(|part| !part.is_empty())
        .flat_map(|part| match part.split_once('=') {
            Some((key, value)) => vec![key, value],
            None => vec![part],
        })
        .filter(|word| !word.is_empty())
        .map(|word| decoded(&word.replace('+', " ")))
        .collect()
}

/// With `%xx` resolved (RFC 3986, 2.1).
pub(super) fn decoded(text: &str) -> OsString {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(byte) = bytes.get(at) {
        let digits = text.get(at + 1..at + 3).filter(|_| *byte == b'%');
        match digits.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(value) => {
                out.push(value);
                at += 3;
            }
            None => {
                out.push(*byte);
                at += 1;
            }
        }
    }
    OsString::from_vec(out)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write;

    #[test]
    fn the_query_becomes_arguments() {
        assert_eq!(arguments("a=1&b&c=x%20y+z"), ["a", "1", "b", "c", "x y z"]);
        assert_eq!(arguments(""), Vec::<OsString>::new());
    }

    #[test]
    fn a_program_gets_both_outputs_and_the_names() {
        let dir = tempfile::tempdir().unwrap();
        let log = dir.path().join("log");
        let script = format!(
            "exec 5>&-; cat <&3 >{0}; cat <&4 >>{0}; echo $CONTAINER_ID $CONTAINER_NAMESPACE >>{0}",
            log.display()
        );
        let uri = format!("/bin/sh?-c={}", script.replace(' ', "%20").replace('&', "%26"));
        let owner = Owner {
            namespace: "n",
            id: "c",
            marker: "m",
        };
        let (logger, out, err) = Logger::start(&uri, &owner).unwrap();
        std::fs::File::from(out).write_all(b"out\n").unwrap();
        std::fs::File::from(err).write_all(b"err\n").unwrap();
        logger.finish();
        assert_eq!(std::fs::read_to_string(log).unwrap(), "out\nerr\nc n\n");
        assert!(Logger::start("/nonexistent", &owner).is_err());
    }
}
