//! A device of a container as config.json has it (O-04). Made by `config`, read by the engine.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Kind of a device node; the OCI spec's letters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DeviceKind {
    /// Character.
    #[serde(rename = "c")]
    Character,
    /// Block.
    #[serde(rename = "b")]
    Block,
    /// Unbuffered character.
    #[serde(rename = "u")]
    Unbuffered,
    /// Named pipe.
    #[serde(rename = "p")]
    Fifo,
}

impl DeviceKind {
    /// The kind for an OCI letter: `c`, `b`, `u` or `p`; `None` for anything else.
    #[must_use]
    pub fn from_letter(letter: &str) -> Option<Self> {
        Some(match letter {
            "c" => Self::Character,
            "b" => Self::Block,
            "u" => Self::Unbuffered,
            "p" => Self::Fifo,
            _ => return None,
        })
    }
}

/// One device.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct DevicePlan {
    /// Path in the container.
    pub path: PathBuf,
    /// What it is.
    pub kind: DeviceKind,
    /// Major number on the host.
    pub major: i64,
    /// Minor number on the host.
    pub minor: i64,
    /// Owner in the container.
    pub uid: u32,
    /// Group in the container.
    pub gid: u32,
    /// Permission bits, when given.
    pub mode: Option<u32>,
}
