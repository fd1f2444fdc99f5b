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

impl MountPlan {
    /// Whether it is a bind mount: by its type, or by the option `bind` or `rbind`, which engines also use.
    #[must_use]
    pub fn is_bind(&self) -> bool {
        self.fstype == "bind"
            || self
                .options
                .iter()
                .any(|option| option == "bind" || option == "rbind")
    }
}
