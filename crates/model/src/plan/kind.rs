//! What a container is in its pod (O-01, O-20).

use serde::{Deserialize, Serialize};
use std::fmt;

/// Whether a container makes the sandbox or joins one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ContainerKind {
    /// It makes the sandbox.
    #[default]
    PodSandbox,
    /// It joins one that exists.
    PodContainer,
}

impl ContainerKind {
    /// The value recorded under [`crate::plan::CONTAINER_TYPE_ANNOTATION`].
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::PodSandbox => "pod_sandbox",
            Self::PodContainer => "pod_container",
        }
    }
}

impl fmt::Display for ContainerKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}
