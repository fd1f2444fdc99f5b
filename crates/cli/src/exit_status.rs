//! What the program exits with, and how its error messages begin.
//!
//! | verb | failure | status | runc 1.1 |
//! | --- | --- | --- | --- |
//! | any | usage | 1 | 1 |
//! | – | unknown verb | 3 | 3 |
//! | run, create | any other | 1 | 1 |
//! | exec | any other | 255 | 255 |
//! | run, create, exec | program does not exist | 127 | 1, exec 255 |
//! | run, create, exec | program may not be executed | 126 | 1, exec 255 |
//! | run, exec | called off by signal n | 128 + n | 128 + n, or 1 |
//!
//! 126 and 127 are what shells and container engines answer in these cases; runc leaves that to the engines,
//! which go by the words of the message, which are the same here. A process that ran gives its own status,
//! 128 + n when signal n ended it.
//!
//! Owns: that table. Called by `lib`.

use crate::invocation::Verb;
use bulkhead_model::FailureKind;
use clap::error::ErrorKind;

/// Status for a command line that was not understood.
#[must_use]
pub(crate) fn of_usage(kind: ErrorKind) -> u8 {
    match kind {
        ErrorKind::InvalidSubcommand => 3,
        _ => 1,
    }
}

/// Verbs that differ in how they fail.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum VerbClass {
    /// create.
    Create,
    /// run.
    Run,
    /// exec.
    Exec,
    /// All others.
    Other,
}

impl VerbClass {
    /// Of a verb.
    #[must_use]
    pub(crate) const fn of(verb: &Verb) -> Self {
        match verb {
            Verb::Create(_) => Self::Create,
            Verb::Run(_) => Self::Run,
            Verb::Exec(_) => Self::Exec,
            _ => Self::Other,
        }
    }

    /// How its error messages begin.
    #[must_use]
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Create => "bulkhead create failed: ",
            Self::Run => "bulkhead run failed: ",
            Self::Exec => "exec failed: ",
            Self::Other => "",
        }
    }

    /// The status of a failure of this class.
    #[must_use]
    pub(crate) const fn status(self, kind: FailureKind) -> u8 {
        match (self, kind) {
            (Self::Create | Self::Run | Self::Exec, FailureKind::ProgramNotFound) => 127,
            (Self::Create | Self::Run | Self::Exec, FailureKind::ProgramNotExecutable) => 126,
            (Self::Exec, _) => 255,
            _ => 1,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table() {
        for (class, kind, status) in [
            (VerbClass::Run, FailureKind::ProgramNotFound, 127),
            (VerbClass::Create, FailureKind::ProgramNotExecutable, 126),
            (VerbClass::Exec, FailureKind::ProgramNotFound, 127),
            (VerbClass::Exec, FailureKind::NotFound, 255),
            (VerbClass::Run, FailureKind::AlreadyExists, 1),
            (VerbClass::Other, FailureKind::NotFound, 1),
        ] {
            assert_eq!(class.status(kind), status, "{class:?} {kind:?}");
        }
    }
}
