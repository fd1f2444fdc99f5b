//! Images made on the spot: busybox, and one for the own container of a pod.
//!
//! Owns: the archive `ctr image import` takes. Never: a registry.

use sha2::{Digest, Sha256};
use std::io::Write;
use std::path::Path;
use std::process::Command;

/// Name of the busybox image.
pub const BUSYBOX: &str = "docker.io/library/busybox:test";

/// Name of the image for a pod's own container.
pub const PAUSE: &str = "registry.k8s.io/pause:test";

/// Where Debian's busybox-static puts it.
const PROGRAM: &str = "/bin/busybox";

/// Writes the archive of the busybox image.
pub(crate) fn busybox(to: &Path) {
    let program = std::fs::read(PROGRAM).expect("busybox-static is installed");
    let applets = Command::new(PROGRAM).arg("--list").output().unwrap().stdout;
    let applets = String::from_utf8(applets).unwrap();
    let mut layer = tar::Builder::new(Vec::new());
    for directory in ["bin", "dev", "etc", "proc", "root", "run", "sys", "tmp", "var"] {
        entry(&mut layer, directory, tar::EntryType::Directory, 0o755, &[]);
    }
    entry(
        &mut layer,
        "bin/busybox",
        tar::EntryType::Regular,
        0o755,
        &program,
    );
    for applet in applets.lines().filter(|name| *name != "busybox") {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        layer
            .append_link(&mut header, format!("bin/{applet}"), "busybox")
            .unwrap();
    }
    let passwd = b"root:x:0:0:root:/root:/bin/sh\nuser:x:1000:1000::/tmp:/bin/sh\n";
    entry(&mut layer, "etc/passwd", tar::EntryType::Regular, 0o644, passwd);
    entry(
        &mut layer,
        "etc/group",
        tar::EntryType::Regular,
        0o644,
        b"root:x:0:\nuser:x:1000:\n",
    );
    archive(to, BUSYBOX, &["/bin/sh"], layer.into_inner().unwrap());
}

/// Writes the archive of the pause image.
pub(crate) fn pause(to: &Path) {
    let program = std::fs::read(PROGRAM).expect("busybox-static is installed");
    let mut layer = tar::Builder::new(Vec::new());
    entry(&mut layer, "busybox", tar::EntryType::Regular, 0o755, &program);
    archive(
        to,
        PAUSE,
        &["/busybox", "sleep", "1000000"],
        layer.into_inner().unwrap(),
    );
}

fn entry<W: Write>(tar: &mut tar::Builder<W>, path: &str, kind: tar::EntryType, mode: u32, content: &[u8]) {
    let mut header = tar::Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(mode);
    header.set_size(content.len() as u64);
    tar.append_data(&mut header, path, content).unwrap();
}

fn archive(to: &Path, name: &str, command: &[&str], layer: Vec<u8>) {
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux",
        "config": { "Cmd": command, "Env": ["PATH=/bin"] },
        "rootfs": { "type": "layers", "diff_ids": [format!("sha256:{}", hex(&layer))] },
    });
    let config = serde_json::to_vec(&config).unwrap();
    let config_name = format!("{}.json", hex(&config));
    let manifest = serde_json::json!([{
        "Config": config_name, "RepoTags": [name], "Layers": ["layer.tar"],
    }]);
    let mut tar = tar::Builder::new(std::fs::File::create(to).unwrap());
    let manifest = serde_json::to_vec(&manifest).unwrap();
    let files = [
        ("layer.tar", &layer),
        (config_name.as_str(), &config),
        ("manifest.json", &manifest),
    ];
    for (path, content) in files {
        entry(&mut tar, path, tar::EntryType::Regular, 0o644, content);
    }
    tar.finish().unwrap();
}

fn hex(bytes: &[u8]) -> String {
    Sha256::digest(bytes)
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect()
}
