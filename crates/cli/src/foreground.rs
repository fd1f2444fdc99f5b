//! Standing in for a process: its terminal, its signals, its end.
//!
//! ```text
//!  user's terminal ◄─raw─► relay ◄──► master … slave ─► supervisor ─► guest
//!  signals of this process ─► stub ─► supervisor ─► guest
//!  stub's end ─► its exit status
//! ```
//! Owns: the wait of a foreground `run` and `exec`. Never: starts or removes anything.

use crate::interrupt::Interrupts;
use bulkhead_host::deadline::{Deadline, poll};
use bulkhead_host::pty::{RawMode, Relay, RelayEvent};
use bulkhead_model::{Failure, FailureKind};
use bulkhead_shim::stub::Stub;
use nix::libc::{SIGCHLD, SIGPIPE, SIGURG, SIGWINCH};
use nix::poll::{PollFd, PollFlags};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

/// How long output may take to come out of the terminal after the process has ended.
const DRAIN_DEADLINE: Duration = Duration::from_secs(10);

/// For reaping a stub whose pidfd says that it has ended.
const REAP_DEADLINE: Duration = Duration::from_secs(30);

/// Waits until the stub ends and returns its exit status. `master` is the other end of its terminal.
///
/// # Errors
/// I/O on the terminal or the descriptors waited for.
pub(crate) fn stand_in(stub: &Stub, master: Option<OwnedFd>, interrupts: &Interrupts) -> Result<u8, Failure> {
    let fail = |e: io::Error| Failure::new(FailureKind::Internal, format!("waiting for the process: {e}"));
    match master {
        Some(master) => with_terminal(stub, master, interrupts).map_err(fail)?,
        None => without_terminal(stub, interrupts).map_err(fail)?,
    }
    stub.wait(REAP_DEADLINE).map_err(fail)?.ok_or_else(|| {
        Failure::new(
            FailureKind::DeadlineExceeded,
            "the stub has ended and cannot be reaped",
        )
    })
}

fn with_terminal(stub: &Stub, master: OwnedFd, interrupts: &Interrupts) -> io::Result<()> {
    let (input, output) = (io::stdin(), io::stdout());
    // Not a terminal: bytes are copied as they are.
    let _raw = RawMode::enter(input.as_fd()).ok();
    let mut relay = Relay::new(input.as_fd(), output.as_fd(), master)?;
    let Some(ended) = stub.pidfd() else { return Ok(()) };
    let watched = [interrupts.signals().as_fd(), ended];
    let mut hung_up = false;
    loop {
        // A terminal that hung up before its process ended has nothing more to relay.
        let event = if hung_up {
            wait(&watched)?
        } else {
            relay.run(&watched, Deadline::NEVER)?
        };
        match event {
            RelayEvent::Watched(0) => forward(stub, interrupts, || relay.follow_window_size())?,
            RelayEvent::Watched(_) => break,
            RelayEvent::HungUp => hung_up = true,
            RelayEvent::Deadline => {}
        }
    }
    if !hung_up {
        relay.run(&[], Deadline::after(DRAIN_DEADLINE))?;
    }
    Ok(())
}

fn without_terminal(stub: &Stub, interrupts: &Interrupts) -> io::Result<()> {
    let Some(ended) = stub.pidfd() else { return Ok(()) };
    let watched = [interrupts.signals().as_fd(), ended];
    loop {
        match wait(&watched)? {
            RelayEvent::Watched(0) => forward(stub, interrupts, || {})?,
            _ => return Ok(()),
        }
    }
}

fn wait(watched: &[std::os::fd::BorrowedFd<'_>; 2]) -> io::Result<RelayEvent> {
    let mut fds = watched.map(|fd| PollFd::new(fd, PollFlags::POLLIN));
    // The stub ends with its process or its supervisor.
    poll(&mut fds, Deadline::NEVER)?;
    let first = fds.iter().position(|fd| fd.any().unwrap_or(false));
    Ok(RelayEvent::Watched(first.unwrap_or(0)))
}

/// Every signal that arrived goes to the process, but those about this process itself.
fn forward(stub: &Stub, interrupts: &Interrupts, resized: impl Fn()) -> io::Result<()> {
    while let Some(arrived) = interrupts.signals().next()? {
        match arrived.number {
            SIGCHLD | SIGPIPE | SIGURG => {}
            SIGWINCH => resized(),
            number => stub.signal(number)?,
        }
    }
    Ok(())
}
