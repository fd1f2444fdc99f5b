//! The host's spec made fit for the guest: what the container engine gets.
//!
//! ```text
//!  spec from the host ──rewrite──► Rewritten { spec for the engine, resources, devices, seccomp, sysctls of the VM }
//! ```
//!
//! Owns: what is taken out (hooks, network namespace, cgroup path, limits, labels of security modules the guest
//! does not have) and what is checked. Never: I/O. Called by container creation.

use crate::launch::{IdMap, UserMaps};
use crate::paths;
use bulkhead_model::oci::{
    Hooks, Linux, LinuxCapabilities, LinuxDevice, LinuxDeviceCgroup, LinuxIdMapping, LinuxNamespace,
    LinuxNamespaceType, LinuxResources, LinuxSeccomp, LinuxSeccompAction, Process, Spec,
};
use std::collections::HashMap;
use std::path::{Path, PathBuf};

/// Why a spec cannot be run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum SpecError {
    /// A part that must be there.
    #[error("the spec has no {section} section")]
    Missing {
        /// Which.
        section: &'static str,
    },
    /// A bind mount of something that is not the guest's to show.
    #[error("mount source {path:?}: expected a path below {base}, /dev, /proc or /sys", base = paths::BASE)]
    Source {
        /// The source given.
        path: PathBuf,
    },
    /// Something that cannot work with a VM in between.
    #[error("{what} is not supported: {why}")]
    Unsupported {
        /// What was asked for.
        what: &'static str,
        /// Why it cannot be had.
        why: &'static str,
    },
}

/// Facts about the guest that the rewriting needs.
#[derive(Debug, Clone, Default)]
pub(crate) struct Facts {
    /// Directory of the root file system.
    pub(crate) rootfs: PathBuf,
    /// Cgroup path below the mount.
    pub(crate) cgroup: String,
    /// A process of the sandbox's first container: namespaces with a path are its.
    pub(crate) first: Option<i32>,
    /// A process in whose pid namespace it is to be.
    pub(crate) pids: Option<i32>,
    /// Apply seccomp filters.
    pub(crate) seccomp: bool,
    /// The process gets a terminal.
    pub(crate) terminal: bool,
    /// Where the sandbox's shared /dev/shm is mounted.
    pub(crate) shm: Option<PathBuf>,
    /// The guest's /dev is bound over the container's.
    pub(crate) whole_dev: bool,
}

/// The spec taken apart.
#[derive(Debug, Clone)]
pub(crate) struct Rewritten {
    /// For the engine.
    pub(crate) spec: Spec,
    /// Limits for the cgroup.
    pub(crate) resources: LinuxResources,
    /// Device rules for the cgroup.
    pub(crate) rules: Vec<LinuxDeviceCgroup>,
    /// Devices of the container.
    pub(crate) devices: Vec<LinuxDevice>,
    /// What an exec without capabilities of its own gets.
    pub(crate) capabilities: LinuxCapabilities,
    /// Maps of its user namespace.
    pub(crate) users: Option<UserMaps>,
    /// That is to be made; else it is the first container's.
    pub(crate) new_users: bool,
    /// Settings of the VM's network, which the container shares.
    pub(crate) sysctls: Vec<(String, String)>,
}

