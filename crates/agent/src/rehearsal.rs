//! A container that comes and goes before there is any: for a template, whose clones then find done what is done once.
//!
//! ```text
//!  create ─► exec ─► start ─► its end ─► remove ─► a cgroup is set aside for the first container, a process waits in it
//! ```
//! What the kernel makes at first use (slab caches, workers, static keys), what the agent needs once (threads, heap, the
//! device program most containers have) and the pages both touch are in the template's memory from then on. Nothing that
//! a container could see stays but the cgroup, which has no limits, and the process it begins as.
//!
//! Owns: what is rehearsed. Called by `service`.

use crate::cgroup::Cgroup;
use crate::elf;
use crate::guest::{Guest, Spare};
use crate::launch::Refusal;
use crate::paths;
use crate::process::Process;
use crate::uevent;
use bulkhead_model::FailureKind;
use bulkhead_protocol::api::agent::CreateContainerRequest;
use nix::sched::CloneFlags;
use serde_json::json;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Barrier};
use std::time::Duration;

/// There is no other when it is made.
const CONTAINER: &str = "rehearsal";

/// Of a cgroup that is set aside; no id of a container has such a sign.
const SPARE: &str = "@first";

/// For a program that ends at once.
const DEADLINE: Duration = Duration::from_secs(60);

/// Below [`paths::BASE`], where a sandbox's files and its shared memory are mounted, as a rule: elsewhere they are as well.
const MOUNT_POINTS: [&str; 2] = ["share", "shm"];

/// Threads that calls run on, with the rehearsal's own: as many as a start may have at work.
const THREADS: usize = 3;

/// Modules that containers ask for.
const MODULES: [&str; 2] = ["virtiofs", "virtio_net"];

/// Exits with 0: `xor edi, edi; mov eax, SYS_exit; syscall`.
const CODE: [u8; 9] = [0x31, 0xff, 0xb8, 60, 0, 0, 0, 0x0f, 0x05];

fn process() -> serde_json::Value {
    let capabilities = json!(["CAP_KILL", "CAP_NET_BIND_SERVICE"]);
    json!({
        "user": {"uid": 0, "gid": 0, "additionalGids": [0]},
        "args": ["/exit"],
        "env": ["PATH=/"],
        "cwd": "/",
        "capabilities": {"bounding": capabilities, "effective": capabilities, "permitted": capabilities},
        "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 1024, "soft": 1024}],
        "noNewPrivileges": true
    })
}

