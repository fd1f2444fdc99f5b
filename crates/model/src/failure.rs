//! The error that crosses process boundaries: supervisor to CLI, shim to containerd.
//!
//! Owns the classification clients act on. Never decided from text: each crate maps its own error
//! enum to a [`FailureKind`].

use serde::{Deserialize, Serialize};
use std::fmt;

/// What class of failure it is; maps to exit codes (CLI) and gRPC codes (shim).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum FailureKind {
    /// The id names nothing.
    NotFound,
    /// The id is in use.
    AlreadyExists,
    /// The state does not allow the operation.
    FailedPrecondition,
    /// The input is not valid.
    InvalidArgument,
    /// A deadline passed.
    DeadlineExceeded,
    /// The supervisor, VM or agent is gone.
    Unavailable,
    /// The operation was called off by a kill or delete.
    Cancelled,
    /// Refused clearly: bulkhead does not do this.
    Unsupported,
    /// The program to run does not exist (shell convention 127).
    ProgramNotFound,
    /// The program to run may not be executed (shell convention 126).
    ProgramNotExecutable,
    /// Anything else.
    Internal,
}

/// A failure as users and clients see it: a class and one line of text, the cause chain joined by `: `.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Failure {
    /// Its class.
    pub kind: FailureKind,
    /// One line: sandbox, step, cause, what to look at next.
    pub message: String,
    /// Last lines of the guest console, oldest first; only when a boot failed.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub console: Vec<String>,
}

impl Failure {
    /// A failure without console lines.
    #[must_use]
    pub fn new(kind: FailureKind, message: impl Into<String>) -> Self {
        Self {
            kind,
            message: message.into(),
            console: Vec::new(),
        }
    }

    /// Joins an error and its sources into one line.
    #[must_use]
    pub fn from_chain(kind: FailureKind, error: &dyn std::error::Error) -> Self {
        Self::new(kind, chain(error))
    }
}

/// The error and its sources, each once, joined by `: `.
#[must_use]
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let clause = cause.to_string();
        if !text.ends_with(&clause) {
            text.push_str(": ");
            text.push_str(&clause);
        }
        source = cause.source();
    }
    text
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.message)
    }
}

impl std::error::Error for Failure {}
