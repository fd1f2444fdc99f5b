//! What options do to a VM: seen inside the guest, on QEMU's command line and at the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use crate::mounts::{inside, with_program};
use bulkhead_e2e::{Bundle, Lab, VERB};
use serde_json::{Value, json};
use std::path::{Path, PathBuf};

/// A configuration with the guest under test and more: `sections` are TOML, `hypervisor` goes below that table.
fn config(lab: &Lab, name: &str, hypervisor: &str, sections: &str) -> String {
    let beside = |file: &str| Lab::config().parent().unwrap().join(file);
    let text = format!(
        "[hypervisor]\nkernel = {:?}\ninitrd = {:?}\n{hypervisor}\n{sections}\n",
        beside("vmlinux"),
        beside("initrd")
    );
    let path = lab.dir().join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[track_caller]
fn run_detached(lab: &Lab, config: &str, bundle: &Bundle, id: &str) {
    let arguments = ["run", "--detach", "--bundle", bundle.arg(), id];
    let _ = lab.call_with(&["--config", config], &arguments).run().ok();
}

/// The command line of a process of a sandbox.
fn command_line(lab: &Lab, id: &str, role: &str) -> Vec<String> {
    let path = format!("/proc/{}/cmdline", lab.pid_of(id, role));
    let text = String::from_utf8(std::fs::read(path).unwrap()).unwrap();
    text.split('\0').map(str::to_owned).collect()
}

/// Shell commands, each with the answer it must give.
#[track_caller]
fn answers(lab: &Lab, id: &str, expected: &[(&str, &str)]) {
    // One exec for all of them.
    let script: String = expected
        .iter()
        .map(|(command, _)| format!("echo \"$({command})\" | tr '\\n' ' '; echo;"))
        .collect();
    let text = inside(lab, id, &script);
    let given: Vec<&str> = text.lines().map(str::trim).collect();
    let wanted: Vec<&str> = expected.iter().map(|(_, answer)| *answer).collect();
    assert_eq!(given, wanted, "{expected:#?}");
}

fn with_filter(bundle: Bundle) -> Bundle {
    bundle.with(|config| {
        config["linux"]["seccomp"] = json!({
            "defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"],
            "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO"}]
        });
    })
}

/// The container sees its own cgroup.
pub(crate) fn with_cgroup(bundle: Bundle) -> Bundle {
    bundle.with(|config| {
        config["mounts"].as_array_mut().unwrap().push(json!({
            "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
            "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]
        }));
    })
}

fn with_pipesize(bundle: Bundle) -> Bundle {
    with_program(bundle, env!("CARGO_BIN_EXE_pipesize"), "/pipesize")
}

