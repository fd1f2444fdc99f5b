//! The guest console and the children's standard error, into the sandbox log.
//!
//! Owns: the last console lines. Never: the log file itself (tracing's). Called by the real host.

use std::collections::VecDeque;
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::{AsyncRead, AsyncReadExt, BufReader};

/// How many console lines are kept for error messages.
const TAIL_LINES: usize = 40;

/// Longest line in bytes that is kept; the rest of a longer one is cut.
const LINE_BYTES: usize = 1024;

/// The last lines of a guest console. Written by one task, read when a boot fails.
#[derive(Debug, Clone, Default)]
pub(super) struct ConsoleTail(Arc<Mutex<VecDeque<String>>>);

impl ConsoleTail {
    pub(super) fn lines(&self) -> Vec<String> {
        self.0
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .cloned()
            .collect()
    }

    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// Follows the console at `client` until the VMM ends.
    pub(super) fn follow(&self, client: OwnedFd) -> io::Result<()> {
        let stream = UnixStream::from(client);
        stream.set_nonblocking(true)?;
        let stream = tokio::net::UnixStream::from_std(stream)?;
        let tail = self.clone();
        tokio::spawn(each_line(stream, move |line| {
            tail.push(line);
            tracing::info!(source = "console", "{line}");
        }));
        Ok(())
    }
}

/// A pipe whose lines go to the log under `source`.
pub(super) fn log_pipe(source: &'static str) -> io::Result<OwnedFd> {
    let (read, write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    nix::fcntl::fcntl(
        &read,
        nix::fcntl::FcntlArg::F_SETFL(nix::fcntl::OFlag::O_NONBLOCK),
    )?;
    let read = tokio::net::unix::pipe::Receiver::from_owned_fd(read)?;
    tokio::spawn(each_line(read, move |line| tracing::info!(source, "{line}")));
    Ok(write)
}

async fn each_line(from: impl AsyncRead + Unpin, mut act: impl FnMut(&str)) {
    let mut from = BufReader::new(from);
    let mut line = Vec::new();
    loop {
        match from.read_u8().await {
            Ok(b'\n') => {
                act(&printable(&line));
                line.clear();
            }
            Ok(byte) if line.len() < LINE_BYTES => line.push(byte),
            Ok(_) => {}
            Err(_) => break,
        }
    }
    if !line.is_empty() {
        act(&printable(&line));
    }
}

/// Text without control characters: a guest must not write escapes into an operator's terminal.
fn printable(line: &[u8]) -> String {
    String::from_utf8_lossy(line)
        .chars()
        .filter(|c| !c.is_control() || *c == '\t')
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn lines_are_split_cut_and_cleaned() {
        let mut lines = Vec::new();
        let long = format!("a\x1b[31mb\r\n{}\nlast", "x".repeat(5000));
        each_line(long.as_bytes(), |line| lines.push(line.to_owned())).await;
        assert_eq!(lines.len(), 3);
        assert_eq!(lines[0], "a[31mb");
        assert_eq!(lines[1].len(), LINE_BYTES);
        assert_eq!(lines[2], "last");
    }
}
