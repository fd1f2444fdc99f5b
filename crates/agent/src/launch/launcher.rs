//! The agent's handle on the fork server.
//!
//! Owns: the agent's end of the server's socket, deadlines of what is started. Never: makes a process itself. Called by the
//! agent's engine.

use super::order::{Launched, Message, Order, Refusal};
use super::reserve::Reserve;
use super::server;
use crate::sys::fork::{self, Side};
use crate::sys::{packets, pidfd, rights};
use bulkhead_model::FailureKind;
use nix::sys::socket::{setsockopt, sockopt};
use nix::sys::time::TimeVal;
use nix::unistd::write;
use std::fs::File;
use std::io;
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
                let code = i32::from(server::serve(theirs).is_err());
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
        let waiting = {
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            ask(&orders, order, cgroup, stdio).map_err(|error| trouble(&error))?
        };
        waiting.follow(order)
    }

    /// The same for a container whose process is there. `None`: it is there no longer.
    ///
    /// # Errors
    /// As for `launch`.
    pub(crate) fn employ(
        reserve: Reserve,
        order: &Order,
        stdio: &[OwnedFd],
    ) -> Result<Option<(Launched, Waiting)>, Refusal> {
        let body = postcard::to_stdvec(order).map_err(|error| trouble(&error))?;
        let stdio: Vec<_> = stdio.iter().map(AsFd::as_fd).collect();
        if rights::send(&reserve.orders, &body, &stdio).is_err() {
            return Ok(None);
        }
        let (mut launched, waiting) = reserve.waiting.follow(order)?;
        launched.process = Some(reserve.process);
        Ok(Some((launched, waiting)))
    }

    /// Makes a process that waits in `cgroup` for a container.
    ///
    /// # Errors
    /// As for `launch`.
    pub(crate) fn reserve(&self, cgroup: &File) -> Result<Reserve, Refusal> {
        let (orders, theirs) = UnixStream::pair().map_err(|error| trouble(&error))?;
        let (born, waiting) = self.launch(&Order::Reserve, cgroup, &[theirs.into()])?;
        Ok(Reserve {
            orders,
            waiting,
            process: pidfd::open(born.pid).map_err(|error| trouble(&error))?,
        })
    }
}

/// Sends an order.
fn ask(orders: &UnixStream, order: &Order, cgroup: &File, stdio: &[OwnedFd]) -> io::Result<Waiting> {
    let body = postcard::to_stdvec(order).map_err(io::Error::other)?;
    let (ours, theirs) = packets::pair()?;
    let mut all: Vec<BorrowedFd<'_>> = vec![theirs.as_fd(), cgroup.as_fd()];
    all.extend(stdio.iter().map(AsFd::as_fd));
    rights::send(orders, &body, &all)?;
    let waiting = Waiting(ours);
    waiting.limit(DEADLINE)?;
    Ok(waiting)
}

impl Waiting {
    /// Lets the process run. With `hooks`, the time those may take, it is waited for them.
    ///
    /// # Errors
    /// The [`Refusal`] of a hook; the process has ended then.
    pub(crate) fn go(self, hooks: Option<Duration>) -> Result<(), Refusal> {
        let gone =
            |error: &dyn std::error::Error| Refusal::internal("starting the container's process", error);
        write(&self.0, b"g").map_err(|errno| gone(&errno))?;
        let Some(limit) = hooks else { return Ok(()) };
        self.limit(limit + DEADLINE).map_err(|error| trouble(&error))?;
        match self.hear(limit + DEADLINE)? {
            Some((Message::Refused(refusal), _)) => Err(refusal),
            // It became its program.
            _ => Ok(()),
        }
    }

    /// Listens until the process has got as far as `order` has it go.
    fn follow(self, order: &Order) -> Result<(Launched, Self), Refusal> {
        let mut born: Option<Launched> = None;
        loop {
            match self.hear(DEADLINE)? {
                Some((Message::Born(pid), terminal)) => {
                    born = Some(Launched {
                        pid,
                        terminal,
                        process: None,
                    });
                }
                Some((Message::Ready, _)) if !matches!(order, Order::Exec(_)) => break,
                Some((Message::Ready, _)) => {}
                Some((Message::Refused(refusal), _)) => return Err(refusal),
                // An exec closes its end by becoming the program.
                None if matches!(order, Order::Exec(_)) => break,
                None => return Err(silent()),
            }
        }
        Ok((born.ok_or_else(silent)?, self))
    }

    fn limit(&self, limit: Duration) -> io::Result<()> {
        let seconds = i64::try_from(limit.as_secs()).unwrap_or(i64::MAX);
        Ok(setsockopt(
            &self.0,
            sockopt::ReceiveTimeout,
            &TimeVal::new(seconds, 0),
        )?)
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
