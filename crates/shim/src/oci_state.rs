//! The OCI state of a container (O-18), as `state`, `list` and hooks show it.
//!
//! Owns: its JSON form. Never: where the facts come from. Called by verbs and hooks.

use bulkhead_model::{ContainerId, ContainerSnapshot, State};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::path::PathBuf;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

/// Version of the OCI runtime specification that is followed.
pub const OCI_VERSION: &str = "1.1.0";

/// The state of one container; field order is that of runc's output.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct OciState {
    /// Of the specification.
    pub oci_version: String,
    /// Container id.
    pub id: String,
    /// Host pid of the process that stands for it, 0 once stopped.
    pub pid: i32,
    /// `creating`, `created`, `running`, `paused` or `stopped`.
    pub status: String,
    /// Bundle directory.
    pub bundle: PathBuf,
    /// Root file system on the host.
    pub rootfs: PathBuf,
    /// When it was created, RFC 3339 with nanoseconds.
    pub created: String,
    /// Annotations, left out when there are none.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub annotations: BTreeMap<String, String>,
    /// Name of the user who owns it; filled in by `list` only, as runc does.
    pub owner: String,
}

impl OciState {
    /// Of a container as published by its sandbox.
    #[must_use]
    pub fn of(container: &ContainerSnapshot) -> Self {
        let pid = match container.state {
            State::Stopped => 0,
            State::Ready | State::Running | State::Paused => container.init.host.map_or(0, |p| p.pid),
        };
        Self {
            oci_version: OCI_VERSION.to_owned(),
            id: container.id.to_string(),
            pid,
            status: container.state.oci_name().to_owned(),
            bundle: container.bundle.clone(),
            rootfs: container.rootfs.clone(),
            created: rfc3339(container.created_ns),
            annotations: container.annotations.clone(),
            owner: String::new(),
        }
    }

    /// Of a container whose create is under way; `bundle` is empty if it is not known yet.
    #[must_use]
    pub fn creating(id: &ContainerId, bundle: PathBuf) -> Self {
        Self {
            oci_version: OCI_VERSION.to_owned(),
            id: id.to_string(),
            pid: 0,
            status: "creating".to_owned(),
            bundle,
            rootfs: PathBuf::new(),
            created: String::new(),
            annotations: BTreeMap::new(),
            owner: String::new(),
        }
    }
}

/// Nanoseconds since the Unix epoch as RFC 3339 in UTC, without trailing zeros.
#[must_use]
pub(crate) fn rfc3339(nanoseconds: u64) -> String {
    OffsetDateTime::from_unix_timestamp_nanos(i128::from(nanoseconds))
        .ok()
        .and_then(|at| at.format(&Rfc3339).ok())
        .unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::{HostProcess, ProcessSnapshot};

    fn container(state: State) -> ContainerSnapshot {
        let init: ProcessSnapshot = serde_json::from_value(serde_json::json!({
            "host": HostProcess { pid: 14402, start_time: 7 }
        }))
        .unwrap();
        ContainerSnapshot {
            id: ContainerId::new("x1").unwrap(),
            state,
            bundle: "/b".into(),
            rootfs: "/b/rootfs".into(),
            created_ns: 1_795_473_429_034_054_050,
            annotations: BTreeMap::new(),
            init,
            execs: Vec::new(),
            spec: None,
            ignored: Vec::new(),
            out_of_memory: 0,
        }
    }

    /// O-18: the OCI names, the pid only while there is a process.
    #[test]
    fn o18_state_json() {
        let text = serde_json::to_string(&OciState::of(&container(State::Running))).unwrap();
        assert_eq!(
            text,
            concat!(
                r#"{"ociVersion":"1.1.0","id":"x1","pid":14402,"status":"running","bundle":"/b","#,
                r#""rootfs":"/b/rootfs","created":"2026-11-23T22:37:09.03405405Z","owner":""}"#
            )
        );
        let pids = State::ALL.map(|state| {
            let shown = OciState::of(&container(state));
            (shown.status, shown.pid)
        });
        assert_eq!(
            pids.map(|(status, pid)| format!("{status} {pid}")),
            ["created 14402", "running 14402", "paused 14402", "stopped 0"]
        );
    }

    #[test]
    fn annotations_are_shown_when_there_are_some() {
        let mut annotated = container(State::Ready);
        annotated.annotations.insert("a".into(), "b".into());
        let value = serde_json::to_value(OciState::of(&annotated)).unwrap();
        assert_eq!(value["annotations"]["a"], "b");
    }
}
