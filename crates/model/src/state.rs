//! The state machine of containers and sandboxes (contract C-01, C-02).
//!
//! ```text
//!            ready ──────► running ◄────► paused
//!              │            ▲   │            │
//!              └──► stopped ┘◄──┴────────────┘
//! ```
//!
//! Owns the table of legal moves. Never: I/O. Called by the engine on every change.

use serde::{Deserialize, Serialize};
use std::fmt;

/// State of a container or a sandbox. `Ready` is shown as `created` to OCI clients (O-18).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum State {
    /// Created, its process not started.
    Ready,
    /// Its process was started.
    Running,
    /// Frozen.
    Paused,
    /// Its process ended, or it was taken down.
    Stopped,
}

/// A move the state machine does not have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("cannot go from state {from} to state {to}")]
pub struct IllegalMove {
    /// The state it is in.
    pub from: State,
    /// The state asked for.
    pub to: State,
}

impl State {
    /// All states, for exhaustive tests.
    pub const ALL: [Self; 4] = [Self::Ready, Self::Running, Self::Paused, Self::Stopped];

    /// The state after a move to `to`.
    ///
    /// # Errors
    /// [`IllegalMove`] naming both states.
    pub const fn moved(self, to: Self) -> Result<Self, IllegalMove> {
        use State::{Paused, Ready, Running, Stopped};
        match (self, to) {
            (Ready, Running | Stopped)
            | (Running, Paused | Stopped)
            | (Paused, Running | Stopped)
            | (Stopped, Running) => Ok(to),
            (Ready, Ready | Paused)
            | (Running, Ready | Running)
            | (Paused, Ready | Paused)
            | (Stopped, Ready | Paused | Stopped) => Err(IllegalMove { from: self, to }),
        }
    }

    /// The OCI runtime-spec name (contract O-18).
    #[must_use]
    pub const fn oci_name(self) -> &'static str {
        match self {
            Self::Ready => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Ready => "ready",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Stopped => "stopped",
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// C-01: exactly the seven legal moves; every other one names both states.
    #[test]
    fn c01_moves() {
        use State::{Paused, Ready, Running, Stopped};
        let legal = [
            (Ready, Running),
            (Ready, Stopped),
            (Running, Paused),
            (Running, Stopped),
            (Paused, Running),
            (Paused, Stopped),
            (Stopped, Running),
        ];
        for from in State::ALL {
            for to in State::ALL {
                match from.moved(to) {
                    Ok(now) => {
                        assert_eq!(now, to);
                        assert!(legal.contains(&(from, to)), "{from} -> {to}");
                    }
                    Err(error) => {
                        assert!(!legal.contains(&(from, to)), "{from} -> {to}");
                        let text = error.to_string();
                        assert!(text.contains(&from.to_string()) && text.contains(&to.to_string()));
                    }
                }
            }
        }
    }

    /// O-18: names towards OCI.
    #[test]
    fn o18_oci_names() {
        assert_eq!(
            State::ALL.map(State::oci_name),
            ["created", "running", "paused", "stopped"]
        );
    }
}
