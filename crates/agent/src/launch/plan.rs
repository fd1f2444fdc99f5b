//! A container as its first process makes it, step by step, worked out before that process exists.
//!
//! ```text
//!  rewritten spec ──Plan::of (agent's threads)──► Plan ──order──► fork server ──one clone──► `birth`
//! ```
//!
//! Owns: the translation of the spec. Never: a system call. Called by `engine`.

use super::attributes::{Attributes, Confinement};
use super::filter::{Filter, FilterError};
use super::mount_plan::{self, MountPlan, MountPlanError, Source};
use super::reserve::KINDS;
use bulkhead_model::oci::{
    Hook, Linux, LinuxDevice, LinuxDeviceType, LinuxNamespaceType, LinuxPersonalityDomain, Spec,
};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};

/// One range of a user namespace's map (user_namespaces(7)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct IdMap {
    /// First id inside.
    pub(crate) inside: u32,
    /// First id outside.
    pub(crate) outside: u32,
    /// How many.
    pub(crate) count: u32,
}

/// The maps of a user namespace.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct UserMaps {
    /// Of user ids.
    pub(crate) uids: Vec<IdMap>,
    /// Of group ids.
    pub(crate) gids: Vec<IdMap>,
}

impl UserMaps {
    /// What `id` inside is outside; itself where no range has it.
    pub(crate) fn outside(map: &[IdMap], id: u32) -> u32 {
        map.iter()
            .find(|range| id >= range.inside && id - range.inside < range.count)
            .map_or(id, |range| range.outside.saturating_add(id - range.inside))
    }
}

/// A container to be made.
#[derive(Debug)]
pub(crate) struct Blueprint {
    /// Its id.
    pub(crate) id: String,
    /// The rewritten spec.
    pub(crate) spec: Spec,
    /// Maps of the user namespace to make; the spec then has one without a path.
    pub(crate) users: Option<UserMaps>,
    /// `MS_MOVE` in place of `pivot_root`.
    pub(crate) no_pivot: bool,
    /// Keep the session keyring.
    pub(crate) no_new_keyring: bool,
    /// What the hooks that run right before the program get on standard input.
    pub(crate) state: String,
}

/// Namespaces by kind (`CLONE_NEW*`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Namespaces {
    /// New ones, made by the clone.
    pub(super) new: u64,
    /// A new one of these, made by the process itself: the clone would make it for the cgroup of the fork server, and
    /// the clocks of one can be set only before a process is in it.
    pub(super) late: u64,
    /// Others', joined by the process itself.
    pub(super) join: Vec<(u64, PathBuf)>,
    /// Another's pid namespace: only children are ever in one that was joined.
    pub(super) pid: Option<PathBuf>,
    /// Another's user namespace: everything new has to be made from inside it.
    pub(super) user: Option<PathBuf>,
}

/// A device node.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct DevicePlan {
    /// In the container.
    pub(super) path: PathBuf,
    /// `S_IF*`.
    pub(super) kind: u32,
    /// Major and minor number.
    pub(super) number: (u32, u32),
    /// Permissions.
    pub(super) mode: u32,
    /// Owner; 0 for root.
    pub(super) owner: (u32, u32),
}

/// A program that runs right before the container's own.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct HookPlan {
    /// Its file in the container.
    pub(super) path: PathBuf,
    /// Its arguments, its name first.
    pub(super) arguments: Vec<String>,
    /// `NAME=value`.
    pub(super) environment: Vec<String>,
    /// Seconds it may take.
    pub(super) seconds: Option<u64>,
}

/// The plan.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// What its process is.
    pub(super) attributes: Attributes,
    /// Its namespaces.
    pub(super) namespaces: Namespaces,
    /// Maps of the user namespace among the new ones.
    pub(super) users: Option<UserMaps>,
    /// Lines for `timens_offsets` (time_namespaces(7)).
    pub(super) clocks: Vec<String>,
    /// Name of the session keyring to make.
    pub(super) keyring: Option<String>,
    /// Host name.
    pub(super) host: Option<String>,
    /// Domain name.
    pub(super) domain: Option<String>,
    /// Files below /proc/sys and what is written to them.
    pub(super) sysctls: Vec<(PathBuf, String)>,
    /// Its cgroup as the guest names it, if that is all it sees of cgroups.
    pub(super) cgroup: Option<PathBuf>,
    /// The directory that becomes its root.
    pub(super) root: PathBuf,
    /// That is read-only.
    pub(super) root_read_only: bool,
    /// `MS_*` for that, 0 for the guest's own (private).
    pub(super) root_propagation: u64,
    /// `MS_MOVE` in place of `pivot_root`.
    pub(super) no_pivot: bool,
    /// In order.
    pub(super) mounts: Vec<MountPlan>,
    /// It has a /dev of its own, which gets what every container finds there.
    pub(super) own_devices: bool,
    /// Further devices.
    pub(super) devices: Vec<DevicePlan>,
    /// Nobody can look into these.
    pub(super) masked: Vec<PathBuf>,
    /// Nobody can change these.
    pub(super) read_only: Vec<PathBuf>,
    /// What runs right before the program.
    pub(super) hooks: Vec<HookPlan>,
    /// Its state document, for them.
    pub(super) state: String,
}

