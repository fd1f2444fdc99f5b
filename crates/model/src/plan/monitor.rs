//! Watching the sandbox's network namespace for changes (O-05).

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of the network monitor.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct NetworkMonitor {
    /// Watch the namespace.
    pub enable: bool,
    /// An external monitor program; `None` is the built-in one.
    pub path: Option<PathBuf>,
    /// More log output of it.
    pub debug: bool,
}
