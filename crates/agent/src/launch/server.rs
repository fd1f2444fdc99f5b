//! The fork server: one thread, one order at a time is taken, each is carried out by a worker of its own.
//!
//! Never: keeps state, waits for a worker.

use super::order::{Launched, Order, Refusal};
use super::{create, exec};
use crate::sys::fork::{self, Side};
use crate::sys::rights;
use bulkhead_model::FailureKind;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixStream;

/// Serves orders until the agent is gone. The first descriptor of an order is where its reply goes.
pub(super) fn serve(orders: &UnixStream) -> io::Result<()> {
    while let Some((body, descriptors)) = rights::receive(orders)? {
        let mut descriptors = descriptors.into_iter();
        let Some(reply) = descriptors.next() else { continue };
        let reply = UnixStream::from(reply);
        match fork::sibling() {
            Ok(Side::Parent(_)) => {}
            Ok(Side::Child) => {
                answer(&reply, carry_out(&body, descriptors.collect()));
                std::process::exit(0);
            }
            Err(error) => answer(&reply, Err(Refusal::internal("cannot start a worker", &error))),
        }
    }
    Ok(())
}

fn carry_out(body: &[u8], descriptors: Vec<OwnedFd>) -> Result<Launched, Refusal> {
    let order = serde_json::from_slice(body).map_err(|error| Refusal::internal("order", &error))?;
    match order {
        Order::Create(order) => create::run(&order, descriptors),
        Order::Exec(order) => exec::run(&order, descriptors),
    }
}

fn answer(reply: &UnixStream, result: Result<Launched, Refusal>) {
    let terminal = result
        .as_ref()
        .ok()
        .and_then(|launched| launched.terminal.as_ref());
    let descriptors: Vec<_> = terminal.iter().map(|fd| fd.as_fd()).collect();
    let outcome = result.as_ref().map(|launched| launched.pid);
    let body = serde_json::to_vec(&outcome).unwrap_or_default();
    // An agent that no longer listens needs no answer.
    let _ = rights::send(reply, &body, &descriptors);
}

/// Exactly three descriptors: standard input, output and error.
pub(super) fn three(descriptors: Vec<OwnedFd>) -> Result<[OwnedFd; 3], Refusal> {
    <[OwnedFd; 3]>::try_from(descriptors).map_err(|all| Refusal {
        kind: FailureKind::Internal,
        message: format!("an order came with {} descriptors: expected 3", all.len()),
    })
}
