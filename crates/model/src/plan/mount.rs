//! A mount of a container as config.json has it (O-04). Made by `config`, rewritten by the engine.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountPlan {
    /// Source, when there is one.
    pub source: Option<PathBuf>,
    /// Path in the container.
    pub destination: PathBuf,
    /// File-system type or `bind`; empty when none was given.
    pub fstype: String,
    /// Options, as given and in order.
    pub options: Vec<String>,
    /// True if an option is exactly `ro`.
    pub readonly: bool,
}
