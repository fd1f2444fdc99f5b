//! What a process that enters the stub's mount namespace sees: the container's root and volumes, and nothing
//! of the host.
//!
//! ```text
//!  private ─► bind the rootfs ─► /proc, /dev ─► the spec's mounts ─► masks ─► pivot ─► read-only
//! ```
//!
//! Owns: the description (made by the verb) and its realisation (in the stub). Never: creates anything in the
//! container's files: a mount whose target is missing there is left out, with a warning.

use bulkhead_host::mount::{self, Attributes, InRoot, MountError, Propagation, TargetKind, Tree};
use bulkhead_model::{ContainerPlan, oci};
use nix::sys::stat::{Mode, SFlag};
use serde::{Deserialize, Serialize};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

/// Files of a fresh `/proc` that show or change the host, masked whatever the spec says.
const ALWAYS_MASKED: [&str; 5] = [
    "/proc/kcore",
    "/proc/keys",
    "/proc/kmsg",
    "/proc/sysrq-trigger",
    "/proc/timer_list",
];

/// Options of a tmpfs that are passed on; all others are per-mount flags or of no use here.
const TMPFS_OPTIONS: [&str; 6] = ["size", "mode", "uid", "gid", "nr_inodes", "nr_blocks"];

/// Name, minor number: character devices of major 1 (null(4), random(4)).
const DEVICES: [(&str, u64); 5] = [
    ("null", 3),
    ("zero", 5),
    ("full", 7),
    ("random", 8),
    ("urandom", 9),
];

