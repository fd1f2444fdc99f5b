//! What the OCI runtime spec asks of a container, in the guest.

use crate::containers::kind;
use crate::machine::{Machine, container, key, process, spec};
use bulkhead_model::{ExitStatus, FailureKind};
use bulkhead_protocol::{Guest, GuestError, GuestStdio};
use serde_json::json;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn the_runtime_spec_holds_in_the_guest() {
    let machine = Machine::boot().await;
    let script = "touch /x 2>&1; cat /proc/kcore | wc -c; echo 1 > /proc/sys/kernel/panic; cat /proc/sys/kernel/shm_rmid_forced; \
                  cat /proc/sys/net/ipv4/ip_forward; cat /proc/self/oom_score_adj; ls -l /dev/mine | cut -c1-10; cat /data/inside; ls /proc | grep -c '^[0-9]'; ip link 2>&1 | grep -c lo";
    let mut spec = spec(&["sh", "-c", script]);
    spec["root"]["readonly"] = json!(true);
    spec["process"]["oomScoreAdj"] = json!(321);
    spec["linux"]["sysctl"] = json!({"kernel.shm_rmid_forced": "1", "net.ipv4.ip_forward": "1"});
    spec["linux"]["devices"] =
        json!([{"path": "/dev/mine", "type": "c", "major": 1, "minor": 3, "fileMode": 0o620}]);
    let bind = json!({"destination": "/data", "type": "bind", "source": "/run/bulkhead/share/disk/rootfs/etc", "options": ["rbind", "ro"]});
    spec["mounts"].as_array_mut().unwrap().push(bind);
    spec["hooks"] = json!({"prestart": [{"path": "/no/such/hook"}]});
    let script = script.replace("/data/inside", "/data/plain");
    spec["process"]["args"] = json!(["sh", "-c", script]);
    let (_, stdout, stderr) = machine.run("c1", &spec).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert!(lines[0].contains("Read-only file system"), "{stdout}");
    assert_eq!(lines[1..5], ["0", "1", "1", "321"], "{stdout}{stderr}");
    assert_eq!(lines[5], "crw--w----", "{stdout}");
    assert_eq!(lines[6], "not a program");
    assert!(stderr.contains("/proc/sys/kernel/panic"), "{stderr}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_user_namespace_maps_ids() {
    let machine = Machine::boot().await;
    let mut spec = spec(&["sh", "-c", "id -u; cat /proc/self/uid_map; sleep 1000"]);
    // The disk's files are root's; only what any user may do is done here.
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "user"}));
    spec["linux"]["uidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    spec["linux"]["gidMappings"] = json!([{"containerID": 0, "hostID": 100_000, "size": 65536}]);
    let (stdio, output) = machine.collect();
    machine.ok(machine.create("c1", &spec, stdio).await);
    machine.ok(machine.guest.start_container(&container("c1")).await);
    let show = process(&[
        "sh",
        "-c",
        "id -u; readlink /proc/self/ns/user; readlink /proc/1/ns/user; echo x > /dev/stdout",
    ]);
    let (exit, stdout, stderr) = machine.exec("c1", "e1", &show).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!((lines[0], lines[3]), ("0", "x"));
    assert_eq!(lines[1], lines[2]);
    let processes = machine.ok(machine.guest.processes(&container("c1")).await);
    assert!(
        processes.iter().all(|process| process.uid == 100_000),
        "{processes:?}"
    );
    machine.ok(machine.guest.remove_container(&container("c1")).await);
    let stdout = output.stdout.join().unwrap();
    let words: Vec<&str> = stdout.split_whitespace().collect();
    assert_eq!(words, ["0", "0", "100000", "65536"]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn seccomp_and_attributes_hold_for_the_containers_own_process() {
    let machine = Machine::boot().await;
    let filter = json!({
        "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
        "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 38}]
    });
    for confined in [false, true] {
        let script = "grep -E '^(CapEff|NoNewPrivs|Seccomp):' /proc/self/status; mkdir /tmp/x; id -u; id -G; ulimit -n; umask; echo $HOME; echo y > /dev/stdout";
        let mut spec = spec(&["sh", "-c", script]);
        spec["linux"]["seccomp"] = filter.clone();
        spec["process"]["noNewPrivileges"] = json!(confined);
        spec["process"]["user"] = json!({"uid": 1000, "gid": 1000, "umask": 0o077, "additionalGids": [5]});
        spec["process"]["rlimits"] = json!([{"type": "RLIMIT_NOFILE", "soft": 77, "hard": 99}]);
        let (_, stdout, stderr) = machine.run("c1", &spec).await;
        let lines: Vec<&str> = stdout.lines().collect();
        let flag = format!("NoNewPrivs:\t{}", u8::from(confined));
        assert_eq!(
            lines,
            [
                "CapEff:\t0000000000000000",
                &flag,
                "Seccomp:\t2",
                "1000",
                "1000 5",
                "77",
                "0077",
                "/home/alice",
                "y"
            ],
            "{stderr}"
        );
        assert!(stderr.contains("Function not implemented"), "{stderr}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn a_spec_the_kernel_refuses_is_one_clear_line_and_leaves_nothing() {
    let machine = Machine::boot().await;
    let mut odd = spec(&["true"]);
    odd["mounts"]
        .as_array_mut()
        .unwrap()
        .push(json!({"destination": "/x", "type": "nosuchfs", "source": "none"}));
    let (_, message) = kind(machine.create("c1", &odd, GuestStdio::default()).await);
    println!("mount: {message}");
    assert!(
        !message.contains('\n') && message.contains("nosuchfs"),
        "{message}"
    );
    let mut odd = spec(&["true"]);
    odd["process"]["cwd"] = json!("/no/such/dir");
    let (_, message) = kind(machine.create("c1", &odd, GuestStdio::default()).await);
    println!("cwd: {message}");
    assert!(!message.contains('\n'), "{message}");
    let mut odd = spec(&["true"]);
    odd["linux"]["resources"]["memory"] = json!({"limit": 1_000_000, "swap": 5});
    let (invalid, message) = kind(machine.create("c1", &odd, GuestStdio::default()).await);
    assert_eq!(invalid, FailureKind::InvalidArgument);
    assert!(message.contains('5'), "{message}");
    let mut odd = spec(&["true"]);
    odd["linux"]["sysctl"] = json!({"vm.nosuch": "1"});
    let (_, message) = kind(machine.create("c1", &odd, GuestStdio::default()).await);
    println!("sysctl: {message}");
    let (exit, ..) = machine.run("c1", &spec(&["true"])).await;
    assert_eq!(exit.status, ExitStatus::Code(0));
    let (_, stdout, _) = machine.run("c1", &{
        let mut all = spec(&["sh", "-c", "ls -d /cg/bulkhead/*; ls /cg/bulkhead | grep -c c1"]);
        all["mounts"].as_array_mut().unwrap().push(json!({"destination": "/cg", "type": "bind", "source": "/sys/fs/cgroup", "options": ["rbind", "ro"]}));
        all
    }).await;
    assert!(stdout.starts_with("/cg/bulkhead/c1\n"), "{stdout}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn namespace_paths_join_the_first_container() {
    let machine = Machine::boot().await;
    machine.sleeper("pause").await;
    let mut spec = spec(&["sh", "-c", "hostname; cat /proc/1/comm"]);
    spec["linux"]["namespaces"] = json!([
        {"type": "pid", "path": "/proc/4711/ns/pid"}, {"type": "uts", "path": "/proc/4711/ns/uts"},
        {"type": "ipc", "path": "/proc/4711/ns/ipc"}, {"type": "mount"}, {"type": "network", "path": "/run/netns/x"}
    ]);
    spec["hostname"] = json!(null);
    let (_, stdout, stderr) = machine.run("app", &spec).await;
    assert_eq!(stdout, "box\nsleep\n", "{stderr}");
}

/// K-06: hooks that run in the container, right before its program.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn k06_start_container_hooks_run_in_the_container() {
    let machine = Machine::boot().await;
    let guest = &machine.guest;
    let hook = |script: &str| json!({"path": "/bin/sh", "args": ["sh", "-c", script], "env": ["WORD=given", "PATH=/bin"]});
    let mut spec = spec(&["sh", "-c", "cat /tmp/told; echo after"]);
    spec["annotations"] = json!({"some.key": "its value"});
    spec["hooks"] = json!({"startContainer": [
        hook("cat > /tmp/told; echo >> /tmp/told"), hook("echo $WORD $(hostname) $$ >> /tmp/told; readlink /proc/self/ns/mnt > /tmp/mnt")]});
    let (exit, stdout, stderr) = machine.run("c1", &spec).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    let lines: Vec<&str> = stdout.lines().collect();
    let state: serde_json::Value = serde_json::from_str(lines[0]).unwrap();
    assert_eq!(
        (&state["id"], &state["status"], &state["bundle"]),
        (&json!("c1"), &json!("created"), &json!("/the/bundle"))
    );
    assert_eq!(state["annotations"]["some.key"], "its value");
    assert!(lines[1].starts_with("given box "), "{stdout}");
    assert_eq!(lines[2], "after");

    for (script, timeout, wanted) in [
        (
            "echo broken >&2; exit 3",
            600,
            "startContainer[0] /bin/sh: exit status: 3, output: broken",
        ),
        ("sleep 1000", 1, "did not end within 1 s"),
    ] {
        let mut failing = hook(script);
        failing["timeout"] = json!(timeout);
        spec["hooks"] = json!({"startContainer": [failing]});
        machine.ok(machine.create("c2", &spec, GuestStdio::default()).await);
        match guest.start_container(&container("c2")).await {
            Err(GuestError::Refused { message, .. }) => assert!(message.contains(wanted), "{message}"),
            other => panic!("expected a refusal, got {other:?}"),
        }
        let exit = machine.ok(guest.wait(&key("c2", None)).await);
        assert_eq!(exit.status, ExitStatus::Code(255), "the program did not run");
        machine.ok(guest.remove_container(&container("c2")).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a VM"]
async fn the_rest_of_the_runtime_spec_holds_in_the_guest() {
    let machine = Machine::boot().await;
    let script = "cat /proc/sys/kernel/domainname; cut -d. -f1 /proc/uptime; readlink /proc/self/ns/time; \
                  ls /etc/masked | wc -l; echo x > /etc/kept/file 2>/dev/null || echo kept; \
                  grep -E '^Cap(Bnd|Amb|Inh|Prm|Eff)' /proc/self/status | cut -f2; \
                  cat /copied/passwd | head -1; touch /copied/new && echo grown; \
                  touch /rro/etc/x 2>/dev/null || echo rro; grep -E '^([^ ]+ ){4}/ ' /proc/self/mountinfo | grep -c shared; \
                  uname -m; cat /proc/self/cgroup; stat -c %a /sealed; touch /sealed/x 2>/dev/null || echo sealed; \
                  ls -l /dev/ptmx /dev/fd /dev/stdin | grep -c -- '->'; ls /dev/deep/er/node; cat /proc/self/limits | grep 'core file' | tr -s ' ' | cut -d' ' -f5,6; ionice -p $$";
    let mut spec = spec(&["sh", "-c", script]);
    spec["domainname"] = json!("its.domain");
    spec["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({"type": "time"}));
    spec["linux"]["timeOffsets"] =
        json!({"monotonic": {"secs": 7_000_000}, "boottime": {"secs": 8_000_000, "nanosecs": 5}});
    spec["linux"]["maskedPaths"] = json!(["/etc/masked", "/no/such/path"]);
    spec["linux"]["readonlyPaths"] = json!(["/etc/kept", "/no/such/path"]);
    spec["linux"]["rootfsPropagation"] = json!("shared");
    spec["linux"]["personality"] = json!({"domain": "LINUX32"});
    spec["linux"]["devices"] =
        json!([{"path": "/dev/deep/er/node", "type": "c", "major": 1, "minor": 5, "fileMode": 0o666}]);
    spec["process"]["rlimits"] = json!([{"type": "RLIMIT_CORE", "soft": 0, "hard": 4096}]);
    spec["process"]["ioPriority"] = json!({"class": "IOPRIO_CLASS_BE", "priority": 6});
    spec["process"]["user"] = json!({"uid": 0, "gid": 0});
    spec["process"]["capabilities"] = json!({
        "bounding": ["CAP_KILL", "CAP_CHOWN", "CAP_DAC_OVERRIDE"], "permitted": ["CAP_KILL", "CAP_DAC_OVERRIDE"], "effective": ["CAP_KILL", "CAP_DAC_OVERRIDE"],
        "inheritable": ["CAP_KILL"], "ambient": ["CAP_KILL", "CAP_CHOWN"]});
    let rootfs = "/run/bulkhead/share/disk/rootfs";
    for mount in [
        json!({"destination": "/etc/masked", "type": "bind", "source": format!("{rootfs}/bin"), "options": ["rbind"]}),
        json!({"destination": "/etc/kept", "type": "tmpfs", "source": "tmpfs", "options": ["mode=777"]}),
        json!({"destination": "/rro", "type": "bind", "source": rootfs, "options": ["rbind", "rro"]}),
        json!({"destination": "/sealed", "type": "tmpfs", "source": "tmpfs", "options": ["ro", "mode=711"]}),
    ] {
        spec["mounts"].as_array_mut().unwrap().push(mount);
    }
    // A tmpfs over what the image has there, through a link of the image to nothing.
    let prepare = "mkdir -p /copied && cp /etc/passwd /copied/passwd";
    let (exit, _, stderr) = machine.run("c0", &self::spec(&["sh", "-c", prepare])).await;
    assert_eq!(exit.status, ExitStatus::Code(0), "{stderr}");
    spec["mounts"].as_array_mut().unwrap().push(
        json!({"destination": "/copied", "type": "tmpfs", "source": "tmpfs", "options": ["tmpcopyup"]}),
    );
    let (_, stdout, stderr) = machine.run("c1", &spec).await;
    let lines: Vec<&str> = stdout.lines().collect();
    assert_eq!(lines[0], "its.domain", "{stdout}{stderr}");
    assert!(lines[1].parse::<u64>().unwrap() >= 8_000_000, "{stdout}");
    assert!(lines[2].starts_with("time:["));
    assert_eq!(lines[3..5], ["0", "kept"]);
    // Inheritable, permitted and effective of root's program are what bounding and inheritable give (capabilities(7)).
    assert_eq!(lines[5], "0000000000000020");
    assert_eq!(lines[8..10], ["0000000000000023", "0000000000000020"]);
    assert_eq!(lines[10..13], ["root:x:0:0:root:/root:/bin/sh", "grown", "rro"]);
    assert_eq!(lines[13], "1", "{stdout}");
    assert_eq!(lines[14], "i686");
    assert_eq!(lines[15..19], ["0::/", "711", "sealed", "3"]);
    assert_eq!(
        lines[19..],
        ["/dev/deep/er/node", "0 4096", "best-effort: prio 6"]
    );
}