/// A spec that cannot be planned.
#[derive(Debug, thiserror::Error)]
pub(crate) enum PlanError {
    /// A mount.
    #[error(transparent)]
    Mount(#[from] MountPlanError),
    /// The seccomp section.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// A part that must be there.
    #[error("the spec has no {section} section")]
    Missing {
        /// Which.
        section: &'static str,
    },
    /// A word that is none of those there are.
    #[error("{key} {value:?}: expected {expected}")]
    Word {
        /// Where it stands.
        key: &'static str,
        /// The word given.
        value: String,
        /// What would do.
        expected: &'static str,
    },
    /// A number no device has.
    #[error("device {path:?} has the number {value}: expected 0 to 4294967295")]
    Number {
        /// The device's path.
        path: PathBuf,
        /// The number given.
        value: i64,
    },
}

impl Plan {
    /// Works it out.
    pub(crate) fn of(blueprint: &Blueprint) -> Result<Self, PlanError> {
        let spec = &blueprint.spec;
        let process = spec
            .process()
            .as_ref()
            .ok_or(PlanError::Missing { section: "process" })?;
        let linux = spec
            .linux()
            .as_ref()
            .ok_or(PlanError::Missing { section: "linux" })?;
        let root = spec
            .root()
            .as_ref()
            .ok_or(PlanError::Missing { section: "root" })?;
        let mounts = spec
            .mounts()
            .iter()
            .flatten()
            .map(MountPlan::of)
            .collect::<Result<Vec<_>, _>>()?;
        let own_devices = !mounts
            .iter()
            .any(|mount| mount.target == Path::new("/dev") && matches!(mount.source, Source::Bind { .. }));
        let namespaces = namespaces(linux);
        let paths = |list: &Option<Vec<String>>| list.iter().flatten().map(PathBuf::from).collect();
        Ok(Self {
            attributes: Attributes::of(process, confinement(linux)?),
            cgroup: linux
                .cgroups_path()
                .clone()
                .filter(|_| namespaces.late & flag(libc::CLONE_NEWCGROUP) != 0),
            namespaces,
            users: blueprint.users.clone(),
            clocks: clocks(linux),
            keyring: (!blueprint.no_new_keyring).then(|| format!("_ses.{}", blueprint.id)),
            host: spec.hostname().clone().filter(|name| !name.is_empty()),
            domain: spec.domainname().clone().filter(|name| !name.is_empty()),
            sysctls: sysctls(linux)?,
            root: root.path().clone(),
            root_read_only: root.readonly().unwrap_or(false),
            root_propagation: root_propagation(linux)?,
            no_pivot: blueprint.no_pivot,
            mounts,
            own_devices,
            devices: linux
                .devices()
                .iter()
                .flatten()
                .map(device)
                .collect::<Result<_, _>>()?,
            masked: paths(linux.masked_paths()),
            read_only: paths(linux.readonly_paths()),
            hooks: spec
                .hooks()
                .as_ref()
                .and_then(|hooks| hooks.start_container().as_ref())
                .into_iter()
                .flatten()
                .map(hook)
                .collect(),
            state: blueprint.state.clone(),
        })
    }

    /// The kinds of namespaces (`CLONE_NEW*`) in which its processes differ from the agent.
    pub(crate) fn foreign(&self) -> u64 {
        let own = &self.namespaces;
        let joined = own.join.iter().fold(0, |all, (kind, _)| all | kind);
        let when = |path: &Option<PathBuf>, kind: i32| if path.is_some() { flag(kind) } else { 0 };
        own.new
            | own.late
            | joined
            | when(&own.pid, libc::CLONE_NEWPID)
            | when(&own.user, libc::CLONE_NEWUSER)
    }

    /// Whether a [`Reserve`](super::Reserve) can become its process: it has what cannot be had later, and none of it is
    /// another's.
    pub(crate) fn can_employ(&self) -> bool {
        let own = &self.namespaces;
        own.new & KINDS == KINDS && own.new & !KINDS & !BY_ITSELF == 0 && own.user.is_none()
    }

