//! What a test may not leave behind.
//!
//! Tests run beside each other, so everything is looked for by the test's token (in paths, ids and the
//! environment of its processes) or by the marker of one of its sandboxes.
//!
//! | kind | where |
//! | --- | --- |
//! | processes | `/proc/*/environ`, `/proc/*/cmdline` |
//! | mounts | `/proc/self/mountinfo` |
//! | cgroups | every hierarchy below `/sys/fs/cgroup` |
//! | files | state root, `/run/bulkhead/s`, `/dev/shm` |
//! | network links | `/sys/class/net`, compared with before |

use bulkhead_host::process::{start_time, wait_gone};
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A process that was told to end is given this long: its exit is under way when the verb returns.
const LAST_BREATH: Duration = Duration::from_secs(10);

/// The state of the machine before a test.
#[derive(Debug)]
pub struct Audit {
    links: BTreeSet<String>,
}

impl Audit {
    /// Looks around.
    #[must_use]
    pub fn before() -> Self {
        Self { links: links() }
    }

    /// Everything left of a test: one line each.
    #[must_use]
    pub fn leaks(&self, token: &str, markers: &[String], root: &Path) -> Vec<String> {
        let names: Vec<&str> = std::iter::once(token)
            .chain(markers.iter().map(String::as_str))
            .collect();
        let mut leaks = processes(&names);
        leaks.extend(mounts(&names));
        leaks.extend(cgroups(&names));
        leaks.extend(files(&names, root));
        leaks.extend(
            links()
                .difference(&self.links)
                .map(|name| format!("network link {name}")),
        );
        leaks
    }
}

fn is_named(text: &[u8], names: &[&str]) -> bool {
    names
        .iter()
        .any(|name| text.windows(name.len()).any(|window| window == name.as_bytes()))
}

/// Processes of the test that have not ended and do not end now.
pub(crate) fn processes(names: &[&str]) -> Vec<String> {
    let mut leaks = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|n| n.parse::<i32>().ok()) else {
            continue;
        };
        if pid == i32::try_from(std::process::id()).unwrap() {
            continue;
        }
        let Ok(Some(started)) = start_time(pid) else {
            continue;
        };
        let read = |name: &str| std::fs::read(entry.path().join(name)).unwrap_or_default();
        let command = read("cmdline");
        if !is_named(&read("environ"), names) && !is_named(&command, names) {
            continue;
        }
        if wait_gone(pid, started, LAST_BREATH).unwrap_or(false) {
            continue;
        }
        let shown = String::from_utf8_lossy(&command).replace('\0', " ");
        leaks.push(format!(
            "process {pid}: {}",
            shown.chars().take(200).collect::<String>()
        ));
    }
    leaks
}

fn mounts(names: &[&str]) -> Vec<String> {
    let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    table
        .lines()
        .filter(|line| is_named(line.as_bytes(), names))
        .map(|line| format!("mount {line}"))
        .collect()
}

fn cgroups(names: &[&str]) -> Vec<String> {
    let mut found = Vec::new();
    let mut open = vec![PathBuf::from("/sys/fs/cgroup")];
    while let Some(dir) = open.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            // A hierarchy may be linked under a second name.
            if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                if is_named(entry.file_name().as_encoded_bytes(), names) {
                    found.push(format!("cgroup {}", entry.path().display()));
                }
                open.push(entry.path());
            }
        }
    }
    found
}

fn files(names: &[&str], root: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for dir in [
        "/run/bulkhead/s",
        "/run/bulkhead",
        "/dev/shm",
        "/tmp",
        "/var/lib/bulkhead",
    ] {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            // The test's own directory is there until the test is over.
            if is_named(entry.file_name().as_encoded_bytes(), names) && !root.starts_with(entry.path()) {
                found.push(format!("file {}", entry.path().display()));
            }
        }
    }
    for below in ["sandboxes", "containers"] {
        for entry in std::fs::read_dir(root.join(below))
            .into_iter()
            .flatten()
            .flatten()
        {
            found.push(format!("state {}", entry.path().display()));
        }
    }
    found
}

fn links() -> BTreeSet<String> {
    std::fs::read_dir("/sys/class/net")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}
