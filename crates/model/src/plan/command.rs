//! The command of a container as config.json has it (O-02, O-03). Made by `config`, read by the engine.

use crate::oci;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One environment variable.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct EnvVar {
    /// Its name.
    pub name: String,
    /// Everything after the first `=`.
    pub value: String,
}

/// What a container runs.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct CommandPlan {
    /// Program and arguments, at least one.
    pub args: Vec<String>,
    /// Environment; entries without `=` were dropped.
    pub env: Vec<EnvVar>,
    /// Working directory, absolute.
    pub cwd: PathBuf,
    /// User id.
    pub uid: u32,
    /// Primary group id.
    pub gid: u32,
    /// Supplementary group ids.
    pub additional_gids: Vec<u32>,
    /// Whether it has a terminal.
    pub terminal: bool,
    /// Whether it may not gain privileges.
    pub no_new_privileges: bool,
    /// Its capabilities; absent means none were named.
    pub capabilities: Option<oci::LinuxCapabilities>,
}

impl CommandPlan {
    /// The environment as `name=value` lines.
    #[must_use]
    pub fn env_lines(&self) -> Vec<String> {
        self.env
            .iter()
            .map(|var| format!("{}={}", var.name, var.value))
            .collect()
    }
}
