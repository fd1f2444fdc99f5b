//! What the agent asks of the fork server, and what it gets back. JSON, both in this binary.

use bulkhead_model::FailureKind;
use bulkhead_model::oci::{LinuxSeccomp, Process};
use serde::{Deserialize, Serialize};
use std::os::fd::OwnedFd;
use std::path::PathBuf;

/// One range of a user namespace's map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// First id inside.
    pub(crate) inside: u32,
    /// First id outside.
    pub(crate) outside: u32,
    /// How many.
    pub(crate) count: u32,
}

/// A user namespace to be made.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserMaps {
    /// Of user ids.
    pub(crate) uids: Vec<IdMap>,
    /// Of group ids.
    pub(crate) gids: Vec<IdMap>,
}

impl UserMaps {
    /// What `id` inside is outside; itself where no range has it.
    pub(crate) fn outside(map: &[IdMap], id: u32) -> u32 {
        map.iter()
            .find(|range| id >= range.inside && id - range.inside < range.count)
            .map_or(id, |range| range.outside.saturating_add(id - range.inside))
    }
}

/// Make a container; its process waits for its start.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct CreateOrder {
    /// The name the engine library knows it by.
    pub(crate) name: String,
    /// Directory with `config.json`.
    pub(crate) bundle: PathBuf,
    /// Directory of the engine library's state.
    pub(crate) state: PathBuf,
    /// `MS_MOVE` in place of `pivot_root`.
    pub(crate) no_pivot: bool,
    /// Name of the session keyring to make, if one is to be made.
    pub(crate) keyring: Option<String>,
    /// The user namespace to make, and the file the spec names it by.
    pub(crate) users: Option<(UserMaps, PathBuf)>,
    /// It gets a terminal: the reply carries its master; else three descriptors come with the order.
    pub(crate) terminal: bool,
}

/// Run a further process in a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct ExecOrder {
    /// A process whose namespaces are the container's.
    pub(crate) target: i32,
    /// The container's cgroup directory.
    pub(crate) cgroup: PathBuf,
    /// What to run; capabilities are filled in.
    pub(crate) process: Process,
    /// The filter of the container.
    pub(crate) seccomp: Option<LinuxSeccomp>,
}

/// One of them.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) enum Order {
    /// See [`CreateOrder`].
    Create(CreateOrder),
    /// See [`ExecOrder`].
    Exec(Box<ExecOrder>),
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
}
