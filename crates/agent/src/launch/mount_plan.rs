//! What is mounted into a container, worked out before its process exists (runtime-spec "Mounts", mount(8)).
//!
//! Owns: the table of mount options. Never: a system call (see `root`).

use crate::sys::mounts as attribute;
use bulkhead_model::oci::Mount;
use nix::mount::MsFlags;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// What is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Source {
    /// A file or directory of the guest.
    Bind {
        /// Absolute.
        path: PathBuf,
        /// With what is mounted below it.
        recursive: bool,
    },
    /// A file system of its own.
    New {
        /// Its type.
        kind: String,
        /// What it is called in mountinfo, or its device.
        source: String,
        /// `MS_*`.
        flags: u64,
        /// Its own options.
        data: String,
    },
}

/// Attributes to be changed (`MOUNT_ATTR_*`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Change {
    /// To be set.
    pub(super) set: u64,
    /// To be cleared.
    pub(super) clear: u64,
}

impl Change {
    /// `lift`: what is switched off is taken from a source that has it.
    fn apply(&mut self, bits: u64, on: bool, lift: bool) {
        // Access time is one value in several bits: it is always cleared first.
        let time = bits & attribute::ATIME != 0;
        let mask = if time { bits | attribute::ATIME } else { bits };
        self.set &= !mask;
        if on {
            self.set |= bits;
        }
        if lift || time {
            self.clear |= mask;
        }
    }
}

/// One mount.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct MountPlan {
    /// What.
    pub(super) source: Source,
    /// Where, in the container.
    pub(super) target: PathBuf,
    /// On the mount itself. A new file system has it in its flags already.
    pub(super) change: Change,
    /// On all mounts below it too.
    pub(super) change_all: Change,
    /// `MS_SHARED` and its kin; 0 leaves it private.
    pub(super) propagation: u64,
    /// For what is below too.
    pub(super) propagate_all: bool,
    /// A tmpfs that begins with what the image has there.
    pub(super) copy_up: bool,
    /// Read-only once everything is in it.
    pub(super) seal: bool,
}

/// A mount that cannot be had.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum MountPlanError {
    /// Ids that are to be translated.
    #[error("mount {target:?}: id-mapped mounts are not supported: the host serves the files")]
    Mapped {
        /// Its destination.
        target: PathBuf,
    },
}

/// What an option does.
#[derive(Clone, Copy)]
enum Effect {
    /// An attribute of a mount, `MOUNT_ATTR_*`, also as `MS_*`, switched on or off.
    Attribute(u64, MsFlags, bool),
    /// The same on everything below.
    Recursive(u64, bool),
    /// A flag of a file system.
    Flag(MsFlags, bool),
    /// Propagation, and whether of all below.
    Propagation(MsFlags, bool),
    /// A bind, and whether of all below.
    Bind(bool),
    CopyUp,
    Mapped,
    /// What is so anyway.
    Nothing,
}

