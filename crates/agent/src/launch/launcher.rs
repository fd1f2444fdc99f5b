//! The agent's handle on the fork server.
//!
//! Owns: the agent's end of the server's socket, deadlines of what is started. Never: makes a process itself. Called by the
//! agent's engine.

use super::order::{Launched, Message, Order, Refusal};
use super::server;
use crate::sys::fork::{self, Side};
use crate::sys::{packets, rights};
use bulkhead_model::FailureKind;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

/// How long a process may take to be set up.
const DEADLINE: Duration = Duration::from_secs(120);

/// Sends orders to the fork server.
#[derive(Debug)]
pub(crate) struct Launcher {
    orders: Mutex<UnixStream>,
}

/// A container's own process, which waits for its start.
#[derive(Debug)]
pub(crate) struct Waiting(OwnedFd);

fn trouble(error: &dyn std::error::Error) -> Refusal {
    Refusal::internal("fork server", error)
}

fn silent() -> Refusal {
    Refusal {
        kind: FailureKind::Internal,
        message: "the process ended without an answer".to_owned(),
    }
}

fn late(limit: Duration) -> Refusal {
    Refusal {
        kind: FailureKind::DeadlineExceeded,
        message: format!(
            "the process was not set up within {} s: expected fewer mounts, or hooks that end",
            limit.as_secs()
        ),
    }
}

impl Launcher {
    /// Forks the server. To be called while the process has one thread.
    ///
    /// # Errors
    /// No socket, or no process.
    pub(crate) fn fork() -> io::Result<Self> {
        let (ours, theirs) = UnixStream::pair()?;
        match fork::child()? {
            Side::Parent(_) => Ok(Self {
                orders: Mutex::new(ours),
            }),
            Side::Child => {
                drop(ours);
                let code = i32::from(server::serve(&theirs).is_err());
                std::process::exit(code);
            }
        }
    }

    /// Carries out `order` in `cgroup` with the descriptors in `stdio`: none for a process with a terminal, else three.
    /// Blocks until a container's process waits for its start and until an exec is its program, at most two minutes.
    ///
    /// # Errors
    /// The [`Refusal`] of the process; internal if the server is gone or does not answer.
    pub(crate) fn launch(
        &self,
        order: &Order,
        cgroup: &File,
        stdio: &[OwnedFd],
    ) -> Result<(Launched, Waiting), Refusal> {
        let body = postcard::to_stdvec(order).map_err(|error| trouble(&error))?;
        let (ours, theirs) = packets::pair().map_err(|error| trouble(&error))?;
        let mut all: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), cgroup.as_fd()];
        all.extend(stdio.iter().map(AsFd::as_fd));
        {
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            rights::send(&orders, &body, &all).map_err(|error| trouble(&error))?;
        }
        drop(theirs);
        let waiting = Waiting(ours);
        waiting.limit(DEADLINE)?;
        let mut born: Option<Launched> = None;
        loop {
            match waiting.hear(DEADLINE)? {
                Some((Message::Born(pid), terminal)) => born = Some(Launched { pid, terminal }),
                Some((Message::Ready, _)) if matches!(order, Order::Create(_)) => break,
                Some((Message::Ready, _)) => {}
                Some((Message::Refused(refusal), _)) => return Err(refusal),
                // An exec closes its end by becoming the program.
                None if matches!(order, Order::Exec(_)) => break,
                None => return Err(silent()),
            }
        }
        Ok((born.ok_or_else(silent)?, waiting))
    }
}

impl Waiting {
    /// Lets the process run. With `hooks`, the time those may take, it is waited for them.
    ///
    /// # Errors
    /// The [`Refusal`] of a hook; the process has ended then.
    pub(crate) fn go(self, hooks: Option<Duration>) -> Result<(), Refusal> {
        let gone =
            |error: &dyn std::error::Error| Refusal::internal("starting the container's process", error);
        let mut socket = File::from(self.0.try_clone().map_err(|error| gone(&error))?);
        socket.write_all(b"g").map_err(|error| gone(&error))?;
        let Some(limit) = hooks else { return Ok(()) };
        self.limit(limit + DEADLINE)?;
        match self.hear(limit + DEADLINE)? {
            Some((Message::Refused(refusal), _)) => Err(refusal),
            // It became its program.
            _ => Ok(()),
        }
    }

    fn limit(&self, limit: Duration) -> Result<(), Refusal> {
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        setsockopt(&self.0, sockopt::ReceiveTimeout, &TimeVal::new(seconds, 0))
            .map_err(|errno| trouble(&errno))
    }

    fn hear(&self, limit: Duration) -> Result<Option<(Message, Option<OwnedFd>)>, Refusal> {
        let received = packets::receive(&self.0).map_err(|error| {
            if error.kind() == io::ErrorKind::WouldBlock {
                return late(limit);
            }
            trouble(&error)
        });
        match received? {
            Some((body, descriptor)) => {
                let message = postcard::from_bytes(&body).map_err(|error| trouble(&error))?;
                Ok(Some((message, descriptor)))
            }
            None => Ok(None),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_that_takes_too_long_is_told_apart() {
        let (ours, _theirs) = packets::pair().unwrap();
        let waiting = Waiting(ours);
        let limit = Duration::from_secs(1);
        waiting.limit(limit).unwrap();
        let refusal = waiting.hear(limit).unwrap_err();
        assert_eq!(refusal.kind, FailureKind::DeadlineExceeded);
        assert!(refusal.message.contains("within 1 s"), "{}", refusal.message);
    }
}