/// Rewrites `spec`.
///
/// # Errors
/// [`SpecError`].
pub(crate) fn rewrite(mut spec: Spec, facts: &Facts) -> Result<Rewritten, SpecError> {
    let mut process = spec
        .process()
        .clone()
        .ok_or(SpecError::Missing { section: "process" })?;
    process.set_terminal(Some(facts.terminal));
    adapt_process(&mut process);
    let capabilities = process.capabilities().clone().unwrap_or_else(no_capabilities);
    spec.set_process(Some(process));

    let mut root = spec.root().clone().unwrap_or_default();
    if spec.root().is_none() {
        root.set_readonly(None);
    }
    root.set_path(facts.rootfs.clone());
    spec.set_root(Some(root));
    // The others ran on the host.
    let hooks = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(hooks.map(|list| {
        let mut hooks = Hooks::default();
        hooks.set_start_container(Some(list));
        hooks
    }));

    let mut linux = spec.linux().clone().unwrap_or_else(bare_linux);
    let resources = linux.resources().clone().unwrap_or_default();
    let seccomp = linux.seccomp().clone().filter(|_| facts.seccomp);
    if let Some(filter) = &seccomp {
        refuse_notify(filter)?;
    }
    let namespaces = namespaces(linux.namespaces().as_deref().unwrap_or_default(), facts);
    let new_users = namespaces
        .iter()
        .any(|ns| ns.typ() == LinuxNamespaceType::User && ns.path().is_none());
    let in_users = namespaces.iter().any(|ns| ns.typ() == LinuxNamespaceType::User);
    // Who joins one may leave the maps out: they are the first container's.
    let named = linux.uid_mappings().as_ref().is_some_and(|list| !list.is_empty());
    let users = if new_users || (in_users && named) {
        Some(user_maps(&linux)?)
    } else {
        None
    };
    let own_names = namespaces
        .iter()
        .any(|ns| ns.typ() == LinuxNamespaceType::Uts && ns.path().is_none());
    if !own_names {
        spec.set_hostname(None);
        spec.set_domainname(None);
    }
    let (network, own): (Vec<_>, Vec<_>) = linux
        .sysctl()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .partition(|(key, _)| key.replace('/', ".").starts_with("net."));
    let devices = linux.devices().clone().unwrap_or_default();
    if facts.whole_dev {
        // They are the guest's own nodes: making them again would be making them for everybody.
        linux.set_devices(None);
    }
    linux
        .set_sysctl(Some(own.into_iter().collect::<HashMap<_, _>>()))
        .set_resources(None)
        .set_cgroups_path(Some(PathBuf::from(&facts.cgroup)))
        .set_namespaces(Some(namespaces))
        .set_seccomp(seccomp)
        .set_net_devices(None)
        .set_mount_label(None)
        .set_intel_rdt(None)
        .set_uid_mappings(None)
        .set_gid_mappings(None);
    spec.set_linux(Some(linux));
    mounts(&mut spec, facts, in_users)?;
    Ok(Rewritten {
        rules: resources.devices().clone().unwrap_or_default(),
        resources,
        devices,
        capabilities,
        users,
        new_users,
        sysctls: network,
        spec,
    })
}

/// A process as the guest can run it: the same for a container's own and for an exec.
pub(crate) fn adapt_process(process: &mut Process) {
    // Profiles and labels of the host's security modules mean nothing to the guest's kernel.
    process.set_apparmor_profile(None);
    process.set_selinux_label(None);
    if process.no_new_privileges() == Some(false) {
        process.set_no_new_privileges(None);
    }
    // As runc: a spec without the section grants none.
    if process.capabilities().is_none() {
        process.set_capabilities(Some(no_capabilities()));
    }
}

fn no_capabilities() -> LinuxCapabilities {
    let mut none = LinuxCapabilities::default();
    none.set_bounding(Some(Default::default()))
        .set_effective(Some(Default::default()))
        .set_permitted(Some(Default::default()))
        .set_inheritable(Some(Default::default()))
        .set_ambient(Some(Default::default()));
    none
}

/// The crate's default fills in masked paths and namespaces; an absent section has none of them.
fn bare_linux() -> Linux {
    let mut linux = Linux::default();
    linux
        .set_namespaces(None)
        .set_masked_paths(None)
        .set_readonly_paths(None)
        .set_resources(None);
    linux
}

fn user_maps(linux: &Linux) -> Result<UserMaps, SpecError> {
    let convert = |list: &Option<Vec<LinuxIdMapping>>, section| {
        let ranges: Vec<IdMap> = list
            .iter()
            .flatten()
            .map(|range| IdMap {
                inside: range.container_id(),
                outside: range.host_id(),
                count: range.size(),
            })
            .collect();
        if ranges.is_empty() {
            return Err(SpecError::Missing { section });
        }
        Ok(ranges)
    };
    Ok(UserMaps {
        uids: convert(linux.uid_mappings(), "linux.uidMappings")?,
        gids: convert(linux.gid_mappings(), "linux.gidMappings")?,
    })
}

fn refuse_notify(filter: &LinuxSeccomp) -> Result<(), SpecError> {
    let notify = LinuxSeccompAction::ScmpActNotify;
    let asked = filter.default_action() == notify
        || filter.listener_path().is_some()
        || filter
            .syscalls()
            .iter()
            .flatten()
            .any(|call| call.action() == notify);
    if asked {
        return Err(SpecError::Unsupported {
            what: "seccomp notify",
            why: "the listener is on the host, the container in a virtual machine",
        });
    }
    Ok(())
}

