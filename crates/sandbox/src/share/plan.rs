//! Which mounts of a container are shared, under what names, and the spec as the guest gets it (C-07, C-30).

use super::volume::Volume;
use super::{Share, guest_rootfs};
use crate::boot::GUEST_SHARE;
use crate::error::SandboxError;
use bulkhead_host::mount::{is_host_device, is_system_mount};
use bulkhead_model::vm::SharedFs;
use bulkhead_model::{ContainerPlan, SandboxPlan, oci};
use bulkhead_protocol::GuestStorage;
use sha2::{Digest, Sha256};
use std::collections::HashMap;
use std::io;
use std::path::{Component, Path, PathBuf};

/// Size of `/dev/shm` when nothing else is asked for, in bytes (M-11).
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// Longest file name, limits.h.
const NAME_MAX: usize = 255;

/// Where the guest mounts what the containers of a sandbox share among themselves.
const GUEST_OWN: &str = "/run/bulkhead";

/// What has to be shared and what the guest is told.
#[derive(Debug, Clone, PartialEq)]
pub struct SharePlan {
    /// The root file system first, then the mounts in order.
    pub shares: Vec<Share>,
    /// The patched spec.
    pub spec: oci::Spec,
    /// Guest path of the root file system.
    pub rootfs: String,
    /// Sources that cannot be shared (C-30); their mounts are not in the patched spec.
    pub ignored: Vec<PathBuf>,
    /// `/dev` is bind-mounted from the host (C-34).
    pub dev_is_the_hosts: bool,
}

impl SharePlan {
    /// What the guest mounts for this container, in order.
    #[must_use]
    pub fn storages(&self) -> Vec<GuestStorage> {
        self.shares
            .iter()
            .filter_map(|share| share.storage.clone())
            .collect()
    }
}

/// Plans the shares of a container in `sandbox`. `random` yields the hexadecimal part of each name, `volume`
/// the kind of a bind source.
///
/// # Errors
/// A bind mount without a source or with one that `volume` cannot look at, a destination that climbs out of
/// the root or is the root.
pub fn plan(
    container: &ContainerPlan,
    sandbox: &SandboxPlan,
    mut random: impl FnMut() -> String,
    volume: impl Fn(&Path) -> io::Result<Volume>,
) -> Result<SharePlan, SandboxError> {
    let rootfs = guest_rootfs(container.id.as_str(), false);
    let mut shares = vec![Share {
        source: container.rootfs.path.clone(),
        name: Path::new(container.id.as_str()).join("rootfs"),
        destination: "/".into(),
        recursive: true,
        storage: None,
    }];
    // By destination: a later mount takes an earlier one's place (C-30).
    let mut by_destination: HashMap<PathBuf, usize> = HashMap::new();
    let mut ignored = Vec::new();
    let mut dev_is_the_hosts = false;
    let mut spec = container.spec.clone();
    let mut mounts = spec.mounts().clone().unwrap_or_default();
    for mount in &mut mounts {
        let destination = inside(mount.destination()).ok_or_else(|| SandboxError::Invalid {
            what: "mounts.destination",
            value: mount.destination().display().to_string(),
            expected: "a path below the container's root",
        })?;
        mount.set_destination(destination.clone());
        if !is_bind(mount) {
            continue;
        }
        let source = mount.source().clone().ok_or_else(|| SandboxError::Invalid {
            what: "mounts.source",
            value: format!("none for the bind mount at {}", destination.display()),
            expected: "a path on the host",
        })?;
        dev_is_the_hosts |= source == Path::new("/dev") && destination == Path::new("/dev");
        if is_system_mount(&source) {
            continue;
        }
        if destination == Path::new("/dev/shm") {
            // The agent binds the sandbox's own in its place, if there is one.
            if sandbox.shm_bytes == 0 {
                *mount = private_shm(mount);
            }
            continue;
        }
        if is_host_device(&destination) {
            continue;
        }
        if sandbox.vm.shared_fs == SharedFs::None {
            ignored.push(source);
            continue;
        }
        let kind = volume(&source).map_err(|error| SandboxError::mount(&source, &destination, error))?;
        let share = share(
            container,
            mount,
            source,
            kind,
            sandbox.share_empty_dirs,
            &mut random,
        );
        match by_destination.get(&destination) {
            Some(earlier) => shares[*earlier] = share,
            None => {
                by_destination.insert(destination, shares.len());
                shares.push(share);
            }
        }
    }
    mounts.retain(|mount| {
        !is_bind(mount)
            || !mount
                .source()
                .as_ref()
                .is_some_and(|source| ignored.contains(source))
    });
    for mount in &mut mounts {
        if let Some(index) = by_destination.get(mount.destination()).filter(|_| is_bind(mount)) {
            mount.set_source(Some(shares[*index].guest_path()));
            mount.set_typ(Some("bind".into()));
        }
    }
    spec.set_mounts(Some(mounts));
    if let Some(root) = spec.root_mut() {
        root.set_path(rootfs.clone());
    }
    for_the_guest(&mut spec, container);
    Ok(SharePlan {
        shares,
        spec,
        rootfs: rootfs.to_string_lossy().into_owned(),
        ignored,
        dev_is_the_hosts,
    })
}

