//! A busybox bundle: the smallest container there is.

use crate::error::TaskError;
use serde_json::{Value, json};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

/// Where Debian's busybox-static puts it.
const BUSYBOX: &str = "/bin/busybox";

/// Commands linked to busybox in the bundle.
const APPLETS: &[&str] = &[
    "sh", "cat", "echo", "ls", "true", "uname", "hostname", "id", "ps", "sleep",
];

/// Makes the bundle at `dir`, in place of whatever is there.
pub(crate) fn make(dir: &Path, arguments: &[&str]) -> Result<PathBuf, TaskError> {
    let failed = |path: &Path| {
        let path = path.to_owned();
        move |e| TaskError::io(&path, e)
    };
    match std::fs::remove_dir_all(dir) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(TaskError::io(dir, e)),
        _ => {}
    }
    let rootfs = dir.join("rootfs");
    for below in ["bin", "proc", "sys", "dev", "tmp", "etc"] {
        let path = rootfs.join(below);
        std::fs::create_dir_all(&path).map_err(failed(&path))?;
    }
    let busybox = rootfs.join("bin/busybox");
    std::fs::copy(BUSYBOX, &busybox).map_err(failed(Path::new(BUSYBOX)))?;
    for applet in APPLETS {
        let link = rootfs.join("bin").join(applet);
        symlink("busybox", &link).map_err(failed(&link))?;
    }
    let config = dir.join("config.json");
    std::fs::write(&config, spec(arguments).to_string()).map_err(failed(&config))?;
    Ok(dir.to_owned())
}

fn spec(arguments: &[&str]) -> Value {
    let capabilities = json!(["CAP_AUDIT_WRITE", "CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "ociVersion": "1.0.2",
        "process": {
            "terminal": false,
            "user": {"uid": 0, "gid": 0},
            "args": arguments,
            "env": ["PATH=/bin"],
            "cwd": "/",
            "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
            "noNewPrivileges": true
        },
        "root": {"path": "rootfs", "readonly": true},
        "hostname": "demo",
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs",
             "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs",
             "options": ["nosuid", "noexec", "nodev", "ro"]}
        ],
        "linux": {
            "namespaces": [
                {"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}
            ]
        }
    })
}
