//! The tree of a sandbox for readers (`bulkhead inspect`).
//!
//! Owns: the shape of that tree; docs/inspect.md describes it. Never: state. Built from the published snapshot of a
//! live sandbox, or from saved state for one whose supervisor is gone.

use crate::boot::{SHARE_DEVICE, SHARE_TAG};
use crate::journal::{Journal, Resource};
use crate::layout::SandboxPaths;
use bulkhead_model::vm::SharedFs;
use bulkhead_model::{HostProcess, SandboxPlan, SandboxSnapshot};
use serde_json::{Value, json};

/// The tree. `live` tells whether a supervisor answered.
#[must_use]
pub fn tree(snapshot: &SandboxSnapshot, plan: &SandboxPlan, paths: &SandboxPaths, live: bool) -> Value {
    let held: Vec<Resource> = Journal::open(&paths.journal())
        .map(|journal| journal.held().into_iter().map(|(_, resource)| resource).collect())
        .unwrap_or_default();
    let mounts: Vec<_> = held
        .iter()
        .filter_map(|resource| match resource {
            Resource::Mount { path, container, .. } => Some(json!({ "path": path, "container": container })),
            Resource::RootMount { path, container, .. } => {
                Some(json!({ "path": path, "container": container }))
            }
            _ => None,
        })
        .collect();
    let cgroups: Vec<_> = held
        .iter()
        .filter_map(|resource| match resource {
            Resource::Cgroup { paths } => Some(paths),
            _ => None,
        })
        .flatten()
        .collect();
    let links: Vec<_> = held
        .iter()
        .filter(|resource| matches!(resource, Resource::Link { .. }))
        .collect();
    let mut devices = vec![
        json!({ "id": "rng0", "kind": "virtio-rng" }),
        json!({ "id": "serial", "kind": "virtio-serial" }),
    ];
    if plan.vm.shared_fs != SharedFs::None {
        devices.push(
            json!({ "id": SHARE_DEVICE, "kind": "shared-fs", "tag": SHARE_TAG, "share": paths.share() }),
        );
    }
    let sockets = ["ctl", "qmp", "control", "data", "console", "fs"].map(|name| paths.sockets.join(name));
    json!({
        "id": snapshot.id,
        "state": snapshot.state,
        "phase": snapshot.phase,
        "supervisor": if live { "alive" } else { "gone" },
        "processes": processes(snapshot),
        "containers": snapshot.containers,
        "counters": snapshot.counters,
        "provenance": snapshot.provenance,
        "sockets": sockets.iter().filter(|path| path.exists()).collect::<Vec<_>>(),
        "mounts": mounts,
        "cgroups": cgroups,
        "links": links,
        "devices": devices,
        "paths": { "state": paths.dir, "sockets": paths.sockets, "share": paths.share(), "log": paths.log() },
        "plan": plan,
    })
}

fn processes(snapshot: &SandboxSnapshot) -> Vec<Value> {
    let entry = |role: &str, process: HostProcess| json!({ "role": role, "pid": process.pid, "start_time": process.start_time });
    let mut all: Vec<Value> = snapshot
        .processes
        .iter()
        .map(|(role, process)| entry(role, *process))
        .collect();
    for (id, container) in &snapshot.containers {
        for process in [&container.init].into_iter().chain(&container.execs) {
            let Some(host) = process.host else { continue };
            let mut stub = entry("stub", host);
            stub["container"] = json!(id);
            stub["exec"] = json!(process.exec);
            all.push(stub);
        }
    }
    all
}