/// The share of one bind mount.
fn share(
    container: &ContainerPlan,
    mount: &oci::Mount,
    source: PathBuf,
    kind: Volume,
    share_empty_dirs: bool,
    random: &mut impl FnMut() -> String,
) -> Share {
    let destination = mount.destination().clone();
    let options = mount.options().clone().unwrap_or_default();
    let own = |driver: &str, fstype: &str, options: Vec<String>| Share {
        name: PathBuf::new(),
        destination: destination.clone(),
        recursive: false,
        storage: Some(GuestStorage {
            driver: driver.into(),
            source: fstype.into(),
            fstype: fstype.into(),
            options,
            mount_point: format!("{GUEST_OWN}/{driver}/{}", of_the_sandbox(&source)),
        }),
        source: source.clone(),
    };
    match kind {
        Volume::Ephemeral { mode, gid, bytes } if !share_empty_dirs => {
            let mut options = vec![format!("mode={mode:o}"), format!("gid={gid}")];
            options.extend((bytes > 0).then(|| format!("size={bytes}")));
            return own("ephemeral", "tmpfs", options);
        }
        Volume::Local { mode, gid } if !share_empty_dirs => {
            return own(
                "local",
                "local",
                vec![format!("mode={mode:o}"), format!("gid={gid}")],
            );
        }
        Volume::Ephemeral { .. } | Volume::Local { .. } | Volume::Shared | Volume::Watchable => {}
    }
    let name = name(container.id.as_str(), &random(), &destination);
    let storage = (kind == Volume::Watchable).then(|| GuestStorage {
        driver: "watchable-bind".into(),
        source: format!("{GUEST_SHARE}/{name}"),
        fstype: "bind".into(),
        options: options.clone(),
        mount_point: format!("{GUEST_SHARE}/watchable/{name}"),
    });
    Share {
        source,
        name: name.into(),
        destination,
        recursive: options.iter().any(|option| option == "rbind"),
        storage,
    }
}

/// C-31: container, random, base name of the destination; never longer than a file name may be.
fn name(container: &str, random: &str, destination: &Path) -> String {
    let base = destination
        .file_name()
        .map_or_else(|| "root".into(), |name| name.to_string_lossy());
    let mut name = format!("{container}-{random}-");
    let room = NAME_MAX.saturating_sub(name.len());
    let end = (0..=room.min(base.len()))
        .rev()
        .find(|end| base.is_char_boundary(*end));
    name.push_str(&base[..end.unwrap_or(0)]);
    name
}

/// The same for every container that has this volume, and for no other volume.
fn of_the_sandbox(source: &Path) -> String {
    let digest = Sha256::digest(source.as_os_str().as_encoded_bytes());
    let hash: String = digest.iter().take(8).map(|byte| format!("{byte:02x}")).collect();
    name("volume", &hash, source)
}

/// What the guest's own spec differs in beside the mounts (C-07, C-08, C-20, K-06): hooks run on the host but for those
/// in the container right before its program, the cgroup is the guest's own, the network is the VM's.
fn for_the_guest(spec: &mut oci::Spec, container: &ContainerPlan) {
    let inside = spec
        .hooks()
        .as_ref()
        .and_then(|hooks| hooks.start_container().clone());
    spec.set_hooks(inside.filter(|list| !list.is_empty()).map(|list| {
        let mut hooks = oci::Hooks::default();
        hooks.set_start_container(Some(list));
        hooks
    }));
    if container.resources != oci::LinuxResources::default() {
        let mut linux = spec.linux().clone().unwrap_or_default();
        linux.set_resources(Some(container.resources.clone()));
        spec.set_linux(Some(linux));
    }
    if let Some(linux) = spec.linux_mut() {
        linux.set_cgroups_path(None);
        clear_host_only(linux);
    }
}

/// Host CPU and memory node numbers mean nothing in the guest (C-20); namespaces joined by path do not exist there,
/// but an IPC namespace that is the pod's: the agent takes it for the one its containers share.
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
            if ns.typ() != oci::LinuxNamespaceType::Ipc {
                ns.set_path(None);
            }
            ns
        })
        .collect::<Vec<_>>();
    linux.set_namespaces(Some(with_own_cgroup_view(kept)));
}

/// A container sees its own cgroup as the root. On a host with cgroup v1 engines ask for no cgroup namespace and
/// mount the container's own directories instead, which is the same view.
fn with_own_cgroup_view(mut namespaces: Vec<oci::LinuxNamespace>) -> Vec<oci::LinuxNamespace> {
    if namespaces
        .iter()
        .all(|ns| ns.typ() != oci::LinuxNamespaceType::Cgroup)
    {
        let mut own = oci::LinuxNamespace::default();
        own.set_typ(oci::LinuxNamespaceType::Cgroup);
        namespaces.push(own);
    }
    namespaces
}

/// C-30: engines also say it by an option alone.
fn is_bind(mount: &oci::Mount) -> bool {
    mount.typ().as_deref() == Some("bind")
        || mount
            .options()
            .as_ref()
            .is_some_and(|all| all.iter().any(|o| o == "bind" || o == "rbind"))
}

/// `path` as seen from the container's root; `None` for the root itself and for what climbs above it.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::from("/");
    for part in path.components() {
        match part {
            Component::Normal(name) => clean.push(name),
            Component::ParentDir if clean.parent().is_none() => return None,
            Component::ParentDir => {
                clean.pop();
            }
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    clean.parent().is_some().then_some(clean)
}

/// For a sandbox that has no `/dev/shm` of its own (M-11).
fn private_shm(old: &oci::Mount) -> oci::Mount {
    let mut mount = old.clone();
    mount.set_typ(Some("tmpfs".into()));
    mount.set_source(Some("shm".into()));
    mount.set_options(Some(
        ["nosuid", "noexec", "nodev", "mode=1777"]
            .into_iter()
            .map(String::from)
            .chain([format!("size={DEFAULT_SHM_BYTES}")])
            .collect(),
    ));
    mount
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
