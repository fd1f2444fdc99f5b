//! The plan of a sandbox that is ordered over the Sandbox service, for which containerd wrote no config.json.
//!
//! ```text
//!  CreateSandboxRequest (network namespace, annotations, PodSandboxConfig) ─► a specification ─► the usual plan
//! ```
//! So that annotations, sizes and networks mean what they mean in a config.json.
//!
//! Owns: that specification. Never: what is planned from it. Called by the Sandbox service.

use super::pod_config::PodConfig;
use super::settings::Settings;
use crate::host_facts;
use bulkhead_config::{Config, PlanKind, Source};
use bulkhead_model::{ContainerId, Failure, FailureKind, SandboxId, SandboxPlan};
use containerd_shim_protos::sandbox_api::CreateSandboxRequest;
use serde_json::{Map, Value, json};
use std::path::Path;

/// What tells a pod's own container from those that join it, and how large a pod is.
const CRI: &str = "io.kubernetes.cri.";

/// Plans the sandbox `id`.
///
/// # Errors
/// What is wrong with the request, by its name.
pub(super) fn plan(
    id: &SandboxId,
    request: &CreateSandboxRequest,
    settings: &Settings,
) -> Result<SandboxPlan, Failure> {
    let pod = match request.options.as_ref() {
        Some(options) => PodConfig::read(options)?,
        None => PodConfig::default(),
    };
    let text = specification(id, request, &pod).to_string();
    let config = Config::load(&Source::named(settings.config.as_deref()))
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let (own, bundle) = (ContainerId::from(id), bundle(request, settings));
    // A specification has a root file system; nothing will be looked up in it.
    let root = bundle.join("rootfs");
    std::fs::create_dir_all(&root)
        .map_err(|e| Failure::new(FailureKind::Internal, format!("creating {}: {e}", root.display())))?;
    let plans = bulkhead_config::plan(bundle, text.as_bytes(), &own, &config, &host_facts::read())
        .map_err(|e| Failure::from_chain(e.kind(), &e))?;
    let PlanKind::Sandbox { mut sandbox, .. } = plans.kind else {
        // `specification` says that it is a sandbox.
        return Err(Failure::new(
            FailureKind::Internal,
            format!("sandbox {id} was planned as a container"),
        ));
    };
    sandbox.pod = true;
    sandbox.kept = true;
    sandbox.systemd_cgroup = settings.systemd_cgroup;
    bulkhead_sandbox::host::check_network(&sandbox)?;
    Ok(*sandbox)
}

fn bundle<'a>(request: &'a CreateSandboxRequest, settings: &'a Settings) -> &'a Path {
    if request.bundle_path.is_empty() {
        &settings.bundle
    } else {
        Path::new(&request.bundle_path)
    }
}

/// The config.json a client that makes pods would have written.
fn specification(id: &SandboxId, request: &CreateSandboxRequest, pod: &PodConfig) -> Value {
    let mut annotations = Map::new();
    let given = pod.annotations.iter().chain(&request.annotations);
    annotations.extend(given.map(|(key, value)| (key.clone(), json!(value))));
    let mut cri = |key: &str, value: String| annotations.insert(format!("{CRI}{key}"), Value::String(value));
    cri("container-type", "sandbox".to_owned());
    cri("sandbox-id", id.to_string());
    let sizes = [
        ("sandbox-cpu-period", pod.resources.cpu_period_us),
        ("sandbox-cpu-quota", pod.resources.cpu_quota_us),
        ("sandbox-cpu-shares", pod.resources.cpu_shares),
        ("sandbox-memory", pod.resources.memory_bytes),
    ];
    for (key, value) in sizes {
        if value != 0 {
            cri(key, value.to_string());
        }
    }
    let mut namespaces = vec![
        json!({ "type": "ipc" }),
        json!({ "type": "uts" }),
        json!({ "type": "mount" }),
    ];
    if !request.netns_path.is_empty() {
        namespaces.push(json!({ "type": "network", "path": request.netns_path }));
    } else if !pod.host_network {
        namespaces.push(json!({ "type": "network" }));
    }
    let mut linux = Map::new();
    linux.insert("namespaces".to_owned(), Value::Array(namespaces));
    linux.insert("sysctl".to_owned(), json!(pod.sysctls));
    if !pod.cgroup_parent.is_empty() {
        let path = cgroup(&pod.cgroup_parent, id);
        linux.insert("cgroupsPath".to_owned(), Value::String(path));
    }
    json!({
        "ociVersion": "1.0.2",
        "process": { "cwd": "/", "args": ["pause"], "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "hostname": pod.hostname,
        "annotations": annotations,
        "linux": linux,
    })
}

/// As containerd names the cgroup of a pod's own container under its parent.
fn cgroup(parent: &str, id: &SandboxId) -> String {
    match Path::new(parent).file_name().and_then(|name| name.to_str()) {
        // A slice is systemd's.
        Some(slice) if slice.ends_with(".slice") => format!("{slice}:cri-containerd:{id}"),
        _ => format!("{}/{id}", parent.trim_end_matches('/')),
    }
}

#[cfg(test)]
mod tests {
    use super::super::pod_config::{PodConfig, PodResources};
    use super::specification;
    use bulkhead_model::SandboxId;
    use containerd_shim_protos::sandbox_api::CreateSandboxRequest;

    fn id() -> SandboxId {
        SandboxId::new("pod1").unwrap()
    }

    #[test]
    fn a_request_becomes_what_a_client_would_have_written() {
        let request = CreateSandboxRequest {
            netns_path: "/var/run/netns/one".to_owned(),
            annotations: [("a".to_owned(), "the request's".to_owned())].into(),
            ..Default::default()
        };
        let pod = PodConfig {
            hostname: "web".to_owned(),
            annotations: [("a".to_owned(), "the pod's".to_owned())].into(),
            cgroup_parent: "/kubepods/pod1".to_owned(),
            resources: PodResources {
                memory_bytes: 1 << 30,
                ..PodResources::default()
            },
            ..PodConfig::default()
        };
        let spec = specification(&id(), &request, &pod);
        assert_eq!(spec["annotations"]["a"], "the request's");
        assert_eq!(spec["annotations"]["io.kubernetes.cri.container-type"], "sandbox");
        assert_eq!(
            spec["annotations"]["io.kubernetes.cri.sandbox-memory"],
            "1073741824"
        );
        assert!(
            spec["annotations"]
                .get("io.kubernetes.cri.sandbox-cpu-quota")
                .is_none()
        );
        assert_eq!(spec["linux"]["cgroupsPath"], "/kubepods/pod1/pod1");
        assert_eq!(spec["linux"]["namespaces"][3]["path"], "/var/run/netns/one");
        assert_eq!(spec["hostname"], "web");
    }

    #[test]
    fn a_slice_is_named_as_systemd_wants_it() {
        let pod = PodConfig {
            cgroup_parent: "/kubepods.slice/kubepods-pod1.slice".to_owned(),
            ..PodConfig::default()
        };
        let spec = specification(&id(), &CreateSandboxRequest::default(), &pod);
        assert_eq!(
            spec["linux"]["cgroupsPath"],
            "kubepods-pod1.slice:cri-containerd:pod1"
        );
    }

    #[test]
    fn the_hosts_network_is_one_without_a_namespace() {
        let pod = PodConfig {
            host_network: true,
            ..PodConfig::default()
        };
        let of = |pod: &PodConfig| {
            let spec = specification(&id(), &CreateSandboxRequest::default(), pod);
            spec["linux"]["namespaces"].to_string().contains("network")
        };
        assert!(of(&PodConfig::default()));
        assert!(!of(&pod));
    }
}
