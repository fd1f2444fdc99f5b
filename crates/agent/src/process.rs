//! One process of a container, as long as its exit status is wanted.
//!
//! Owns: its pid descriptor, its streams' ids, its exit. Never: its pid after the end (it may be another's).
//! Called by `container`.

use crate::cgroup::Cgroup;
use crate::flush;
use crate::launch::Launched;
use crate::reaper::Claim;
use crate::stdio::Streams;
use crate::sys::{pidfd, tty};
use bulkhead_model::ExitStatus;
use bulkhead_protocol::guest_end::Endpoint;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use tokio::sync::watch;

/// How it ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Exit {
    /// Its status.
    pub(crate) status: ExitStatus,
    /// Bytes written to standard output (or the terminal) until then.
    pub(crate) stdout_offset: u64,
    /// Bytes written to standard error until then.
    pub(crate) stderr_offset: u64,
    /// The kernel killed something of the container for want of memory while it ran.
    pub(crate) out_of_memory: bool,
    /// Such kills in the container since it was made.
    pub(crate) out_of_memory_kills: u64,
    /// Nothing in the guest was left to be flushed; not looked at for an exec, which leaves its container behind.
    pub(crate) settled: bool,
}

/// Where a process is made.
pub(crate) struct Group<'a> {
    /// The container's cgroup.
    pub(crate) cgroup: &'a Arc<Cgroup>,
    /// Kills for want of memory it had counted before: none where it is new, and need not be asked.
    pub(crate) kills: u64,
    /// The process is the container's own.
    pub(crate) init: bool,
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Process {
    /// Its pid in the guest.
    pub(crate) pid: i32,
    /// Its streams.
    pub(crate) streams: Streams,
    fd: Option<OwnedFd>,
    terminal: Option<OwnedFd>,
    exit: watch::Receiver<Option<Exit>>,
}

impl Process {
    /// Takes charge of a process whose streams are connected.
    #[must_use]
    pub(crate) fn watch(
        launched: Launched,
        streams: Streams,
        terminal: Option<OwnedFd>,
        claim: Claim,
        endpoint: &Endpoint,
        group: &Group<'_>,
    ) -> Self {
        let Launched { pid, process, .. } = launched;
        // Gone already if this fails; then nothing is to be signalled either.
        let fd = process.or_else(|| pidfd::open(pid).ok());
        let (tell, exit) = watch::channel(None);
        let (endpoint, cgroup) = (endpoint.clone(), group.cgroup.clone());
        let (before, init) = (group.kills, group.init);
        claim.watch(pid, move |status| {
            let kills = cgroup.oom_kills();
            tell.send_replace(Some(Exit {
                status,
                stdout_offset: drained(&endpoint, streams.stdout),
                stderr_offset: drained(&endpoint, streams.stderr),
                out_of_memory: kills > before,
                out_of_memory_kills: kills,
                settled: init && !flush::is_needed(),
            }));
        });
        Self {
            pid,
            streams,
            fd,
            terminal,
            exit,
        }
    }

    /// Sends a signal; one that has ended is success.
    ///
    /// # Errors
    /// `EINVAL` for a signal that does not exist.
    pub(crate) fn signal(&self, signal: i32) -> io::Result<()> {
        match &self.fd {
            Some(fd) if self.exit.borrow().is_none() => pidfd::signal(fd, signal),
            _ => Ok(()),
        }
    }

    /// Sets the window size; without a terminal nothing is done.
    ///
    /// # Errors
    /// The kernel's.
    pub(crate) fn resize(&self, columns: u16, rows: u16) -> io::Result<()> {
        match &self.terminal {
            Some(terminal) => tty::set_size(terminal.as_fd(), columns, rows),
            None => Ok(()),
        }
    }

    /// Whether it has ended.
    #[must_use]
    pub(crate) fn ended(&self) -> bool {
        self.exit.borrow().is_some()
    }

    /// What tells its end.
    #[must_use]
    pub(crate) fn exit(&self) -> watch::Receiver<Option<Exit>> {
        self.exit.clone()
    }
}

fn drained(endpoint: &Endpoint, stream: u32) -> u64 {
    if stream == 0 { 0 } else { endpoint.drain(stream) }
}
