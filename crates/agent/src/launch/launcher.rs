//! The agent's handle on the fork server.

use super::order::{Launched, Order, Refusal};
use super::server;
use crate::sys::fork::{self, Side};
use crate::sys::rights;
use bulkhead_model::FailureKind;
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

    /// Carries out `order` with `descriptors`. Blocks until the process is set up, at most two minutes.
    ///
    /// # Errors
    /// The [`Refusal`] of the worker; internal if the server is gone or does not answer.
    pub(crate) fn launch(&self, order: &Order, descriptors: &[OwnedFd]) -> Result<Launched, Refusal> {
        let trouble = |error: &dyn std::error::Error| Refusal::internal("fork server", error);
        let body = serde_json::to_vec(order).map_err(|error| trouble(&error))?;
        let (ours, theirs) = UnixStream::pair().map_err(|error| trouble(&error))?;
        ours.set_read_timeout(Some(DEADLINE))
            .map_err(|error| trouble(&error))?;
        let mut all: Vec<BorrowedFd<'_>> = vec![theirs.as_fd()];
        all.extend(descriptors.iter().map(AsFd::as_fd));
        {
            let orders = self.orders.lock().unwrap_or_else(PoisonError::into_inner);
            rights::send(&orders, &body, &all).map_err(|error| trouble(&error))?;
        }
        drop(theirs);
        let (body, descriptors) = rights::receive(&ours)
            .map_err(|error| trouble(&error))?
            .ok_or_else(|| Refusal {
                kind: FailureKind::Internal,
                message: "the worker ended without an answer".to_owned(),
            })?;
        let pid: Result<i32, Refusal> = serde_json::from_slice(&body).map_err(|error| trouble(&error))?;
        Ok(Launched {
            pid: pid?,
            terminal: descriptors.into_iter().next(),
        })
    }
}