/// O-09 to O-15, O-22, O-23: options of the configuration; C-25: what the log says then.
#[test]
#[ignore = "needs a VM"]
fn o09_to_o15_o22_o23_c25_options_of_the_configuration() {
    let lab = Lab::new();
    let memory = lab.dir().join("memory");
    std::fs::create_dir(&memory).unwrap();
    let hypervisor = format!(
        r#"
machine_type = "pc-q35-7.1"
machine_accelerators = "hpet=off"
cpu_features = "avx2=off"
kernel_params = "bulkhead.first=1 bulkhead.bare"
default_vcpus = 2
default_memory = 320
memory_slots = 3
pcie_root_port = 2
entropy_source = "/dev/random"
virtio_fs_cache = "never"
enable_iothreads = true
enable_mem_prealloc = true
enable_swap = false
file_mem_backend = {memory:?}
"#
    );
    let sections = r#"
[runtime]
kernel_params = "bulkhead.second=2"
disable_guest_seccomp = true
enable_tracing = true
[agent]
kernel_modules = ["dm_mod", "overlay metacopy=on"]
container_pipe_size = 262144
enable_tracing = true
"#;
    let config = config(&lab, "options.toml", &hypervisor, sections);
    let bundle = with_pipesize(with_filter(lab.bundle().script("exec sleep 600")))
        .with(|config| config["hostname"] = json!("of-the-spec"));
    std::fs::write(bundle.rootfs().join("changes"), "one").unwrap();
    let id = lab.id();
    run_detached(&lab, &config, &bundle, &id);

    let line = command_line(&lab, &id, "vmm");
    let after = |option: &str| {
        let at = line.iter().position(|word| word == option);
        line[at.unwrap_or_else(|| panic!("{option}: {line:?}")) + 1].clone()
    };
    let machine = after("-machine");
    assert!(machine.starts_with("pc-q35-7.1,"), "{machine}");
    assert!(machine.ends_with(",hpet=off"), "{machine}");
    assert!(after("-cpu").ends_with(",avx2=off"));
    assert!(after("-m").starts_with("size=320M,slots=3,maxmem="));
    assert_eq!(after("-overcommit"), "mem-lock=on");
    let has = |word: &str| line.iter().any(|argument| argument.contains(word));
    assert!(has("rng-random,id=rng0,filename=/dev/random"), "{line:?}");
    assert!(has("iothread,id="), "{line:?}");
    assert!(has(",prealloc=on"), "{line:?}");
    assert!(
        has(&format!("memory-backend-file,mem-path={}", memory.display())),
        "{line:?}"
    );
    let ports = line
        .iter()
        .filter(|word| word.starts_with("pcie-root-port,"))
        .count();
    assert_eq!(ports, 8, "six that every sandbox has, and two");
    // O-10: locked, touched, and in the file.
    let status = std::fs::read_to_string(format!("/proc/{}/status", lab.pid_of(&id, "vmm"))).unwrap();
    let locked = status
        .lines()
        .find_map(|line| line.strip_prefix("VmLck:"))
        .unwrap();
    let locked: u64 = locked.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(locked > 320 << 10, "{locked} KiB locked");
    let daemon = command_line(&lab, &id, "fsd");
    let cache = daemon.iter().position(|word| word == "--cache").unwrap();
    assert_eq!(daemon[cache + 1], "never");

    answers(
        &lab,
        &id,
        &[
            ("nproc", "2"),
            ("cat /sys/class/dmi/id/product_version", "pc-q35-7.1"),
            ("grep -c avx2 /proc/cpuinfo", "0"),
            (
                "grep -o 'bulkhead.first=1 bulkhead.bare bulkhead.second=2' /proc/cmdline",
                "bulkhead.first=1 bulkhead.bare bulkhead.second=2",
            ),
            ("cat /sys/module/overlay/parameters/metacopy", "Y"),
            ("test -d /sys/module/dm_mod && echo loaded", "loaded"),
            ("awk '/^Seccomp:/ {print $2}' /proc/self/status", "0"),
            ("mkdir /tmp/made && echo made", "made"),
            ("hostname", "of-the-spec"),
            ("cat /changes", "one"),
        ],
    );
    let mib: u64 = inside(&lab, &id, "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse::<u64>()
        .unwrap()
        >> 10;
    // What the kernel, its initrd and its own tables take is not in the total.
    assert!((180..=320).contains(&mib), "{mib} MiB");
    let pipe = lab.call(&["exec", &id, "/pipesize"]).run().ok().text();
    assert_eq!(pipe.trim(), "262144");
    // O-12: nothing is cached.
    std::fs::write(bundle.rootfs().join("changes"), "two").unwrap();
    assert_eq!(inside(&lab, &id, "cat /changes"), "two");

    // C-25, O-22: each operation's span with its fields, and the agent's calls.
    let log = lab.quick(&["logs", "--json", &id]).ok().text();
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|line| serde_json::from_str(line).ok())
        .collect();
    let closed = |operation: &str| {
        lines
            .iter()
            .find(|line| line["message"] == "close" && line["span"]["operation"] == operation)
    };
    // A `run` starts with its create.
    for operation in ["create", "exec", "bind"] {
        let span = &closed(operation).unwrap_or_else(|| panic!("{operation}: {log}"))["span"];
        assert_eq!(span["source"], "bulkhead", "{span}");
        assert_eq!(span["package"], "bulkhead-sandbox", "{span}");
        assert_eq!(
            (&span["sandbox"], &span["container"]),
            (&json!(id), &json!(id)),
            "{span}"
        );
    }
    let rootfs = bundle.rootfs();
    assert_eq!(
        closed("bind").unwrap()["span"]["host_path"],
        rootfs.to_str().unwrap()
    );
    assert!(closed("boot").unwrap()["time.busy"].is_string());
    let traced = format!("trace: create_container {id} ");
    assert!(
        lines.iter().any(|line| {
            line["source"] == "agent"
                && line["message"]
                    .as_str()
                    .is_some_and(|text| text.starts_with(&traced))
        }),
        "{log}"
    );
    lab.delete(&id);
    assert_eq!(
        std::fs::read_dir(&memory).unwrap().count(),
        0,
        "the file of the memory is gone"
    );
}

