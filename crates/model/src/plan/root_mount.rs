//! A mount that makes up a container's root file system, as an engine hands it over. Read by the sandbox engine.

use serde::{Deserialize, Serialize};

/// One mount, in the words of mount(8).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct RootMount {
    /// File system type; `bind` for a bind mount.
    pub fs_type: String,
    /// Device, path, or a name the file system ignores.
    pub source: String,
    /// Where below the root file system's directory; empty for the directory itself.
    pub target: String,
    /// Options: flags and what the file system takes.
    pub options: Vec<String>,
}
