//! Whose pid namespace a container is in.
//!
//! | the path in the spec | in the guest |
//! | --- | --- |
//! | none | a new one |
//! | `/proc/PID/ns/pid` of a process that stands for a container of the sandbox | that container's |
//! | any other, in a pod | one that the pod's containers share (Kubernetes: `shareProcessNamespace`) |
//! | any other | a new one: the host's processes are out of reach |
//!
//! Owns: that table. Never: makes a namespace (the agent does). Called by the create of a container.

use crate::world::World;
use bulkhead_model::{ContainerId, ContainerPlan, oci};
use bulkhead_protocol::GuestPids;
use std::path::Path;

impl World {
    /// Whose pid namespace the container of `plan` is in.
    pub(crate) fn pid_namespace(&self, plan: &ContainerPlan) -> GuestPids {
        let stubs = self
            .containers
            .iter()
            .filter_map(|(id, container)| Some((container.init.host?.pid, id)));
        of(&plan.spec, self.plan.pod, stubs)
    }
}

fn of<'a>(spec: &oci::Spec, pod: bool, mut stubs: impl Iterator<Item = (i32, &'a ContainerId)>) -> GuestPids {
    let linux = spec.linux().as_ref();
    let namespaces = linux.and_then(|linux| linux.namespaces().as_ref());
    let path = namespaces
        .into_iter()
        .flatten()
        .find(|ns| ns.typ() == oci::LinuxNamespaceType::Pid)
        .and_then(|ns| ns.path().as_deref())
        .filter(|path| !path.as_os_str().is_empty());
    let Some(path) = path else {
        return GuestPids::Own;
    };
    let pid = pid_in(path);
    match stubs.find(|(stub, _)| Some(*stub) == pid) {
        Some((_, id)) => GuestPids::Of(id.clone()),
        None if pod => GuestPids::Pod,
        None => GuestPids::Own,
    }
}

/// The PID of `/proc/PID/ns/pid`.
fn pid_in(path: &Path) -> Option<i32> {
    path.strip_prefix("/proc")
        .ok()?
        .to_str()?
        .strip_suffix("/ns/pid")?
        .parse()
        .ok()
}

#[cfg(test)]
mod tests {
    use super::of;
    use bulkhead_model::{ContainerId, oci};
    use bulkhead_protocol::GuestPids;

    fn spec(namespace: serde_json::Value) -> oci::Spec {
        let linux = serde_json::json!({ "namespaces": [{ "type": "mount" }, namespace] });
        let mut spec = oci::Spec::default();
        spec.set_linux(Some(serde_json::from_value(linux).unwrap()));
        spec
    }

    #[test]
    fn each_path_of_the_table() {
        let first = ContainerId::new("first").unwrap();
        let known = |namespace: serde_json::Value, pod| of(&spec(namespace), pod, [(77, &first)].into_iter());
        let path = |path: &str| serde_json::json!({ "type": "pid", "path": path });
        assert_eq!(known(serde_json::json!({ "type": "pid" }), true), GuestPids::Own);
        assert_eq!(known(serde_json::json!({ "type": "uts" }), true), GuestPids::Own);
        assert_eq!(known(path("/proc/77/ns/pid"), true), GuestPids::Of(first.clone()));
        assert_eq!(
            known(path("/proc/77/ns/pid"), false),
            GuestPids::Of(first.clone())
        );
        assert_eq!(known(path("/proc/78/ns/pid"), true), GuestPids::Pod);
        assert_eq!(known(path("/var/run/pidns/x"), true), GuestPids::Pod);
        assert_eq!(known(path("/proc/78/ns/pid"), false), GuestPids::Own);
        assert_eq!(known(path(""), true), GuestPids::Own);
    }
}
