//! Processes: who they are on the host and in the sandbox, and how they ended.

use crate::{ContainerId, ExecId};
use serde::{Deserialize, Serialize};
use std::fmt;

/// A process on the host, named so that a reused pid is not mistaken for it (design rule 3).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct HostProcess {
    /// Process id in the host's pid namespace.
    pub pid: i32,
    /// Start time in clock ticks since boot: field 22 of `/proc/<pid>/stat`, proc(5).
    pub start_time: u64,
}

/// Which process of a sandbox: a container's own (`exec` is `None`) or a further one.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ProcessKey {
    /// Its container.
    pub container: ContainerId,
    /// The exec id; `None` for the container's own process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecId>,
}

impl fmt::Display for ProcessKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.exec {
            Some(exec) => write!(f, "{}/{}", self.container, exec),
            None => write!(f, "{}", self.container),
        }
    }
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ExitStatus {
    /// It called exit with this status, 0 to 255.
    Code(u8),
    /// A signal ended it.
    Signal(u8),
}

impl ExitStatus {
    /// The shell's view: the code, or 128 + signal.
    #[must_use]
    pub const fn code(self) -> i32 {
        match self {
            Self::Code(code) => code as i32,
            Self::Signal(signal) => 128 + signal as i32,
        }
    }
}