/// What engines put into the specification of an ordinary container.
fn spec() -> serde_json::Value {
    let kinds = ["pid", "ipc", "uts", "mount", "cgroup"];
    let namespaces: Vec<_> = kinds.iter().map(|kind| json!({"type": kind})).collect();
    let mount = |kind: &str, at: &str, options: &[&str]| json!({"destination": at, "type": kind, "source": kind, "options": options});
    let plain = ["nosuid", "noexec", "nodev"];
    json!({
        "ociVersion": "1.0.2",
        "process": process(),
        "root": {"path": "rootfs"},
        "hostname": CONTAINER,
        "mounts": [
            mount("proc", "/proc", &plain),
            mount("tmpfs", "/dev", &["nosuid", "strictatime", "mode=755", "size=65536k"]),
            mount("devpts", "/dev/pts", &["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]),
            mount("tmpfs", "/dev/shm", &["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]),
            mount("mqueue", "/dev/mqueue", &plain),
            mount("sysfs", "/sys", &["nosuid", "noexec", "nodev", "ro"]),
            mount("cgroup2", "/sys/fs/cgroup", &["nosuid", "noexec", "nodev", "ro"]),
        ],
        "linux": {
            "namespaces": namespaces,
            "resources": {"cpu": {"shares": 1024}, "pids": {"limit": 1024}},
            "maskedPaths": ["/proc/kcore", "/sys/firmware"],
            "readonlyPaths": ["/proc/sys"]
        }
    })
}

fn internal(what: &str) -> impl FnOnce(std::io::Error) -> Refusal + '_ {
    move |error| Refusal::internal(what, &error)
}

/// Rehearses. Blocks; for a guest that has no container.
///
/// # Errors
/// [`Refusal`] of the step that failed. Nothing is left then either.
pub(crate) fn rehearse(guest: &Guest) -> Result<(), Refusal> {
    let directory = Path::new(paths::BASE).join(CONTAINER);
    let result = furnish(&directory).and_then(|rootfs| perform(guest, &rootfs));
    let removed = guest.remove(CONTAINER);
    // In the way of nothing.
    let _ = fs::remove_dir_all(&directory);
    result.and(removed)?;
    for module in MODULES {
        // What a kernel does not have is asked for again by those who need it.
        let _ = guest.services.modules.load_if_there(module);
    }
    prepare().map_err(internal("preparing for the first mounts"))?;
    set_aside(guest)
}

/// What a clone would have to make before its first container.
fn prepare() -> std::io::Result<()> {
    // A call may come before the thread of the last one is back.
    let all_there = Arc::new(Barrier::new(THREADS));
    for _ in 1..THREADS {
        let there = all_there.clone();
        tokio::task::spawn_blocking(move || there.wait());
    }
    all_there.wait();
    uevent::prepare()?;
    // The end of a network namespace is a matter of a queue that keeps order. These share their workers, and the kernel
    // makes a second one with their first work; the next is the plugging of a clone's share.
    // A kernel without network namespaces does without.
    let _ = std::thread::spawn(|| nix::sched::unshare(CloneFlags::CLONE_NEWNET)).join();
    MOUNT_POINTS
        .iter()
        .try_for_each(|name| fs::create_dir_all(Path::new(paths::BASE).join(name)))
}

fn furnish(directory: &Path) -> Result<PathBuf, Refusal> {
    let rootfs = directory.join("rootfs");
    elf::write(&rootfs.join("exit"), &CODE).map_err(internal("writing a program"))?;
    Ok(rootfs)
}

fn perform(guest: &Guest, rootfs: &Path) -> Result<(), Refusal> {
    let services = &guest.services;
    guest.create(&CreateContainerRequest {
        container: CONTAINER.to_owned(),
        spec: spec().to_string().into_bytes(),
        rootfs: rootfs.display().to_string(),
        seccomp: true,
        bundle: "/".to_owned(),
        ..CreateContainerRequest::default()
    })?;
    let container = guest.container(CONTAINER)?;
    container.exec(
        services,
        "exec",
        process().to_string().as_bytes(),
        &bulkhead_protocol::api::agent::Stdio::default(),
    )?;
    ended(container.process("exec")?.as_ref())?;
    container.forget(services, "exec")?;
    container.start(services)?;
    ended(container.init())
}

/// Waits for its end.
fn ended(process: &Process) -> Result<(), Refusal> {
    let mut exit = process.exit();
    let waiting = async move {
        let ended = tokio::time::timeout(DEADLINE, exit.wait_for(Option::is_some)).await;
        ended.is_ok_and(|told| told.is_ok())
    };
    if tokio::runtime::Handle::current().block_on(waiting) {
        return Ok(());
    }
    Err(Refusal {
        kind: FailureKind::DeadlineExceeded,
        message: format!(
            "a program that exits at once did not within {} s",
            DEADLINE.as_secs()
        ),
    })
}

fn set_aside(guest: &Guest) -> Result<(), Refusal> {
    let services = &guest.services;
    let refused = |error| Refusal::internal("setting a cgroup aside", &error);
    let cgroup = Arc::new(Cgroup::create(SPARE).map_err(refused)?);
    cgroup
        .restrict_devices(&[], &[], services.port_major, &services.programs)
        .map_err(refused)?;
    // A kernel that does not account memory has no such events.
    let _ = services.oom.add(SPARE, &cgroup);
    let reserve = services.engine.reserve(cgroup.path());
    let reserve = reserve
        .map_err(|refusal| services.events.log("warn", refusal.message))
        .ok();
    services.keep_spare(Spare { cgroup, reserve });
    Ok(())
}
