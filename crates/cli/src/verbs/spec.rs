//! `spec`: writes a config.json to start from.

use super::Outcome;
use crate::context::Context;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_shim::oci_state::OCI_VERSION;
use clap::Args;
use serde::Serialize;
use serde_json::{Value, json};
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::path::PathBuf;

/// Options of `spec`.
#[derive(Debug, Args)]
pub(crate) struct Spec {
    /// Directory to write config.json into
    #[arg(
        long,
        short,
        value_name = "DIR",
        default_value = ".",
        hide_default_value = true
    )]
    pub(crate) bundle: PathBuf,
    /// Write one for a user without root's rights
    #[arg(long)]
    pub(crate) rootless: bool,
}

impl Spec {
    /// Runs the verb.
    ///
    /// # Errors
    /// A config.json that is there already, a directory that is not.
    pub(crate) fn run(self, _: &Context) -> Outcome {
        let path = self.bundle.join("config.json");
        let fail = |e: io::Error| {
            let why = match e.kind() {
                io::ErrorKind::AlreadyExists => {
                    format!("File {} exists. Remove it first", path.display())
                }
                _ => format!("writing {}: {e}", path.display()),
            };
            Failure::new(FailureKind::InvalidArgument, why)
        };
        let rootless = self
            .rootless
            .then(|| (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw()));
        let text = indented(&document(rootless)).map_err(fail)?;
        OpenOptions::new()
            .write(true)
            .create_new(true)
            .open(&path)
            .and_then(|mut file| file.write_all(&text))
            .map_err(fail)?;
        Ok(0)
    }
}

/// With tabs, as runc writes it.
fn indented(value: &Value) -> io::Result<Vec<u8>> {
    let mut text = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b"\t");
    value.serialize(&mut serde_json::Serializer::with_formatter(&mut text, formatter))?;
    text.push(b'\n');
    Ok(text)
}

/// `rootless`: the user and group that become root inside.
fn document(rootless: Option<(u32, u32)>) -> Value {
    const KEPT: [&str; 3] = ["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"];
    json!({
        "ociVersion": OCI_VERSION,
        "process": {
            "terminal": true,
            "user": {"uid": 0, "gid": 0},
            "args": ["sh"],
            "env": [
                "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
                "TERM=xterm",
            ],
            "cwd": "/",
            "capabilities": {"bounding": KEPT, "effective": KEPT, "permitted": KEPT, "ambient": KEPT},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
            "noNewPrivileges": true,
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "bulkhead",
        "mounts": mounts(rootless.is_some()),
        "linux": linux(rootless),
    })
}

fn mounts(rootless: bool) -> Value {
    let mount = |destination: &str, kind: &str, source: &str, options: &[&str]| {
        let mut mount = json!({"destination": destination, "type": kind, "source": source});
        if let (Some(members), false) = (mount.as_object_mut(), options.is_empty()) {
            members.insert("options".to_owned(), json!(options));
        }
        mount
    };
    let mut pts = vec!["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620"];
    if !rootless {
        pts.push("gid=5");
    }
    let sys = if rootless {
        mount(
            "/sys",
            "none",
            "/sys",
            &["rbind", "nosuid", "noexec", "nodev", "ro"],
        )
    } else {
        mount("/sys", "sysfs", "sysfs", &["nosuid", "noexec", "nodev", "ro"])
    };
    json!([
        mount("/proc", "proc", "proc", &[]),
        mount(
            "/dev",
            "tmpfs",
            "tmpfs",
            &["nosuid", "strictatime", "mode=755", "size=65536k"]
        ),
        mount("/dev/pts", "devpts", "devpts", &pts),
        mount(
            "/dev/shm",
            "tmpfs",
            "shm",
            &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]
        ),
        mount("/dev/mqueue", "mqueue", "mqueue", &["nosuid", "noexec", "nodev"]),
        sys,
        mount(
            "/sys/fs/cgroup",
            "cgroup",
            "cgroup",
            &["nosuid", "noexec", "nodev", "relatime", "ro"]
        ),
    ])
}

fn linux(rootless: Option<(u32, u32)>) -> Value {
    let mut linux = json!({
        "maskedPaths": [
            "/proc/acpi", "/proc/asound", "/proc/kcore", "/proc/keys", "/proc/latency_stats",
            "/proc/timer_list", "/proc/timer_stats", "/proc/sched_debug", "/sys/firmware", "/proc/scsi",
        ],
        "readonlyPaths": [
            "/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger",
        ],
    });
    let Some(members) = linux.as_object_mut() else {
        return linux;
    };
    let mut namespaces = vec!["pid", "ipc", "uts", "mount"];
    match rootless {
        None => {
            namespaces.insert(1, "network");
            let resources = json!({"devices": [{"allow": false, "access": "rwm"}]});
            members.insert("resources".to_owned(), resources);
        }
        Some((uid, gid)) => {
            namespaces.push("user");
            let mapping = |id: u32| json!([{"containerID": 0, "hostID": id, "size": 1}]);
            members.insert("uidMappings".to_owned(), mapping(uid));
            members.insert("gidMappings".to_owned(), mapping(gid));
        }
    }
    let namespaces: Value = namespaces.iter().map(|kind| json!({"type": kind})).collect();
    members.insert("namespaces".to_owned(), namespaces);
    linux
}

#[cfg(test)]
mod tests {
    use super::*;
    use bulkhead_model::oci;

    #[test]
    fn what_is_written_can_be_run() {
        for rootless in [None, Some((1000, 1000))] {
            let spec: oci::Spec = serde_json::from_value(document(rootless)).unwrap();
            assert_eq!(spec.process().as_ref().unwrap().args().as_ref().unwrap(), &["sh"]);
            let user = spec.linux().as_ref().unwrap().uid_mappings().is_some();
            assert_eq!(user, rootless.is_some());
        }
    }

    #[test]
    fn a_file_that_is_there_is_not_overwritten() {
        let dir = tempfile::tempdir().unwrap();
        let context = Context {
            layout: bulkhead_sandbox::Layout::new(dir.path()),
            config: None,
            systemd_cgroup: false,
            report: crate::report::Report::default(),
            watch: crate::stopwatch::Stopwatch::default(),
        };
        let write = || {
            Spec {
                bundle: dir.path().to_owned(),
                rootless: false,
            }
            .run(&context)
        };
        assert_eq!(write().unwrap(), 0);
        let failure = write().unwrap_err();
        assert!(failure.message.contains("exists. Remove it first"), "{failure}");
    }
}