/// No network namespace (the VM's is the sandbox's), always a mount namespace of its own, and paths, which name
/// namespaces of the host, stand for those of the sandbox's first container. Whose pid namespace it is in is told apart.
fn namespaces(given: &[LinuxNamespace], facts: &Facts) -> Vec<LinuxNamespace> {
    let make = |typ, path: Option<PathBuf>| {
        let mut namespace = LinuxNamespace::default();
        namespace.set_typ(typ).set_path(path);
        namespace
    };
    let mut all = vec![make(LinuxNamespaceType::Mount, None)];
    for namespace in given {
        let typ = namespace.typ();
        if matches!(typ, LinuxNamespaceType::Network | LinuxNamespaceType::Mount) {
            continue;
        }
        if let (LinuxNamespaceType::Pid, Some(pid)) = (typ, facts.pids) {
            all.push(make(typ, Some(PathBuf::from(format!("/proc/{pid}/ns/pid")))));
            continue;
        }
        match (
            namespace
                .path()
                .as_ref()
                .filter(|path| !path.as_os_str().is_empty()),
            facts.first,
        ) {
            (None, _) => all.push(make(typ, None)),
            (Some(_), Some(pid)) => all.push(make(typ, Some(PathBuf::from(format!("/proc/{pid}/ns/{typ}"))))),
            // The first container itself: what it would join is the guest's own.
            (Some(_), None) => {}
        }
    }
    all
}