/// O-07 to O-15, C-08, O-06: the same by annotations, where they are allowed.
#[test]
#[ignore = "needs a VM"]
fn o07_to_o15_o06_c08_options_by_annotation() {
    let lab = Lab::new();
    let daemon = lab.dir().join("another-daemon");
    // What virtiofsd(1) is told, for this program's own daemon.
    let script = format!(
        "#!/bin/sh\necho \"$*\" > {0}/told\nsource=${{3#source=}}\nexec {1} fsd --socket-fd 3 --cache always --shared-dir \"${{source%%,*}}\"\n",
        lab.dir().display(),
        bulkhead_e2e::Runtime::Bulkhead.program().display(),
    );
    std::fs::write(&daemon, script).unwrap();
    std::fs::set_permissions(&daemon, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let hypervisor = format!(
        "enable_annotations = [\"default_.*\", \"kernel_params\", \"entropy_source\", \"virtio_fs_.*\", \"machine_type\", \"cpu_features\"]\n\
        valid_virtio_fs_daemon_paths = [\"{}/*-daemon\"]",
        lab.dir().display()
    );
    let config = config(&lab, "annotations.toml", &hypervisor, "");
    let bundle = with_cgroup(with_pipesize(with_filter(lab.bundle().script("exec sleep 600"))));
    let bundle = bundle.with(|config| {
        let hv = "io.katacontainers.config.hypervisor.";
        let (agent, resource) = (
            "io.katacontainers.config.agent.",
            "io.katacontainers.container.resource.",
        );
        config["annotations"] = json!({
            (format!("{hv}default_vcpus")): "2",
            (format!("{hv}default_memory")): "288",
            (format!("{hv}kernel_params")): "bulkhead.note=annotation",
            (format!("{hv}entropy_source")): "/dev/random",
            (format!("{hv}virtio_fs_cache")): "always",
            (format!("{hv}virtio_fs_daemon")): daemon,
            (format!("{hv}machine_type")): "pc-q35-7.0",
            (format!("{hv}cpu_features")): "-avx2",
            (format!("{agent}kernel_modules")): "dm_mod;overlay redirect_dir=on",
            (format!("{agent}container_pipe_size")): "131072",
            (format!("{resource}swappiness")): "0x1e",
            (format!("{resource}swap_in_bytes")): "201326592",
        });
        config["linux"]["resources"] = json!({"memory": {"limit": 134_217_728}});
        for mount in config["mounts"].as_array_mut().unwrap() {
            if mount["destination"] == "/dev/shm" {
                mount["options"] = json!(["nosuid", "noexec", "nodev", "mode=1777", "size=8m"]);
            }
        }
    });
    std::fs::write(bundle.rootfs().join("changes"), "one").unwrap();
    let id = lab.id();
    run_detached(&lab, &config, &bundle, &id);
    let line = command_line(&lab, &id, "vmm").join(" ");
    assert!(line.contains("-machine pc-q35-7.0,"), "{line}");
    assert!(line.contains("filename=/dev/random"), "{line}");
    // O-12: another daemon, told in words that all versions of virtiofsd know.
    let told = std::fs::read_to_string(lab.dir().join("told")).unwrap();
    assert!(
        told.starts_with("--fd=3 -o source=/") && told.contains(",cache=always,"),
        "{told}"
    );
    answers(
        &lab,
        &id,
        &[
            ("nproc", "2"),
            ("cat /sys/class/dmi/id/product_version", "pc-q35-7.0"),
            ("grep -c avx2 /proc/cpuinfo", "0"),
            (
                "grep -o 'bulkhead.note=annotation' /proc/cmdline",
                "bulkhead.note=annotation",
            ),
            ("cat /sys/module/overlay/parameters/redirect_dir", "Y"),
            ("test -d /sys/module/dm_mod && echo loaded", "loaded"),
            ("awk '/^Seccomp:/ {print $2}' /proc/self/status", "2"),
            ("mkdir /tmp/made 2> /dev/null || echo refused", "refused"),
            ("cat /proc/sys/vm/swappiness", "30"),
            ("cat /sys/fs/cgroup/memory.max", "134217728"),
            ("cat /sys/fs/cgroup/memory.swap.max", "67108864"),
            ("df -k /dev/shm | awk '/shm/ {print $2}'", "8192"),
            ("cat /changes", "one"),
        ],
    );
    let mib: u64 = inside(&lab, &id, "awk '/MemTotal/ {print $2}' /proc/meminfo")
        .parse::<u64>()
        .unwrap()
        >> 10;
    // The container's limit comes on top of what a sandbox has.
    assert!((289..=288 + 128).contains(&mib), "{mib} MiB");
    let pipe = lab.call(&["exec", &id, "/pipesize"]).run().ok().text();
    assert_eq!(pipe.trim(), "131072");
    // O-12: what was read once is kept for good.
    std::fs::write(bundle.rootfs().join("changes"), "two").unwrap();
    assert_eq!(inside(&lab, &id, "cat /changes"), "one");
    lab.delete(&id);

    // O-07, O-08: what is not allowed is refused by name, and nothing starts.
    for (key, value, words) in [
        ("msize_9p", json!("8192"), ["msize_9p", "enable_annotations"]),
        (
            "virtio_fs_daemon",
            json!("/bin/sh"),
            ["virtio_fs_daemon", "/bin/sh"],
        ),
    ] {
        let bundle = lab.bundle().with(|config| {
            config["annotations"] = json!({(format!("io.katacontainers.config.hypervisor.{key}")): value});
        });
        let id = lab.id();
        let arguments = ["run", "--bundle", bundle.arg(), &id];
        let _ = lab
            .call_with(&["--config", &config], &arguments)
            .run()
            .fails(&words);
        lab.assert_clean();
    }
}

/// Whether the guest's kernel under test has 9p: built in, or as a module.
pub(crate) fn guest_has_9p() -> bool {
    let manifest = Lab::config().with_file_name("manifest.json");
    let manifest: Value = serde_json::from_slice(&std::fs::read(manifest).unwrap()).unwrap();
    !manifest["absent"].as_array().unwrap().contains(&json!("9p"))
}

/// O-12: files over virtio-9p, which QEMU serves itself, with the size of its messages; mounts made later are seen.
/// A guest kernel that has no 9p is an error that says so.
#[test]
#[ignore = "needs a VM"]
fn o12_c30_files_over_9p() {
    let lab = Lab::new();
    let config = config(&lab, "9p.toml", "shared_fs = \"virtio-9p\"\nmsize_9p = 65536", "");
    let data: PathBuf = lab.dir().join("data");
    std::fs::create_dir(&data).unwrap();
    std::fs::write(data.join("name"), "from the host").unwrap();
    let bundle = lab.bundle().script("exec sleep 600").with(|config| {
        let bind = json!({"destination": "/data", "type": "bind", "source": data, "options": ["rbind"]});
        config["mounts"].as_array_mut().unwrap().push(bind);
    });
    let id = lab.id();
    if !guest_has_9p() {
        let arguments = ["run", "--detach", "--bundle", bundle.arg(), &id];
        let run = lab.call_with(&["--config", &config], &arguments).run();
        let _ = run.fails(&["9p", "the guest's kernel"]);
        lab.assert_clean();
        return;
    }
    run_detached(&lab, &config, &bundle, &id);
    let line = command_line(&lab, &id, "vmm").join(" ");
    assert!(line.contains("-sandbox on,"), "{line}");
    assert!(line.contains("security_model=passthrough"), "{line}");
    assert!(lab.marked(&id, "fsd").is_empty(), "no daemon");
    let mount = inside(&lab, &id, "grep ' / ' /proc/mounts");
    assert!(mount.contains(" 9p ") && mount.contains("msize=65536"), "{mount}");
    answers(
        &lab,
        &id,
        &[
            ("cat /data/name", "from the host"),
            (
                "echo to the host > /data/back; chown 5:6 /data/back; chmod 640 /data/back; stat -c '%u %g %a' /data/back",
                "5 6 640",
            ),
            (
                "head -c 3000000 /dev/zero | tee /data/large | md5sum | cut -c1-8",
                "c9fc2d3d",
            ),
            ("md5sum < /data/large | cut -c1-8", "c9fc2d3d"),
        ],
    );
    assert_eq!(
        std::fs::read_to_string(data.join("back")).unwrap(),
        "to the host\n"
    );
    lab.delete(&id);
    let _ = VERB;
    assert!(Path::new(&data).exists());
}

/// O-16: a kernel that was changed after its digest was given is refused by name, at each start; the right one boots.
#[test]
#[ignore = "needs a VM"]
fn o16_an_asset_that_was_changed() {
    let lab = Lab::new();
    let kernel = Lab::config().with_file_name("vmlinux");
    let sum = lab
        .program("sha512sum", &[kernel.to_str().unwrap()])
        .run()
        .ok()
        .text();
    let digest = sum.split(' ').next().unwrap().to_owned();
    let right = config(&lab, "right.toml", &format!("kernel_hash = \"{digest}\""), "");
    let bundle = lab.bundle().script("echo up");
    let run = |config: &str| {
        let id = lab.id();
        lab.call_with(&["--config", config], &["run", "--bundle", bundle.arg(), &id])
            .run()
    };
    assert_eq!(run(&right).ok().text(), "up\n");
    let copy = lab.dir().join("vmlinux");
    let mut bytes = std::fs::read(&kernel).unwrap();
    let last = bytes.len() - 1;
    bytes[last] ^= 1;
    std::fs::write(&copy, bytes).unwrap();
    let initrd = Lab::config().with_file_name("initrd");
    let text = format!("[hypervisor]\nkernel = {copy:?}\ninitrd = {initrd:?}\nkernel_hash = \"{digest}\"\n");
    let changed = lab.dir().join("changed.toml");
    std::fs::write(&changed, text).unwrap();
    for _ in 0..2 {
        let words = ["vmlinux", "SHA-512", digest.as_str(), "kernel_hash"];
        let _ = run(changed.to_str().unwrap()).fails(&words);
        lab.assert_clean();
    }
}