fn effect(option: &str) -> Option<Effect> {
    use Effect::{Attribute, Bind, CopyUp, Flag, Mapped, Nothing, Propagation, Recursive};
    Some(match option {
        "ro" => Attribute(attribute::READ_ONLY, MsFlags::MS_RDONLY, true),
        "rw" => Attribute(attribute::READ_ONLY, MsFlags::MS_RDONLY, false),
        "nosuid" => Attribute(attribute::NO_SUID, MsFlags::MS_NOSUID, true),
        "suid" => Attribute(attribute::NO_SUID, MsFlags::MS_NOSUID, false),
        "nodev" => Attribute(attribute::NO_DEV, MsFlags::MS_NODEV, true),
        "dev" => Attribute(attribute::NO_DEV, MsFlags::MS_NODEV, false),
        "noexec" => Attribute(attribute::NO_EXEC, MsFlags::MS_NOEXEC, true),
        "exec" => Attribute(attribute::NO_EXEC, MsFlags::MS_NOEXEC, false),
        "noatime" => Attribute(attribute::NO_ATIME, MsFlags::MS_NOATIME, true),
        "atime" => Attribute(attribute::NO_ATIME, MsFlags::MS_NOATIME, false),
        "strictatime" => Attribute(attribute::STRICT_ATIME, MsFlags::MS_STRICTATIME, true),
        "nostrictatime" => Attribute(attribute::STRICT_ATIME, MsFlags::MS_STRICTATIME, false),
        "nodiratime" => Attribute(attribute::NO_DIR_ATIME, MsFlags::MS_NODIRATIME, true),
        "diratime" => Attribute(attribute::NO_DIR_ATIME, MsFlags::MS_NODIRATIME, false),
        // mount(2) has a flag for it that nix does not name.
        "nosymfollow" => Attribute(attribute::NO_SYMFOLLOW, MsFlags::from_bits_retain(256), true),
        "symfollow" => Attribute(attribute::NO_SYMFOLLOW, MsFlags::from_bits_retain(256), false),
        "rro" => Recursive(attribute::READ_ONLY, true),
        "rrw" => Recursive(attribute::READ_ONLY, false),
        "rnosuid" => Recursive(attribute::NO_SUID, true),
        "rsuid" => Recursive(attribute::NO_SUID, false),
        "rnodev" => Recursive(attribute::NO_DEV, true),
        "rdev" => Recursive(attribute::NO_DEV, false),
        "rnoexec" => Recursive(attribute::NO_EXEC, true),
        "rexec" => Recursive(attribute::NO_EXEC, false),
        "rnoatime" => Recursive(attribute::NO_ATIME, true),
        "ratime" => Recursive(attribute::NO_ATIME, false),
        "rstrictatime" => Recursive(attribute::STRICT_ATIME, true),
        "rnostrictatime" => Recursive(attribute::STRICT_ATIME, false),
        "rnodiratime" => Recursive(attribute::NO_DIR_ATIME, true),
        "rdiratime" => Recursive(attribute::NO_DIR_ATIME, false),
        "rnosymfollow" => Recursive(attribute::NO_SYMFOLLOW, true),
        "rsymfollow" => Recursive(attribute::NO_SYMFOLLOW, false),
        "sync" => Flag(MsFlags::MS_SYNCHRONOUS, true),
        "async" => Flag(MsFlags::MS_SYNCHRONOUS, false),
        "dirsync" => Flag(MsFlags::MS_DIRSYNC, true),
        "lazytime" => Flag(MsFlags::MS_LAZYTIME, true),
        "nolazytime" => Flag(MsFlags::MS_LAZYTIME, false),
        "iversion" => Flag(MsFlags::MS_I_VERSION, true),
        "noiversion" => Flag(MsFlags::MS_I_VERSION, false),
        "mand" => Flag(MsFlags::MS_MANDLOCK, true),
        "nomand" => Flag(MsFlags::MS_MANDLOCK, false),
        "silent" => Flag(MsFlags::MS_SILENT, true),
        "loud" => Flag(MsFlags::MS_SILENT, false),
        "private" => Propagation(MsFlags::MS_PRIVATE, false),
        "rprivate" => Propagation(MsFlags::MS_PRIVATE, true),
        "shared" => Propagation(MsFlags::MS_SHARED, false),
        "rshared" => Propagation(MsFlags::MS_SHARED, true),
        "slave" => Propagation(MsFlags::MS_SLAVE, false),
        "rslave" => Propagation(MsFlags::MS_SLAVE, true),
        "unbindable" => Propagation(MsFlags::MS_UNBINDABLE, false),
        "runbindable" => Propagation(MsFlags::MS_UNBINDABLE, true),
        "bind" => Bind(false),
        "rbind" => Bind(true),
        "tmpcopyup" => CopyUp,
        "idmap" | "ridmap" => Mapped,
        // relatime is the kernel's default, the rest names what an engine would do by itself.
        "defaults" | "relatime" | "norelatime" | "rrelatime" | "rnorelatime" | "remount" | "acl"
        | "noacl" | "nofail" => Nothing,
        _ => return None,
    })
}

/// The propagation of a word of the spec, `MS_*` with `MS_REC`; `None` for a word that is none.
pub(super) fn propagation(word: &str) -> Option<u64> {
    match effect(word) {
        Some(Effect::Propagation(flag, all)) => {
            let all = if all { MsFlags::MS_REC } else { MsFlags::empty() };
            Some((flag | all).bits())
        }
        _ => None,
    }
}

