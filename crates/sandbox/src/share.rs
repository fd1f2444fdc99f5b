//! Sharing a container's files with the guest, and the spec as the guest gets it (C-07, C-30, C-31, C-36).
//!
//! ```text
//!  vanilla spec ──plan──► SharePlan { binds, patched spec } ──bind each (journaled)──► guest
//! ```
//!
//! Owns: which mounts are shared, under what names, and the rewriting of the spec. Never: binding (the
//! caller does, through the platform). Called by container creation.

use crate::boot::GUEST_SHARE;
use crate::error::SandboxError;
use bulkhead_model::{ContainerPlan, oci};
use serde::{Deserialize, Serialize};
use std::path::{Component, Path, PathBuf};

/// Size of `/dev/shm` when nothing else is asked for, in bytes (M-11).
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// One host path shown to the guest.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Share {
    /// Host path, symlinks not yet resolved.
    pub source: PathBuf,
    /// Name below the share on both sides.
    pub name: PathBuf,
    /// Destination in the container.
    pub destination: PathBuf,
}

impl Share {
    /// Where the guest finds it.
    #[must_use]
    pub fn guest_path(&self) -> PathBuf {
        Path::new(GUEST_SHARE).join(&self.name)
    }
}

/// What has to be shared and what the guest is told.
#[derive(Debug, Clone, PartialEq)]
pub struct SharePlan {
    /// The root file system first, then the mounts in order.
    pub shares: Vec<Share>,
    /// The patched spec.
    pub spec: oci::Spec,
    /// Guest path of the root file system.
    pub rootfs: String,
}

/// Plans the shares of a container. `random` yields the hexadecimal part of each name; `shm_bytes` is the
/// sandbox's `/dev/shm` size, 0 for the default.
///
/// # Errors
/// A bind mount without a source, or a destination that climbs out of the root.
pub fn plan(
    container: &ContainerPlan,
    shm_bytes: u64,
    mut random: impl FnMut() -> String,
) -> Result<SharePlan, SandboxError> {
    let rootfs = Share {
        source: container.rootfs.path.clone(),
        name: Path::new(container.id.as_str()).join("rootfs"),
        destination: "/".into(),
    };
    let rootfs_in_guest = rootfs.guest_path().to_string_lossy().into_owned();
    let mut shares = vec![rootfs];
    let mut spec = container.spec.clone();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        if !destination_is_safe(mount.destination()) {
            return Err(SandboxError::Invalid {
                what: "mounts.destination",
                value: mount.destination().display().to_string(),
                expected: "an absolute path without ..",
            });
        }
        if mount.destination() == Path::new("/dev/shm") && is_bind(mount) {
            *mount = shm_mount(mount, shm_bytes);
            continue;
        }
        if !is_shared(mount) {
            continue;
        }
        let source = mount.source().clone().ok_or_else(|| SandboxError::Invalid {
            what: "mounts.source",
            value: format!("none for the bind mount at {}", mount.destination().display()),
            expected: "a path on the host",
        })?;
        let base = mount
            .destination()
            .file_name()
            .map_or_else(|| "root".into(), |n| n.to_string_lossy());
        let share = Share {
            source,
            name: PathBuf::from(format!("{}-{}-{base}", container.id, random())),
            destination: mount.destination().clone(),
        };
        mount.set_source(Some(share.guest_path()));
        mount.set_typ(Some("bind".into()));
        shares.push(share);
    }
    spec.set_mounts(Some(mounts));
    if let Some(root) = spec.root_mut() {
        root.set_path(PathBuf::from(&rootfs_in_guest));
    }
    // Host-side affairs: hooks ran here, the cgroup is the guest's own, the network is the VM's.
    spec.set_hooks(None);
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(None);
        clear_host_only(linux);
    }
    Ok(SharePlan {
        shares,
        spec,
        rootfs: rootfs_in_guest,
    })
}

/// Host CPU and memory node numbers mean nothing in the guest (C-20); namespaces joined by path do not
/// exist there.
fn clear_host_only(linux: &mut oci::Linux) {
    if let Some(resources) = linux.resources_mut()
        && let Some(cpu) = resources.cpu_mut()
    {
        cpu.set_cpus(None);
        cpu.set_mems(None);
    }
    let namespaces = linux.namespaces().clone().unwrap_or_default();
    let kept = namespaces
        .into_iter()
        .filter(|ns| ns.typ() != oci::LinuxNamespaceType::Network)
        .map(|mut ns| {
            ns.set_path(None);
            ns
        })
        .collect::<Vec<_>>();
    linux.set_namespaces(Some(kept));
}

fn is_bind(mount: &oci::Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .as_ref()
            .is_some_and(|all| all.iter().any(|o| o == "bind" || o == "rbind"))
}

/// C-30: bind mounts only; not sources under /proc and /sys (M-01), not host devices (M-02).
fn is_shared(mount: &oci::Mount) -> bool {
    if !is_bind(mount) {
        return false;
    }
    let Some(source) = mount.source() else { return true };
    !is_system(source) && !is_host_device(mount.destination())
}

