//! QEMU's standard error: passed on, and its last lines kept for the error of a start that failed.
//!
//! ```text
//!  QEMU ─► pipe ─► this task ─► sink of the engine
//!                     └───────► tail (bounded)
//! ```
//!
//! Owns: the read end of the pipe. Never: blocks on a sink that is full; what does not fit is dropped there
//! (the tail has it). A supervisor that replaces another reopens the pipe through `/proc`; in between QEMU
//! writes into a broken pipe, which it ignores.

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::task::JoinHandle;

/// Bytes kept of the end of the output.
const TAIL_BYTES: usize = 2048;

/// The last of what a VMM said.
#[derive(Debug, Clone, Default)]
pub(super) struct StderrTail(Arc<Mutex<VecDeque<u8>>>);

impl StderrTail {
    /// Follows `pipe` until its last writer is gone. Must be called in a tokio runtime.
    pub(super) fn follow(pipe: OwnedFd, sink: Option<OwnedFd>) -> io::Result<(Self, JoinHandle<()>)> {
        let mut pipe = pipe::Receiver::from_owned_fd(pipe)?;
        let tail = Self::default();
        let kept = tail.clone();
        let mut sink = sink.map(File::from);
        let task = tokio::spawn(async move {
            // At most PIPE_BUF, so that a pipe that polls writable takes all of it.
            let mut chunk = vec![0; 4096];
            while let Ok(length @ 1..) = pipe.read(&mut chunk).await {
                let text = &chunk[..length];
                kept.push(text);
                match &mut sink {
                    Some(sink) => pass_on(sink, text),
                    None => tracing::warn!(text = %String::from_utf8_lossy(text).trim_end(), "VMM"),
                }
            }
        });
        Ok((tail, task))
    }

    /// Follows the standard error of a QEMU that a predecessor started: a pipe can be opened again through
    /// `/proc`. If it is something else, there is nothing to follow.
    pub(super) fn reopen(pid: i32) -> (Self, JoinHandle<()>) {
        File::open(format!("/proc/{pid}/fd/2"))
            .and_then(|pipe| Self::follow(pipe.into(), None))
            .unwrap_or_else(|error| {
                tracing::debug!(%error, pid, "the VMM's standard error cannot be followed");
                Self::silent()
            })
    }

    /// Of a process whose words nobody hears.
    pub(super) fn silent() -> (Self, JoinHandle<()>) {
        (Self::default(), tokio::spawn(std::future::ready(())))
    }

    fn push(&self, text: &[u8]) {
        let mut kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        kept.extend(text);
        let excess = kept.len().saturating_sub(TAIL_BYTES);
        kept.drain(..excess);
    }

    /// The last lines, joined by `; `.
    pub(super) fn text(&self) -> String {
        let kept: Vec<u8> = {
            let kept = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            kept.iter().copied().collect()
        };
        let text = String::from_utf8_lossy(&kept);
        let lines: Vec<&str> = text
            .lines()
            .map(str::trim)
            .filter(|line| !line.is_empty())
            .collect();
        lines.join("; ")
    }
}

fn pass_on(sink: &mut File, text: &[u8]) {
    let ready = {
        let mut fds = [PollFd::new(sink.as_fd(), PollFlags::POLLOUT)];
        matches!(poll(&mut fds, PollTimeout::ZERO), Ok(1..))
    };
    if ready {
        // A reader that went away is no reason to stop keeping the tail.
        let _ = sink.write_all(text);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read;
    use std::time::Duration;

    const SOON: Duration = Duration::from_secs(20);

    #[tokio::test]
    async fn everything_is_passed_on_and_the_tail_is_bounded() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let mut seen = tempfile::tempfile().unwrap();
        let (tail, task) = StderrTail::follow(read, Some(seen.try_clone().unwrap().into())).unwrap();
        let mut write = File::from(write);
        for number in 0..1000 {
            writeln!(write, "line {number}").unwrap();
        }
        drop(write);
        tokio::time::timeout(SOON, task).await.unwrap().unwrap();
        let text = tail.text();
        assert!(text.ends_with("; line 998; line 999"), "{text}");
        assert!(text.len() < TAIL_BYTES + 1000);
        use std::io::Seek;
        seen.rewind().unwrap();
        let mut all = String::new();
        seen.read_to_string(&mut all).unwrap();
        assert_eq!(all.lines().count(), 1000);
    }

    #[tokio::test]
    async fn a_full_sink_stops_nothing() {
        let (read, write) = nix::unistd::pipe().unwrap();
        let (_nobody_reads, sink) = nix::unistd::pipe().unwrap();
        let (tail, task) = StderrTail::follow(read, Some(sink)).unwrap();
        let mut write = File::from(write);
        let writing = tokio::task::spawn_blocking(move || {
            for _ in 0..100 {
                write.write_all(&[b'x'; 4096]).unwrap();
            }
            write.write_all(b"\nlast\n").unwrap();
        });
        tokio::time::timeout(SOON, writing).await.unwrap().unwrap();
        tokio::time::timeout(SOON, task).await.unwrap().unwrap();
        assert!(tail.text().ends_with("; last"));
    }
}