    /// To be carried out by one: it makes by itself what it does not have.
    pub(super) fn employ(&mut self) {
        let own = &mut self.namespaces;
        own.late |= own.new & !KINDS;
        own.new = 0;
    }

    /// What holds for its other processes too.
    pub(crate) fn confinement(&self) -> &Confinement {
        self.attributes.confinement()
    }

    /// How many hooks run between its start and its program, and how long each may take, in seconds.
    pub(crate) fn hook_seconds(&self) -> impl Iterator<Item = Option<u64>> + '_ {
        self.hooks.iter().map(|hook| hook.seconds)
    }
}

/// New ones of these can be made as well by a process that is there.
const BY_ITSELF: u64 = flag(libc::CLONE_NEWNS) | flag(libc::CLONE_NEWUTS);

/// A kind of namespace as clone3(2) takes it.
pub(super) const fn flag(kind: i32) -> u64 {
    kind.cast_unsigned() as u64
}

fn confinement(linux: &Linux) -> Result<Confinement, PlanError> {
    Ok(Confinement {
        filter: linux.seccomp().as_ref().map(Filter::compile).transpose()?,
        personality: linux.personality().as_ref().map(|given| match given.domain() {
            // PER_LINUX and PER_LINUX32 of linux/personality.h.
            LinuxPersonalityDomain::PerLinux => 0,
            LinuxPersonalityDomain::PerLinux32 => 8,
        }),
    })
}

fn namespaces(linux: &Linux) -> Namespaces {
    let mut all = Namespaces::default();
    for namespace in linux.namespaces().iter().flatten() {
        let kind = flag(namespace.typ() as i32);
        match (namespace.typ(), namespace.path().clone()) {
            (LinuxNamespaceType::Cgroup | LinuxNamespaceType::Time, None) => all.late |= kind,
            (_, None) => all.new |= kind,
            (LinuxNamespaceType::Pid, path) => all.pid = path,
            (LinuxNamespaceType::User, path) => all.user = path,
            (_, Some(path)) => all.join.push((kind, path)),
        }
    }
    all
}

fn clocks(linux: &Linux) -> Vec<String> {
    let mut lines: Vec<String> = linux
        .time_offsets()
        .iter()
        .flatten()
        .map(|(clock, offset)| {
            let (seconds, nanoseconds) = (offset.secs().unwrap_or(0), offset.nanosecs().unwrap_or(0));
            format!("{clock} {seconds} {nanoseconds}\n")
        })
        .collect();
    lines.sort();
    lines
}

fn sysctls(linux: &Linux) -> Result<Vec<(PathBuf, String)>, PlanError> {
    let mut all = Vec::new();
    for (key, value) in linux.sysctl().iter().flatten() {
        let name = key.replace('.', "/");
        if name.split('/').any(|part| part.is_empty() || part == "..") {
            return Err(PlanError::Word {
                key: "linux.sysctl",
                value: key.clone(),
                expected: "names joined by dots",
            });
        }
        all.push((Path::new("/proc/sys").join(name), value.clone()));
    }
    all.sort();
    Ok(all)
}

fn root_propagation(linux: &Linux) -> Result<u64, PlanError> {
    match linux
        .rootfs_propagation()
        .as_deref()
        .filter(|word| !word.is_empty())
    {
        None => Ok(0),
        Some(word) => mount_plan::propagation(word).ok_or_else(|| PlanError::Word {
            key: "linux.rootfsPropagation",
            value: word.to_owned(),
            expected: "shared, slave, private or unbindable, or one of them with an r before it",
        }),
    }
}

fn device(device: &LinuxDevice) -> Result<DevicePlan, PlanError> {
    let number = |value: i64| {
        u32::try_from(value).map_err(|_| PlanError::Number {
            path: device.path().clone(),
            value,
        })
    };
    Ok(DevicePlan {
        path: PathBuf::from("/").join(device.path()),
        kind: match device.typ() {
            LinuxDeviceType::B => libc::S_IFBLK,
            LinuxDeviceType::P => libc::S_IFIFO,
            LinuxDeviceType::C | LinuxDeviceType::U | LinuxDeviceType::A => libc::S_IFCHR,
        },
        number: (number(device.major())?, number(device.minor())?),
        mode: device.file_mode().unwrap_or(0o666) & 0o7777,
        owner: (device.uid().unwrap_or(0), device.gid().unwrap_or(0)),
    })
}

