//! Why a command has no result.
//!
//! Owns: the error. Never: decides by QEMU's words. Called by everyone who sends commands.

use super::message::Refusal;
use std::io;
use std::time::Duration;

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    /// QEMU said no.
    #[error("{command}: {}: {}", refusal.class, refusal.description)]
    Refused {
        /// The command.
        command: &'static str,
        /// Class and words.
        refusal: Refusal,
    },
    /// No answer in time; whether the command was done is not known.
    #[error("{command} was not answered within {} s", deadline.as_secs())]
    Deadline {
        /// The command.
        command: &'static str,
        /// The deadline.
        deadline: Duration,
    },
    /// The connection ended, which it does when the VMM ends.
    #[error("the machine-protocol connection ended during {command}")]
    Closed {
        /// The command.
        command: &'static str,
    },
    /// The descriptor is not a usable socket.
    #[error("the machine-protocol socket")]
    Socket(#[source] io::Error),
}