impl MountPlan {
    /// From the spec.
    pub(super) fn of(mount: &Mount) -> Result<Self, MountPlanError> {
        let target = PathBuf::from("/").join(mount.destination());
        let mapped = || MountPlanError::Mapped {
            target: target.clone(),
        };
        let has = |list: &Option<Vec<_>>| list.as_ref().is_some_and(|list| !list.is_empty());
        if has(mount.uid_mappings()) || has(mount.gid_mappings()) {
            return Err(mapped());
        }
        let mut flags = MsFlags::empty();
        let mut bind = None;
        let mut data: Vec<&str> = Vec::new();
        let mut plan = Self {
            source: Source::Bind {
                path: PathBuf::new(),
                recursive: false,
            },
            target: target.clone(),
            change: Change::default(),
            change_all: Change::default(),
            propagation: 0,
            propagate_all: false,
            copy_up: false,
            seal: false,
        };
        for option in mount.options().iter().flatten() {
            match effect(option) {
                Some(Effect::Attribute(bits, flag, on)) => {
                    // A volume that came read-only to the guest stays so, whatever the bundle says about its copy.
                    plan.change.apply(bits, on, false);
                    flags.set(flag, on);
                }
                Some(Effect::Recursive(bits, on)) => plan.change_all.apply(bits, on, true),
                Some(Effect::Flag(flag, on)) => flags.set(flag, on),
                Some(Effect::Propagation(flag, all)) => {
                    // Everything of the guest is private, and so are its copies.
                    let flag = if flag == MsFlags::MS_PRIVATE {
                        MsFlags::empty()
                    } else {
                        flag
                    };
                    (plan.propagation, plan.propagate_all) = (flag.bits(), all);
                }
                Some(Effect::Bind(all)) => bind = Some(bind.unwrap_or(false) || all),
                Some(Effect::CopyUp) => plan.copy_up = true,
                Some(Effect::Mapped) => return Err(mapped()),
                Some(Effect::Nothing) => {}
                None => data.push(option),
            }
        }
        let kind = mount.typ().clone().unwrap_or_default();
        let recursive = bind.or((kind == "bind").then_some(false));
        let source = mount.source().clone().unwrap_or_default();
        if let Some(recursive) = recursive {
            plan.source = Source::Bind {
                path: source,
                recursive,
            };
            return Ok(plan);
        }
        if kind == "tmpfs" && flags.contains(MsFlags::MS_RDONLY) {
            flags.remove(MsFlags::MS_RDONLY);
            plan.change.set &= !attribute::READ_ONLY;
            plan.seal = true;
        }
        // The guest has only the second version, whatever the host has.
        let kind = if kind == "cgroup" {
            "cgroup2".to_owned()
        } else {
            kind
        };
        if kind == "cgroup2" {
            data.clear();
        }
        plan.source = Source::New {
            source: if source.as_os_str().is_empty() {
                kind.clone()
            } else {
                source.to_string_lossy().into_owned()
            },
            kind,
            flags: flags.bits(),
            data: data.join(","),
        };
        Ok(plan)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn plan(mount: serde_json::Value) -> Result<MountPlan, MountPlanError> {
        MountPlan::of(&serde_json::from_value(mount).unwrap())
    }

    #[test]
    fn options_become_flags_and_data() {
        let tmpfs = plan(json!({"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
            "options": ["nosuid", "strictatime", "mode=755", "size=65536k", "ro"]}))
        .unwrap();
        let flags = MsFlags::MS_NOSUID | MsFlags::MS_STRICTATIME;
        assert_eq!(
            tmpfs.source,
            Source::New {
                kind: "tmpfs".to_owned(),
                source: "tmpfs".to_owned(),
                flags: flags.bits(),
                data: "mode=755,size=65536k".to_owned()
            }
        );
        assert!(tmpfs.seal, "its devices are made first");
        let cgroup =
            plan(json!({"destination": "sys/fs/cgroup", "type": "cgroup", "options": ["ro", "nsdelegate"]}))
                .unwrap();
        assert_eq!(cgroup.target, PathBuf::from("/sys/fs/cgroup"));
        assert!(
            matches!(&cgroup.source, Source::New { kind, data, .. } if kind == "cgroup2" && data.is_empty())
        );
    }

    #[test]
    fn a_bind_changes_what_is_named_and_nothing_else() {
        let bind = plan(
            json!({"destination": "/d", "type": "bind", "source": "/run/bulkhead/s",
            "options": ["rbind", "rprivate", "ro", "noatime", "dev", "rnosuid"]}),
        )
        .unwrap();
        assert_eq!(
            bind.source,
            Source::Bind {
                path: "/run/bulkhead/s".into(),
                recursive: true
            }
        );
        assert_eq!(bind.change.set, attribute::READ_ONLY | attribute::NO_ATIME);
        assert_eq!(bind.change.clear, attribute::ATIME);
        assert_eq!(bind.change_all.set, attribute::NO_SUID);
        assert_eq!(bind.propagation, 0);
        let shared = plan(json!({"destination": "/d", "type": "none", "source": "/run/bulkhead/s", "options": ["bind", "rshared"]})).unwrap();
        assert_eq!(shared.propagation, MsFlags::MS_SHARED.bits());
        assert!(shared.propagate_all);
    }

    #[test]
    fn the_last_of_two_opposites_holds() {
        let bind = plan(
            json!({"destination": "/d", "type": "bind", "source": "/run/bulkhead/s", "options": ["ro", "rw"]}),
        )
        .unwrap();
        assert_eq!(bind.change, Change::default());
    }

    #[test]
    fn ids_are_not_translated() {
        let mapped = plan(
            json!({"destination": "/d", "type": "bind", "source": "/run/bulkhead/s", "options": ["bind", "idmap"]}),
        );
        assert_eq!(mapped, Err(MountPlanError::Mapped { target: "/d".into() }));
        assert_eq!(
            propagation("rslave"),
            Some((MsFlags::MS_SLAVE | MsFlags::MS_REC).bits())
        );
        assert_eq!(propagation("ro"), None);
    }
}
