//! vCPUs and memory of the VM follow its containers (C-20, C-24).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::mounts::{in_pod, inside};
use crate::options::with_cgroup;
use bulkhead_e2e::{Bundle, Lab};
use serde_json::json;

fn limited(bundle: Bundle, quota: i64, bytes: i64) -> Bundle {
    bundle.script("exec sleep 600").with(|config| {
        config["linux"]["resources"] = json!({
            "cpu": {"quota": quota, "period": 100_000}, "memory": {"limit": bytes}
        });
    })
}

/// MemTotal in MiB.
fn memory(lab: &Lab, id: &str) -> u64 {
    let kib = inside(lab, id, "awk '/MemTotal/ {print $2}' /proc/meminfo");
    kib.parse::<u64>().unwrap() / 1024
}

fn cpus(lab: &Lab, id: &str) -> String {
    inside(lab, id, "nproc")
}

/// C-24: a further container of a pod brings its vCPUs and memory along; its vCPUs go with it, and the next
/// container has them again.
#[test]
#[ignore = "needs a VM"]
fn c24_a_container_brings_its_share_along() {
    let lab = Lab::new();
    let (pod, second) = (lab.id(), lab.id());
    let bundle = lab.bundle().script("exec sleep 600");
    lab.run_detached(&in_pod(bundle, "sandbox", &pod), &pod);
    assert_eq!(cpus(&lab, &pod), "1");
    let before = memory(&lab, &pod);
    for _ in 0..2 {
        let bundle = limited(in_pod(lab.bundle(), "container", &pod), 100_000, 256 << 20);
        lab.run_detached(&bundle, &second);
        assert_eq!(cpus(&lab, &pod), "2");
        let grown = memory(&lab, &pod) - before;
        assert!((240..=384).contains(&grown), "{grown} MiB more");
        lab.delete(&second);
        assert_eq!(cpus(&lab, &pod), "1");
    }
    lab.delete(&pod);
}

/// C-20, C-24: nproc, the memory of the guest and the container's cgroup follow an update; below what is in use is an
/// error.
#[test]
#[ignore = "needs a VM"]
fn c20_update_shows_inside() {
    let lab = Lab::new();
    let id = lab.id();
    lab.run_detached(&with_cgroup(lab.bundle().script("exec sleep 600")), &id);
    assert_eq!(cpus(&lab, &id), "1");
    let before = memory(&lab, &id);
    let free = || {
        let total = inside(&lab, &id, "free -m | awk '/^Mem/ {print $2}'");
        total.parse::<u64>().unwrap()
    };
    let free_before = free();
    let cgroup = |file: &str| inside(&lab, &id, &format!("cat /sys/fs/cgroup/{file}"));
    let cpu_lists = || {
        inside(
            &lab,
            &id,
            "cd /sys/devices/system/cpu; echo $(cat online) $(cat offline)",
        )
    };
    let host_cpus = std::thread::available_parallelism().unwrap().get();
    assert_eq!(cpu_lists().split(' ').next(), Some("0"));
    let more = [
        "update",
        "--cpu-period",
        "100000",
        "--cpu-quota",
        "100000",
        "--memory",
        "268435456",
        &id,
    ];
    let _ = lab.quick(&more).ok();
    assert_eq!(cpus(&lab, &id), "2");
    assert!(memory(&lab, &id) >= before + 240);
    assert!(free() >= free_before + 240);
    assert_eq!(cpu_lists().split(' ').next(), Some("0-1"));
    assert_eq!(cgroup("cpu.max"), "100000 100000");
    assert_eq!(cgroup("memory.max"), "268435456");
    let stats = lab.quick(&["events", "--stats", &id]).ok().json();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 268_435_456, "{stats}");
    let _ = lab
        .quick(&["update", "--memory", "4096", &id])
        .fails(&["memory limit 4096 bytes"]);
    // Nothing of it was applied.
    assert_eq!(cgroup("memory.max"), "268435456");
    // A quota that is no limit asks for no CPU: the one that came goes offline, and comes again.
    let quota = |quota: &str| {
        let _ = lab.quick(&["update", "--cpu-quota", quota, &id]).ok();
    };
    quota("-1");
    assert_eq!(cpus(&lab, &id), "1");
    assert_eq!(cgroup("cpu.max"), "max 100000");
    let gone = cpu_lists();
    assert!(gone.starts_with("0 1"), "{gone}: offline, of {host_cpus}");
    quota("100000");
    assert_eq!(cpus(&lab, &id), "2");
    assert_eq!(cpu_lists().split(' ').next(), Some("0-1"));
    lab.delete(&id);
}

/// C-24: the first container's share is in the size the VM boots with.
#[test]
#[ignore = "needs a VM"]
fn c24_the_first_containers_share_is_there_at_boot() {
    let lab = Lab::new();
    let id = lab.id();
    lab.run_detached(&limited(lab.bundle(), 100_000, 128 << 20), &id);
    assert_eq!(cpus(&lab, &id), "2");
    lab.delete(&id);
}