fn hook(hook: &Hook) -> HookPlan {
    HookPlan {
        path: hook.path().clone(),
        arguments: hook.args().clone().unwrap_or_default(),
        environment: hook.env().clone().unwrap_or_default(),
        seconds: hook.timeout().and_then(|seconds| u64::try_from(seconds).ok()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn blueprint(linux: serde_json::Value) -> Blueprint {
        let spec = json!({
            "ociVersion": "1.0.2", "root": {"path": "/run/bulkhead/r", "readonly": true}, "hostname": "h",
            "process": {"user": {"uid": 5, "gid": 6}, "cwd": "/", "args": ["sh"]},
            "mounts": [{"destination": "/proc", "type": "proc"}],
            "hooks": {"startContainer": [{"path": "/bin/hook", "args": ["hook", "x"], "timeout": 3}]},
            "linux": linux
        });
        Blueprint {
            id: "c".to_owned(),
            spec: serde_json::from_value(spec).unwrap(),
            users: None,
            no_pivot: false,
            no_new_keyring: false,
            state: "{}".to_owned(),
        }
    }

    #[test]
    fn namespaces_are_sorted_by_who_makes_them() {
        let plan = Plan::of(&blueprint(json!({
            "namespaces": [{"type": "mount"}, {"type": "pid"}, {"type": "cgroup"}, {"type": "time"},
                           {"type": "ipc", "path": "/proc/9/ns/ipc"}],
            "timeOffsets": {"monotonic": {"secs": 100}, "boottime": {"secs": -5, "nanosecs": 7}}
        })))
        .unwrap();
        let own = &plan.namespaces;
        assert_eq!(own.new, flag(libc::CLONE_NEWNS) | flag(libc::CLONE_NEWPID));
        assert_eq!(own.late, flag(libc::CLONE_NEWCGROUP) | 0x80);
        assert_eq!(own.join, [(flag(libc::CLONE_NEWIPC), "/proc/9/ns/ipc".into())]);
        assert_eq!(plan.foreign(), own.new | own.late | flag(libc::CLONE_NEWIPC));
        assert_eq!(plan.clocks, ["boottime -5 7\n", "monotonic 100 0\n"]);
    }

    #[test]
    fn who_waited_becomes_what_needs_nothing_of_it_that_it_cannot_have() {
        let of = |kinds: serde_json::Value| Plan::of(&blueprint(json!({ "namespaces": kinds }))).unwrap();
        let kind = |name: &str| json!({ "type": name });
        let mut plan = of(json!([
            kind("pid"),
            kind("ipc"),
            kind("uts"),
            kind("mount"),
            kind("cgroup")
        ]));
        let foreign = plan.foreign();
        assert!(plan.can_employ());
        plan.employ();
        assert_eq!((plan.namespaces.new, plan.foreign() | KINDS), (0, foreign));
        for other in [
            json!([kind("pid"), kind("uts"), kind("mount")]),
            json!([kind("ipc"), kind("uts"), kind("mount")]),
            json!([kind("pid"), {"type": "ipc", "path": "/proc/9/ns/ipc"}, kind("mount")]),
            json!([{"type": "pid", "path": "/proc/9/ns/pid"}, kind("ipc"), kind("mount")]),
            json!([kind("pid"), kind("ipc"), kind("mount"), kind("user")]),
            json!([kind("pid"), kind("ipc"), kind("mount"), {"type": "user", "path": "/proc/9/ns/user"}]),
        ] {
            assert!(!of(other.clone()).can_employ(), "{other}");
        }
    }

    #[test]
    fn a_plan_survives_its_way_to_the_fork_server() {
        let plan = Plan::of(&blueprint(json!({
            "namespaces": [{"type": "mount"}],
            "devices": [{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o620, "uid": 7}],
            "maskedPaths": ["/proc/kcore"], "rootfsPropagation": "rslave", "sysctl": {"kernel.shmmax": "1"}
        })))
        .unwrap();
        assert!(plan.own_devices && plan.root_read_only);
        assert_eq!((plan.devices[0].mode, plan.devices[0].owner), (0o620, (7, 0)));
        assert_eq!(plan.hook_seconds().collect::<Vec<_>>(), [Some(3)]);
        let text = serde_json::to_vec(&plan).unwrap();
        assert_eq!(serde_json::from_slice::<Plan>(&text).unwrap(), plan);
    }

    #[test]
    fn words_that_mean_nothing_are_named() {
        let word = |linux| Plan::of(&blueprint(linux)).unwrap_err().to_string();
        assert!(word(json!({"rootfsPropagation": "sideways"})).contains("\"sideways\": expected shared"));
        assert!(word(json!({"sysctl": {"kernel/../x": "1"}})).contains("kernel/../x"));
        let device = json!({"devices": [{"path": "/dev/x", "type": "b", "major": -1, "minor": 0}]});
        assert!(word(device).contains("-1"));
    }
}
