//! What the agent asks of the fork server, and what comes back. Both ends are this binary: `postcard`, whose reader is a
//! fraction of what JSON needs, and in a translated guest code costs what it is long.

use super::attributes::Attributes;
use super::plan::Plan;
use bulkhead_model::FailureKind;
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;

/// Run a further process in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// A process whose namespaces are the container's.
    pub(crate) target: i32,
    /// The kinds of namespaces (`CLONE_NEW*`) in which it differs from the agent.
    pub(crate) namespaces: u64,
    /// What to run.
    pub(crate) attributes: Attributes,
}

/// One thing to be done. Its descriptors: where to answer, the cgroup's directory, and without a terminal standard
/// input, output and error.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Make a container; its process waits for its start.
    Create(Box<Plan>),
    /// See [`ExecOrder`].
    Exec(Box<ExecOrder>),
    /// Make a process that waits for a `Create`. One more descriptor: the socket by which that comes, with nothing but
    /// standard input, output and error; it is answered where this one is.
    Reserve,
}

/// What a process that is being started says, in this order.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Message {
    /// It exists, with this pid in the agent's namespace; the packet carries the master of its terminal if it has one.
    Born(i32),
    /// Only its program is missing: a container's own process waits for its start now.
    Ready,
    /// It will not become its program.
    Refused(Refusal),
}

/// Why a process was not started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub(crate) struct Refusal {
    /// Its class.
    pub(crate) kind: FailureKind,
    /// One line.
    pub(crate) message: String,
}

impl Refusal {
    /// An internal failure: `what` and the error's causes.
    pub(crate) fn internal(what: &str, error: &dyn std::error::Error) -> Self {
        Self {
            kind: FailureKind::Internal,
            message: format!("{what}: {}", bulkhead_model::failure::chain(error)),
        }
    }
}

/// A process that was started.
#[derive(Debug)]
pub(crate) struct Launched {
    /// Its pid in the agent's namespace.
    pub(crate) pid: i32,
    /// The master of its terminal.
    pub(crate) terminal: Option<OwnedFd>,
    /// Itself, if that is open already.
    pub(crate) process: Option<OwnedFd>,
}
