//! Limits are the guest's, never the VMM's; the daemon lives with the host's.

use bulkhead_e2e::{Lab, VERB};
use serde_json::json;

/// `-m 32m` limits the container, not the VM around it.
#[test]
#[ignore = "needs a VM"]
fn a_container_of_32_mebibytes() {
    let lab = Lab::new();
    let bundle = lab.bundle().script("exec sleep 600").with(|config| {
        config["linux"]["resources"] = json!({
            "memory": {"limit": 33_554_432},
            "cpu": {"quota": 50_000, "period": 100_000},
            "pids": {"limit": 40}
        });
        config["linux"]["cgroupsPath"] = json!(format!("/{}", lab.token()));
    });
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let stats = lab.quick(&["events", "--stats", &id]).ok().json();
    assert_eq!(stats["data"]["memory"]["usage"]["limit"], 33_554_432, "{stats}");
    assert_eq!(stats["data"]["pids"]["limit"], 40, "{stats}");
    // K-03: the sandbox's processes are in the cgroup the spec names.
    let vmm = lab.pid_of(&id, "vmm");
    let cgroups = std::fs::read_to_string(format!("/proc/{vmm}/cgroup")).unwrap();
    assert!(cgroups.contains(lab.token()), "{cgroups}");
    lab.delete(&id);
}

/// A program that takes more than its memory is killed, and the container says so.
#[test]
#[ignore = "needs a VM"]
fn out_of_memory_is_the_containers_own() {
    let lab = Lab::new();
    let bundle = lab
        .bundle()
        .script("exec sleep 600")
        .with(|config| config["linux"]["resources"] = json!({"memory": {"limit": 33_554_432}}));
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    // One process: several that take turns read their programs in again and again for a minute before they are out of memory.
    let outcome = lab.call(&["exec", &id, "tail", "/dev/zero"]).run();
    assert_eq!(outcome.status, 137, "{}", outcome.errors());
    assert_eq!(lab.status(&id), "running");
    lab.delete(&id);
}

/// The same of the container's own process: `events` says so as it happens, though no statistics are due, and ends
/// with the container.
#[test]
#[ignore = "needs a VM"]
fn out_of_memory_of_the_container_itself_is_told() {
    let lab = Lab::new();
    let bundle = lab
        .bundle()
        .script("while ! test -e /go; do sleep 0.1; done; exec tail /dev/zero")
        .with(|config| {
            config["linux"]["resources"] = json!({"memory": {"limit": 33_554_432, "swap": 33_554_432}});
        });
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    let (read, write) = std::io::pipe().unwrap();
    let watching = lab
        .call(&["events", "--interval", "1h", &id])
        .stdout(write)
        .start();
    // It watches from here on: statistics are asked for by another.
    let _ = lab.quick(&["events", "--stats", &id]).ok();
    std::fs::write(bundle.rootfs().join("go"), "").unwrap();
    let lines = bulkhead_e2e::Lines::of(read).rest(VERB);
    let expected = format!("{{\"id\":\"{id}\",\"type\":\"oom\"}}");
    assert_eq!(lines, [expected]);
    let _ = watching.wait().ok();
    assert_eq!(lab.status(&id), "stopped");
    let tree = lab.quick(&["inspect", &id]).ok().json();
    assert_eq!(
        tree["containers"][&id]["init"]["exit"],
        json!({"signal": 9}),
        "{tree:#}"
    );
    assert_eq!(tree["containers"][&id]["out_of_memory"], 1);
    let _ = lab.quick(&["delete", &id]).ok();
}

/// A rootfs of 50,000 files is walked with the hard descriptor limit of 20,000.
#[test]
#[ignore = "needs a VM"]
fn fifty_thousand_files() {
    let lab = Lab::new();
    let bundle = lab
        .bundle()
        .script("find /many -type f | wc -l; cat /many/49/* | wc -c");
    for dir in 0..50 {
        let dir = bundle.rootfs().join(format!("many/{dir}"));
        std::fs::create_dir_all(&dir).unwrap();
        for file in 0..1000 {
            std::fs::write(dir.join(format!("{file}")), "x").unwrap();
        }
    }
    let outcome = lab
        .call(&["run", "--bundle", bundle.arg(), &lab.id()])
        .limit(libc_rlimit_nofile(), 1024, 20_000)
        .run()
        .ok();
    assert_eq!(outcome.text(), "50000\n1000\n");
    assert_eq!(outcome.errors(), "");
}

/// RLIMIT_NOFILE, setrlimit(2).
const fn libc_rlimit_nofile() -> u32 {
    nix::sys::resource::Resource::RLIMIT_NOFILE as u32
}