/// M-01: equal to or under /proc or /sys, after cleaning.
#[must_use]
pub fn is_system(path: &Path) -> bool {
    let clean = clean(path);
    ["/proc", "/sys"].iter().any(|root| clean.starts_with(root))
}

/// M-02: /dev itself, or a path under /dev that exists and is not a regular file.
#[must_use]
pub fn is_host_device(path: &Path) -> bool {
    let clean = clean(path);
    if clean == Path::new("/dev") {
        return true;
    }
    clean.starts_with("/dev") && std::fs::metadata(&clean).is_ok_and(|meta| !meta.is_file())
}

/// Lexical cleaning: `.` and doubled slashes vanish, `..` takes one element away.
fn clean(path: &Path) -> PathBuf {
    let mut out = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                out.pop();
            }
            Component::CurDir => {}
            other => out.push(other),
        }
    }
    out
}

fn destination_is_safe(path: &Path) -> bool {
    path.is_absolute() && !path.components().any(|c| matches!(c, Component::ParentDir))
}

fn shm_mount(old: &oci::Mount, bytes: u64) -> oci::Mount {
    let bytes = if bytes == 0 { DEFAULT_SHM_BYTES } else { bytes };
    let mut mount = old.clone();
    mount.set_typ(Some("tmpfs".into()));
    mount.set_source(Some("shm".into()));
    mount.set_options(Some(
        ["nosuid", "noexec", "nodev", "mode=1777"]
            .into_iter()
            .map(String::from)
            .chain([format!("size={bytes}")])
            .collect(),
    ));
    mount
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(mounts: Vec<oci::Mount>) -> ContainerPlan {
        let mut spec = oci::Spec::default();
        spec.set_mounts(Some(mounts));
        serde_json::from_value(serde_json::json!({
            "id": "c1", "bundle": "/b", "rootfs": {"path": "/b/rootfs", "readonly": false},
            "spec": spec, "creates_sandbox": true,
        }))
        .unwrap()
    }

    fn bind(source: &str, destination: &str) -> oci::Mount {
        let mut mount = oci::Mount::default();
        mount
            .set_source(Some(source.into()))
            .set_destination(destination.into())
            .set_typ(Some("bind".into()));
        mount
    }

    fn planned(mounts: Vec<oci::Mount>) -> SharePlan {
        plan(&container(mounts), 0, || "00ff".into()).unwrap()
    }

    /// C-30, C-31, C-36: names, guest paths, what is left alone.
    #[test]
    fn c30_c31_only_plain_binds_are_shared() {
        let plan = planned(vec![
            bind("/data", "/mnt/data"),
            bind("/proc/self", "/x"),
            bind("/sys/fs", "/y"),
            bind("/process", "/z"),
            bind("/dev/null", "/dev/null"),
        ]);
        let names: Vec<_> = plan.shares.iter().map(|s| s.name.to_str().unwrap()).collect();
        assert_eq!(names, ["c1/rootfs", "c1-00ff-data", "c1-00ff-z"]);
        assert_eq!(plan.rootfs, "/run/bulkhead/share/c1/rootfs");
        let mounts = plan.spec.mounts().clone().unwrap();
        assert_eq!(
            mounts[0].source().as_deref(),
            Some(Path::new("/run/bulkhead/share/c1-00ff-data"))
        );
        assert_eq!(mounts[1].source().as_deref(), Some(Path::new("/proc/self")));
    }

    /// C-30: /dev/shm exactly is the guest's own tmpfs; M-11 is its default size.
    #[test]
    fn c30_m11_shm_is_the_guests() {
        let plan = planned(vec![bind("/run/shm-of-pod", "/dev/shm")]);
        let mounts = plan.spec.mounts().clone().unwrap();
        assert_eq!(mounts[0].typ().as_deref(), Some("tmpfs"));
        assert!(
            mounts[0]
                .options()
                .as_ref()
                .unwrap()
                .contains(&"size=67108864".to_owned())
        );
        assert_eq!(plan.shares.len(), 1);
    }

    #[test]
    fn c07_the_vanilla_spec_stays() {
        let container = container(vec![bind("/data", "/d")]);
        let before = container.spec.clone();
        plan(&container, 0, || "1".into()).unwrap();
        assert_eq!(container.spec, before);
    }

    #[test]
    fn destinations_that_climb_are_refused_by_name() {
        let error = plan(&container(vec![bind("/a", "/b/../../c")]), 0, || "1".into()).unwrap_err();
        assert!(error.to_string().contains("/b/../../c"), "{error}");
    }

    /// M-01.
    #[test]
    fn m01_system_mounts() {
        for yes in ["/proc", "/proc/1", "/sys/", "/sys/../proc/x", "//proc"] {
            assert!(is_system(Path::new(yes)), "{yes}");
        }
        for no in ["/process", "/", "/system", "/a/proc"] {
            assert!(!is_system(Path::new(no)), "{no}");
        }
    }

    /// M-02.
    #[test]
    fn m02_host_devices() {
        assert!(is_host_device(Path::new("/dev")));
        assert!(is_host_device(Path::new("/dev/null")));
        assert!(!is_host_device(Path::new("/dev/absent-for-sure")));
        assert!(!is_host_device(Path::new("/etc/hostname")));
    }
}