/// Why the view could not be built.
#[derive(Debug, thiserror::Error)]
pub(super) enum ViewError {
    /// A mount failed that everything stands on.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// The root file system cannot be opened.
    #[error("opening the root file system {}", path.display())]
    Rootfs {
        /// Its path.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

/// A volume.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
struct Volume {
    destination: PathBuf,
    kind: VolumeKind,
    read_only: bool,
    no_suid: bool,
    no_dev: bool,
    no_exec: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
enum VolumeKind {
    Bind { source: PathBuf, recursive: bool },
    Tmpfs { options: Vec<(String, String)> },
}

/// The description.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct View {
    rootfs: PathBuf,
    read_only: bool,
    hostname: Option<String>,
    domainname: Option<String>,
    volumes: Vec<Volume>,
    masked: Vec<PathBuf>,
    read_only_paths: Vec<PathBuf>,
}

impl View {
    /// Of a container: what its spec shows it that comes from the host's files. What the guest makes itself
    /// (sysfs, cgroup, mqueue, `/dev/shm`) and binds of host devices, `/proc` and `/sys`, which do not reach
    /// the guest (C-30), are not in it.
    #[must_use]
    pub fn of(plan: &ContainerPlan) -> Self {
        let spec = &plan.spec;
        let linux = spec.linux().as_ref();
        let paths = |list: Option<&Option<Vec<String>>>| -> Vec<PathBuf> {
            list.and_then(Option::as_ref)
                .into_iter()
                .flatten()
                .map(PathBuf::from)
                .collect()
        };
        Self {
            rootfs: plan.rootfs.path.clone(),
            read_only: plan.rootfs.readonly,
            hostname: spec.hostname().clone(),
            domainname: spec.domainname().clone(),
            volumes: spec
                .mounts()
                .iter()
                .flatten()
                .filter_map(|mount| Volume::of(mount, &plan.bundle))
                .collect(),
            masked: paths(linux.map(oci::Linux::masked_paths)),
            read_only_paths: paths(linux.map(oci::Linux::readonly_paths)),
        }
    }

    /// Makes it this process's root. The process must be alone in a new mount and a new UTS namespace.
    /// Returns what was left out.
    ///
    /// # Errors
    /// [`ViewError`]; the process must exit then.
    pub(super) fn enter(&self) -> Result<Vec<String>, ViewError> {
        let mut warnings = Vec::new();
        mount::propagate(Path::new("/"), Propagation::Private, true)?;
        self.set_names(&mut warnings);
        let tree = Tree::bind(&self.rootfs, true)?;
        tree.attach_at(&self.rootfs)?;
        let root = InRoot::open_root(&self.rootfs).map_err(|source| ViewError::Rootfs {
            path: self.rootfs.clone(),
            source,
        })?;
        // By the path the mount was attached to: a rename of a parent in between shows up here.
        for (what, result) in [("/proc", mount_proc(&root)), ("/dev", mount_dev(&root))] {
            note(&mut warnings, what, result);
        }
        for volume in &self.volumes {
            let what = volume.destination.display().to_string();
            note(&mut warnings, &what, volume.mount(&root));
        }
        let always = ALWAYS_MASKED.iter().map(Path::new);
        for path in always.chain(self.masked.iter().map(PathBuf::as_path)) {
            note(&mut warnings, &path.display().to_string(), mask(&root, path));
        }
        for path in &self.read_only_paths {
            note(
                &mut warnings,
                &path.display().to_string(),
                make_read_only(&root, path),
            );
        }
        drop(root);
        mount::move_to_root(&self.rootfs)?;
        if self.read_only {
            mount::restrict(Path::new("/"), READ_ONLY, false)?;
        }
        Ok(warnings)
    }

    fn set_names(&self, warnings: &mut Vec<String>) {
        // These files are of the UTS namespace of whoever opens them (proc_sys_kernel(5)).
        for (file, name) in [("hostname", &self.hostname), ("domainname", &self.domainname)] {
            if let Some(name) = name {
                let result = std::fs::write(format!("/proc/sys/kernel/{file}"), name);
                if let Err(error) = result {
                    warnings.push(format!("setting the {file} {name:?}: {error}"));
                }
            }
        }
    }
}

const READ_ONLY: Attributes = Attributes {
    read_only: true,
    no_suid: false,
    no_dev: false,
    no_exec: false,
};

impl Volume {
    fn of(mount: &oci::Mount, bundle: &Path) -> Option<Self> {
        let options: Vec<&str> = mount.options().iter().flatten().map(String::as_str).collect();
        let has = |name| mount::has_option(&options, name);
        let destination = mount.destination().clone();
        let fs_type = mount.typ().as_deref().unwrap_or_default();
        let is_bind = fs_type == "bind" || has("bind") || has("rbind");
        let is_shm = destination == Path::new("/dev/shm");
        let kind = if is_bind && !is_shm {
            // Relative sources are the bundle's (OCI runtime spec, config, "Mounts").
            let source = bundle.join(mount.source().as_ref()?);
            if mount::is_system_mount(&source) || mount::is_host_device(&source) {
                return None;
            }
            VolumeKind::Bind {
                source,
                recursive: !has("bind") || has("rbind"),
            }
        } else if fs_type == "tmpfs" && !destination.starts_with("/dev") && !destination.starts_with("/proc")
        {
            VolumeKind::Tmpfs {
                options: options
                    .iter()
                    .filter_map(|option| option.split_once('='))
                    .filter(|(key, _)| TMPFS_OPTIONS.contains(key))
                    .map(|(key, value)| (key.to_owned(), value.to_owned()))
                    .collect(),
            }
        } else {
            return None;
        };
        Some(Self {
            destination,
            kind,
            read_only: has("ro"),
            no_suid: has("nosuid"),
            no_dev: has("nodev"),
            no_exec: has("noexec"),
        })
    }

    /// Below `/dev`, which is ours, a missing target is made; elsewhere it would alter the container's files.
    fn target(&self, root: &InRoot) -> io::Result<OwnedFd> {
        if !self.destination.starts_with("/dev") {
            return root.locate(&self.destination);
        }
        let kind = match &self.kind {
            VolumeKind::Bind { source, .. } if !source.is_dir() => TargetKind::File,
            _ => TargetKind::Directory,
        };
        root.ensure(&self.destination, kind)
    }

    fn mount(&self, root: &InRoot) -> io::Result<()> {
        let attributes = Attributes {
            read_only: self.read_only,
            no_suid: self.no_suid,
            no_dev: self.no_dev,
            no_exec: self.no_exec,
        };
        let target = self.target(root)?;
        let tree = match &self.kind {
            VolumeKind::Bind { source, recursive } => {
                let tree = Tree::bind(source, *recursive).map_err(io::Error::other)?;
                if attributes != Attributes::default() {
                    tree.set(attributes, false).map_err(io::Error::other)?;
                }
                tree
            }
            VolumeKind::Tmpfs { options } => {
                let options: Vec<(&str, Option<&str>)> = options
                    .iter()
                    .map(|(key, value)| (key.as_str(), Some(value.as_str())))
                    .collect();
                Tree::filesystem("tmpfs", &options, attributes).map_err(io::Error::other)?
            }
        };
        tree.attach(target.as_fd(), &self.destination)
            .map_err(io::Error::other)
    }
}

fn mount_proc(root: &InRoot) -> io::Result<()> {
    let target = root.locate(Path::new("/proc"))?;
    let attributes = Attributes {
        no_suid: true,
        no_dev: true,
        no_exec: true,
        ..Attributes::default()
    };
    Tree::filesystem("proc", &[], attributes)
        .and_then(|tree| tree.attach(target.as_fd(), Path::new("/proc")))
        .map_err(io::Error::other)
}

/// A small tmpfs with the devices every program expects; nothing of the host's `/dev`.
fn mount_dev(root: &InRoot) -> io::Result<()> {
    let target = root.locate(Path::new("/dev"))?;
    let attributes = Attributes {
        no_suid: true,
        no_exec: true,
        ..Attributes::default()
    };
    let options = [("mode", Some("755")), ("size", Some("64k"))];
    let tree = Tree::filesystem("tmpfs", &options, attributes).map_err(io::Error::other)?;
    let all = Mode::from_bits_truncate(0o666);
    for (name, minor) in DEVICES {
        let number = nix::sys::stat::makedev(1, minor);
        nix::sys::stat::mknodat(&tree, name, SFlag::S_IFCHR, all, number)?;
        // mknod(2) applies the umask.
        nix::sys::stat::fchmodat(&tree, name, all, nix::sys::stat::FchmodatFlags::FollowSymlink)?;
    }
    for name in ["shm", "pts", "mqueue"] {
        nix::sys::stat::mkdirat(&tree, name, Mode::from_bits_truncate(0o755))?;
    }
    for (link, to) in [
        ("fd", "/proc/self/fd"),
        ("stdin", "/proc/self/fd/0"),
        ("stdout", "/proc/self/fd/1"),
        ("stderr", "/proc/self/fd/2"),
    ] {
        nix::unistd::symlinkat(to, &tree, link)?;
    }
    tree.attach(target.as_fd(), Path::new("/dev"))
        .map_err(io::Error::other)
}

/// Hides a file behind `/dev/null`, a directory behind an empty read-only one (OCI "maskedPaths").
fn mask(root: &InRoot, path: &Path) -> io::Result<()> {
    let target = root.locate(path)?;
    let file = nix::sys::stat::fstat(&target)?;
    let is_dir = SFlag::from_bits_truncate(file.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR;
    let tree = if is_dir {
        Tree::filesystem("tmpfs", &[("size", Some("0"))], READ_ONLY)
    } else {
        // The host's: the root may have no /dev.
        Tree::bind(Path::new("/dev/null"), false)
    };
    tree.and_then(|tree| tree.attach(target.as_fd(), path))
        .map_err(io::Error::other)
}

fn make_read_only(root: &InRoot, path: &Path) -> io::Result<()> {
    let target = root.locate(path)?;
    let tree = Tree::bind_fd(target.as_fd(), true, path).map_err(io::Error::other)?;
    tree.set(READ_ONLY, true)
        .and_then(|()| tree.attach(target.as_fd(), path))
        .map_err(io::Error::other)
}

/// A path that is not there needs no mount; anything else that is left out is worth a line.
fn note(warnings: &mut Vec<String>, what: &str, result: io::Result<()>) {
    match result {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            warnings.push(format!("not in the stub's view: {what}: {error}"));
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn view(mounts: serde_json::Value) -> View {
        let plan: ContainerPlan = serde_json::from_value(json!({
            "id": "c",
            "bundle": "/bundle",
            "rootfs": { "path": "/bundle/rootfs", "readonly": true },
            "spec": { "ociVersion": "1.0.2", "hostname": "h", "mounts": mounts,
                      "linux": { "maskedPaths": ["/proc/x"], "readonlyPaths": ["/proc/y"] } },
            "creates_sandbox": true,
        }))
        .unwrap();
        View::of(&plan)
    }

    fn kinds(mounts: serde_json::Value) -> Vec<(String, VolumeKind)> {
        let destination = |volume: Volume| (volume.destination.display().to_string(), volume.kind);
        view(mounts).volumes.into_iter().map(destination).collect()
    }

    #[test]
    fn names_paths_and_the_root_come_from_the_plan() {
        let view = view(json!([]));
        assert_eq!(view.rootfs, Path::new("/bundle/rootfs"));
        assert!(view.read_only);
        assert_eq!((view.hostname.as_deref(), view.domainname), (Some("h"), None));
        assert_eq!(
            (view.masked, view.read_only_paths),
            (vec!["/proc/x".into()], vec!["/proc/y".into()])
        );
    }

    #[test]
    fn binds_are_recursive_unless_they_say_bind_and_relative_to_the_bundle() {
        let bind = |source: &str, recursive| VolumeKind::Bind {
            source: source.into(),
            recursive,
        };
        let found = kinds(json!([
            { "destination": "/a", "type": "bind", "source": "data" },
            { "destination": "/b", "type": "bind", "source": "/data", "options": ["bind"] },
            { "destination": "/c", "type": "none", "source": "/data", "options": ["rbind", "ro"] },
        ]));
        let expected = [
            ("/a".to_owned(), bind("/bundle/data", true)),
            ("/b".to_owned(), bind("/data", false)),
            ("/c".to_owned(), bind("/data", true)),
        ];
        assert_eq!(found, expected);
    }

    #[test]
    fn c_30_what_does_not_reach_the_guest_is_not_shown() {
        let found = kinds(json!([
            { "destination": "/proc", "type": "proc", "source": "proc" },
            { "destination": "/sys", "type": "sysfs", "source": "sysfs" },
            { "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup" },
            { "destination": "/dev", "type": "tmpfs", "source": "tmpfs" },
            { "destination": "/dev/shm", "type": "bind", "source": "/var/lib/shm", "options": ["rbind"] },
            { "destination": "/x", "type": "bind", "source": "/proc/1/root" },
            { "destination": "/y", "type": "bind", "source": "/sys/kernel" },
            { "destination": "/z", "type": "bind", "source": "/dev/null" },
            { "destination": "/nowhere", "type": "bind" },
        ]));
        assert_eq!(found, []);
    }

    #[test]
    fn a_tmpfs_keeps_its_size_and_flags() {
        let volumes = view(json!([{
            "destination": "/t", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "nodev", "noexec", "ro", "size=1m", "mode=1777", "strange=1"],
        }]))
        .volumes;
        let options = [("size", "1m"), ("mode", "1777")].map(|(k, v)| (k.to_owned(), v.to_owned()));
        let expected = Volume {
            destination: "/t".into(),
            kind: VolumeKind::Tmpfs {
                options: options.to_vec(),
            },
            read_only: true,
            no_suid: true,
            no_dev: true,
            no_exec: true,
        };
        assert_eq!(volumes, [expected]);
    }

    #[test]
    fn it_survives_the_way_to_the_stub() {
        let view = view(json!([{ "destination": "/a", "type": "bind", "source": "data" }]));
        let json = serde_json::to_string(&view).unwrap();
        assert_eq!(serde_json::from_str::<View>(&json).unwrap(), view);
    }
}
