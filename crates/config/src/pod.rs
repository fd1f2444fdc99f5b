//! What a container is in its pod, from the annotations engines set (O-01, O-19, O-20).
//!
//! Owns: those keys and their order. Never: sizes (see `sizing`). Called by `plan`.

use crate::overrides::Annotations;
use bulkhead_model::SandboxId;
use bulkhead_model::id::IdError;
use bulkhead_model::plan::{CONTAINER_TYPE_ANNOTATION, ContainerKind};

/// Type keys of containerd, CRI-O and dockershim, in this order.
pub(crate) const TYPE_KEYS: [&str; 3] = [
    "io.kubernetes.cri.container-type",
    CRIO_TYPE,
    "io.kubernetes.docker.type",
];

/// Sandbox-id keys of containerd, CRI-O and dockershim, in this order.
pub(crate) const SANDBOX_KEYS: [&str; 3] = [
    "io.kubernetes.cri.sandbox-id",
    "io.kubernetes.cri-o.SandboxID",
    "io.kubernetes.sandbox.id",
];

const CRIO_TYPE: &str = "io.kubernetes.cri-o.ContainerType";

/// Why the place of a container cannot be told.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PodError {
    /// A type that is none.
    #[error("annotation {key} is {value:?}: expected \"sandbox\", \"podsandbox\" or \"container\"")]
    Type {
        /// The key.
        key: String,
        /// Its value.
        value: String,
    },
    /// A container that joins a sandbox without saying which.
    #[error("the sandbox's id is missing: expected one of the annotations {}", SANDBOX_KEYS.join(", "))]
    NoSandbox,
    /// An id that is none; the empty one included.
    #[error("annotation {key} is no sandbox id")]
    Sandbox {
        /// The key.
        key: String,
        /// What is wrong with it.
        #[source]
        source: IdError,
    },
    /// Nothing was recorded (O-20).
    #[error(
        "annotation {CONTAINER_TYPE_ANNOTATION} is missing: expected \"pod_sandbox\" or \"pod_container\""
    )]
    NotRecorded,
    /// Something else was recorded (O-20).
    #[error(
        "annotation {CONTAINER_TYPE_ANNOTATION} is {value:?}: expected \"pod_sandbox\" or \"pod_container\""
    )]
    Recorded {
        /// Its value.
        value: String,
    },
}

/// Whether a container makes its sandbox or joins one; without any key it makes one.
///
/// # Errors
/// [`PodError::Type`].
pub fn kind(annotations: &Annotations) -> Result<ContainerKind, PodError> {
    let Some((key, value)) = TYPE_KEYS
        .into_iter()
        .find_map(|key| annotations.get(key).map(|value| (key, value)))
    else {
        return Ok(ContainerKind::PodSandbox);
    };
    match value.as_str() {
        "sandbox" | "podsandbox" => Ok(ContainerKind::PodSandbox),
        "container" => Ok(ContainerKind::PodContainer),
        _ => Err(PodError::Type {
            key: key.to_owned(),
            value: value.clone(),
        }),
    }
}

/// Whether an engine that makes pods made this container.
#[must_use]
pub fn in_pod(annotations: &Annotations) -> bool {
    TYPE_KEYS.into_iter().any(|key| annotations.contains_key(key))
}

/// The sandbox that a container joins.
///
/// # Errors
/// [`PodError`] when there is no key, or what it has is no id.
pub fn sandbox(annotations: &Annotations) -> Result<SandboxId, PodError> {
    let (key, value) = SANDBOX_KEYS
        .into_iter()
        .find_map(|key| annotations.get(key).map(|value| (key, value)))
        .ok_or(PodError::NoSandbox)?;
    SandboxId::new(value.as_str()).map_err(|source| PodError::Sandbox {
        key: key.to_owned(),
        source,
    })
}

/// Whether CRI-O made the container (O-19).
#[must_use]
pub fn by_crio(annotations: &Annotations) -> bool {
    annotations
        .get(CRIO_TYPE)
        .is_some_and(|value| value == "sandbox" || value == "container")
}

/// The kind that was recorded with a container (O-20).
///
/// # Errors
/// [`PodError::NotRecorded`], [`PodError::Recorded`].
pub fn recorded_kind(recorded: &Annotations) -> Result<ContainerKind, PodError> {
    match recorded.get(CONTAINER_TYPE_ANNOTATION).map(String::as_str) {
        None => Err(PodError::NotRecorded),
        Some("pod_sandbox") => Ok(ContainerKind::PodSandbox),
        Some("pod_container") => Ok(ContainerKind::PodContainer),
        Some(other) => Err(PodError::Recorded {
            value: other.to_owned(),
        }),
    }
}