fn mounts(spec: &mut Spec, facts: &Facts, users: bool) -> Result<(), SpecError> {
    let Some(mounts) = spec.mounts_mut() else {
        return Ok(());
    };
    for mount in mounts {
        if users && mount.typ().as_deref() == Some("sysfs") {
            // Only the owner of the network namespace, which is the VM's, may mount a new one.
            mount
                .set_typ(Some("bind".to_owned()))
                .set_source(Some(PathBuf::from("/sys")));
            let mut options = mount.options().clone().unwrap_or_default();
            options.push("rbind".to_owned());
            mount.set_options(Some(options));
        }
        let options = mount.options().clone().unwrap_or_default();
        let is_bind = mount.typ().as_deref() == Some("bind")
            || options.iter().any(|option| option == "bind" || option == "rbind");
        if !is_bind {
            continue;
        }
        if mount.destination() == Path::new("/dev/shm")
            && let Some(shm) = &facts.shm
        {
            mount.set_source(Some(shm.clone()));
            continue;
        }
        let source = mount.source().clone().unwrap_or_default();
        let plain = source.is_absolute()
            && !source
                .components()
                .any(|part| matches!(part, std::path::Component::ParentDir));
        let guests_own = ["/dev", "/proc", "/sys"]
            .iter()
            .any(|base| source.starts_with(base));
        if !plain || !(guests_own || source.starts_with(paths::BASE)) {
            return Err(SpecError::Source { path: source });
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn facts() -> Facts {
        Facts {
            rootfs: "/run/bulkhead/share/c/rootfs".into(),
            cgroup: "/bulkhead/c".to_owned(),
            seccomp: true,
            ..Facts::default()
        }
    }

    fn spec(linux: serde_json::Value, mounts: serde_json::Value) -> Spec {
        serde_json::from_value(json!({
            "ociVersion": "1.0.2", "root": {"path": "rootfs", "readonly": true}, "hostname": "h",
            "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/", "args": ["sh"], "apparmorProfile": "docker-default", "noNewPrivileges": false},
            "hooks": {"poststop": [{"path": "/bin/true"}], "startContainer": [{"path": "/bin/true"}]},
            "linux": linux, "mounts": mounts
        }))
        .unwrap()
    }

    fn kinds(rewritten: &Rewritten) -> Vec<(String, Option<PathBuf>)> {
        let linux = rewritten.spec.linux().as_ref().unwrap();
        let namespaces = linux.namespaces().as_ref().unwrap();
        namespaces
            .iter()
            .map(|ns| (ns.typ().to_string(), ns.path().clone()))
            .collect()
    }

    #[test]
    fn what_belongs_to_the_host_is_taken_out() {
        let linux = json!({
            "cgroupsPath": "/host/path", "namespaces": [{"type": "network", "path": "/run/netns/x"}, {"type": "pid"}, {"type": "uts"}],
            "sysctl": {"net.ipv4.ip_forward": "1", "kernel.shmmax": "5"},
            "resources": {"pids": {"limit": 5}, "devices": [{"allow": false, "access": "rwm"}]}
        });
        let all = rewrite(spec(linux, json!([])), &facts()).unwrap();
        let hooks = all.spec.hooks().as_ref().unwrap();
        assert!(
            hooks
                .start_container()
                .as_ref()
                .is_some_and(|list| list.len() == 1)
        );
        assert!(hooks.poststop().is_none());
        assert_eq!(
            kinds(&all),
            [
                ("mnt".to_owned(), None),
                ("pid".to_owned(), None),
                ("uts".to_owned(), None)
            ]
        );
        let linux = all.spec.linux().as_ref().unwrap();
        assert_eq!(linux.cgroups_path().as_deref(), Some(Path::new("/bulkhead/c")));
        assert!(linux.resources().is_none());
        assert_eq!(all.resources.pids().unwrap().limit(), 5);
        assert_eq!(all.rules.len(), 1);
        assert_eq!(all.sysctls, [("net.ipv4.ip_forward".to_owned(), "1".to_owned())]);
        assert_eq!(linux.sysctl().as_ref().unwrap().len(), 1);
        let process = all.spec.process().as_ref().unwrap();
        assert!(process.apparmor_profile().is_none() && process.no_new_privileges().is_none());
        let caps = process.capabilities().as_ref().unwrap();
        assert!(caps.bounding().as_ref().unwrap().is_empty());
        let root = all.spec.root().as_ref().unwrap();
        assert_eq!(
            (root.path().as_path(), root.readonly()),
            (facts().rootfs.as_path(), Some(true))
        );
    }

    #[test]
    fn namespace_paths_mean_the_first_container() {
        let linux = || json!({"namespaces": [{"type": "ipc", "path": "/proc/77/ns/ipc"}, {"type": "uts", "path": "/proc/77/ns/uts"}]});
        let joined = rewrite(
            spec(linux(), json!([])),
            &Facts {
                first: Some(9),
                ..facts()
            },
        )
        .unwrap();
        assert_eq!(
            kinds(&joined)[1],
            ("ipc".to_owned(), Some("/proc/9/ns/ipc".into()))
        );
        let alone = rewrite(spec(linux(), json!([])), &facts()).unwrap();
        assert_eq!(kinds(&alone).len(), 1);
        assert!(
            alone.spec.hostname().is_none(),
            "a host name needs a namespace of its own"
        );
    }

    #[test]
    fn a_pid_namespace_of_others_is_joined_whatever_the_path() {
        let linux = || json!({"namespaces": [{"type": "pid"}]});
        let facts = Facts {
            pids: Some(9),
            ..facts()
        };
        let joined = rewrite(spec(linux(), json!([])), &facts).unwrap();
        let expected = ("pid".to_owned(), Some("/proc/9/ns/pid".into()));
        assert_eq!(kinds(&joined)[1], expected);
    }

    #[test]
    fn bind_sources_are_checked() {
        let bind = |source: &str| json!([{"destination": "/data", "type": "bind", "source": source, "options": ["rbind"]}]);
        for good in ["/run/bulkhead/share/c-00-data", "/sys/fs/cgroup", "/dev", "/proc"] {
            rewrite(spec(json!({}), bind(good)), &facts()).unwrap();
        }
        for bad in ["/etc", "/run/bulkhead/../../etc", "/", "relative"] {
            assert_eq!(
                rewrite(spec(json!({}), bind(bad)), &facts()).unwrap_err(),
                SpecError::Source { path: bad.into() }
            );
        }
        let shm = json!([{"destination": "/dev/shm", "type": "bind", "source": "/whatever"}]);
        let all = rewrite(
            spec(json!({}), shm),
            &Facts {
                shm: Some("/run/bulkhead/shm".into()),
                ..facts()
            },
        )
        .unwrap();
        assert_eq!(
            all.spec.mounts().as_ref().unwrap()[0].source().as_deref(),
            Some(Path::new("/run/bulkhead/shm"))
        );
    }

    #[test]
    fn seccomp_notify_is_refused_and_seccomp_can_be_off() {
        let linux = || json!({"seccomp": {"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [{"names": ["mount"], "action": "SCMP_ACT_NOTIFY"}]}});
        assert!(matches!(
            rewrite(spec(linux(), json!([])), &facts()),
            Err(SpecError::Unsupported { .. })
        ));
        let off = rewrite(
            spec(linux(), json!([])),
            &Facts {
                seccomp: false,
                ..facts()
            },
        )
        .unwrap();
        assert!(off.spec.linux().as_ref().unwrap().seccomp().is_none());
    }
}
