//! Bad input: an error that names the value, a non-zero exit, nothing left behind.

use bulkhead_e2e::{Bundle, Lab, QUICK, VERB, until};
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// `create` of this bundle path fails with these words, and leaves nothing.
#[track_caller]
fn refused(lab: &Lab, bundle: &str, words: &[&str]) {
    let id = lab.id();
    let _ = lab.quick(&["create", "--bundle", bundle, &id]).fails(words);
    let _ = lab.quick(&["state", &id]).fails(&[&id]);
    lab.assert_clean();
}

#[test]
#[ignore = "needs root"]
fn bundles_that_are_none() {
    let lab = Lab::new();
    let path = |name: &str| lab.dir().join(name).to_str().unwrap().to_owned();
    refused(&lab, &path("missing"), &[&path("missing")]);
    std::fs::write(path("file"), "").unwrap();
    refused(&lab, &path("file"), &[&path("file")]);
    std::fs::create_dir(path("empty")).unwrap();
    refused(&lab, &path("empty"), &["config.json"]);
    std::fs::create_dir_all(path("odd/config.json")).unwrap();
    refused(&lab, &path("odd"), &["config.json"]);
    std::os::unix::fs::symlink("nowhere", path("dangling")).unwrap();
    refused(&lab, &path("dangling"), &[&path("dangling")]);
}

#[test]
#[ignore = "needs root"]
fn config_files_that_are_none() {
    let lab = Lab::new();
    let bundle = lab.bundle();
    let config = bundle.dir().join("config.json");
    for (text, words) in [
        ("", vec!["config.json"]),
        ("not json", vec!["config.json"]),
        ("[]", vec!["config.json"]),
        ("{}", vec!["config.json", "ociVersion"]),
        ("{\"ociVersion\": \"1.0.2\"", vec!["config.json"]),
    ] {
        std::fs::write(&config, text).unwrap();
        refused(&lab, bundle.arg(), &words);
    }
}

#[test]
#[ignore = "needs root"]
fn specs_that_cannot_be_run() {
    let lab = Lab::new();
    let mut bundle = lab.bundle();
    let original: Value =
        serde_json::from_slice(&std::fs::read(bundle.dir().join("config.json")).unwrap()).unwrap();
    let cases: &[(&[&str], Option<Value>, &[&str])] = &[
        (&["ociVersion"], Some(json!("9.9.9")), &["ociVersion", "9.9.9"]),
        (&["ociVersion"], Some(json!("soon")), &["ociVersion", "soon"]),
        (&["ociVersion"], Some(json!(1)), &["ociVersion"]),
        (&["process"], None, &["process"]),
        (&["process", "args"], None, &["args"]),
        (&["process", "args"], Some(json!([])), &["args"]),
        (&["process", "args"], Some(json!("true")), &["args"]),
        (&["process", "cwd"], Some(json!("tmp")), &["cwd", "tmp"]),
        (&["process", "cwd"], Some(json!("")), &["cwd"]),
        (&["process", "user"], Some(json!({"uid": -1, "gid": 0})), &["uid"]),
        (&["process", "env"], Some(json!([1])), &["env"]),
        (
            &["process", "rlimits"],
            Some(json!([{"type": "RLIMIT_X", "hard": 1, "soft": 1}])),
            &["RLIMIT_X"],
        ),
        (&["root"], None, &["root"]),
        (&["root", "path"], Some(json!("nosuch")), &["nosuch"]),
        (&["root", "path"], Some(json!("config.json")), &["config.json"]),
        (&["mounts"], Some(json!([{"destination": 1}])), &["mounts"]),
        (
            &["mounts"],
            Some(
                json!([{"destination": "/x", "type": "bind", "source": "/nonexistent/y", "options": ["bind"]}]),
            ),
            &["/nonexistent/y"],
        ),
        (
            &["linux", "namespaces"],
            Some(json!([{"type": "nosuch"}])),
            &["nosuch"],
        ),
        (
            &["linux", "namespaces"],
            Some(json!([{"type": "network", "path": "/nonexistent/ns"}, {"type": "mount"}])),
            &["/nonexistent/ns"],
        ),
    ];
    for (path, value, words) in cases {
        bundle = bundle.with(|config| {
            *config = original.clone();
            let (last, parents) = path.split_last().unwrap();
            let parent = parents.iter().fold(config, |at, key| &mut at[*key]);
            match value {
                Some(value) => parent[*last] = value.clone(),
                None => drop(parent.as_object_mut().unwrap().remove(*last)),
            }
        });
        eprintln!("case {path:?} = {value:?}");
        refused(&lab, bundle.arg(), words);
    }
}

/// Numbers that overflow, keys that are unknown, destinations that lead nowhere, one variable of a mebibyte, a bundle
/// that is a loop of links: each is named with its value and what was expected.
#[test]
#[ignore = "needs root"]
fn values_out_of_bounds() {
    let lab = Lab::new();
    let resource = "io.katacontainers.container.resource.";
    let bind = |destination: &str| json!({"destination": destination, "type": "bind", "source": "/tmp", "options": ["bind"]});
    let large = format!("BIG={}", "x".repeat(1 << 20));
    let cases: [(&str, Value, &[&str]); 15] = [
        (
            "/linux/resources",
            json!({"cpu": {"quota": 9_223_372_036_854_775_808_u64}}),
            &["linux.resources.cpu.quota", "9223372036854775808", "expected i64"],
        ),
        (
            "/linux/resources",
            json!({"memory": {"limit": 1e30}}),
            &["linux.resources.memory.limit", "1e+30", "expected i64"],
        ),
        (
            "/linux/resources",
            json!({"pids": {"limit": "many"}}),
            &["linux.resources.pids.limit", "many", "expected i64"],
        ),
        (
            "/process/user",
            json!({"uid": 4_294_967_296_u64, "gid": 0}),
            &["process.user.uid", "4294967296", "expected u32"],
        ),
        (
            "/process/rlimits",
            json!([{"type": "RLIMIT_NOFILE", "hard": -1, "soft": 1}]),
            &["process.rlimits[0].hard", "-1", "expected u64"],
        ),
        (
            "/process/env",
            json!(["A=b", large]),
            &["process.env[1]", "1048580 bytes", "at most"],
        ),
        (
            "/mounts/4",
            bind("/../../etc"),
            &["mounts[4].destination", "/../../etc", "below /"],
        ),
        ("/mounts/4", bind("/"), &["mounts[4].destination", "below /"]),
        (
            "/mounts/4",
            bind("/a/../.."),
            &["mounts[4].destination", "/a/../..", "below /"],
        ),
        (
            "/annotations",
            json!({(format!("{resource}swap_in_bytes")): "9223372036854775808"}),
            &["swap_in_bytes", "9223372036854775808", "9223372036854775807"],
        ),
        (
            "/annotations",
            json!({(format!("{resource}swappiness")): "201"}),
            &["swappiness", "201", "200"],
        ),
        (
            "/annotations",
            json!({"io.katacontainers.config.agent.kernel_module": "x"}),
            &["kernel_module", "unknown", "kernel_modules"],
        ),
        (
            "/annotations",
            json!({"io.katacontainers.config.runtime.disable_guest_seccomp": "yes"}),
            &["disable_guest_seccomp", "yes", "true|false"],
        ),
        (
            "/annotations",
            json!({"io.katacontainers.config.hypervisor.default_vcpus": "4294967296"}),
            &["default_vcpus", "enable_annotations"],
        ),
        (
            "/hooks",
            json!({"prestart": [{"path": "/bin/true", "timeout": 0}]}),
            &["hooks.prestart[0].timeout", "0", "above 0"],
        ),
    ];
    for (place, value, words) in cases {
        let bundle = lab.bundle().with(|config| {
            let (parent, key) = place.rsplit_once('/').unwrap();
            let parent = config.pointer_mut(parent).unwrap();
            match parent.as_array_mut() {
                Some(list) => list[key.parse::<usize>().unwrap()] = value.clone(),
                None => parent[key] = value.clone(),
            }
        });
        eprintln!("case {place}: {words:?}");
        refused(&lab, bundle.arg(), words);
    }
    let around = lab.dir().join("around");
    std::os::unix::fs::symlink(&around, &around).unwrap();
    refused(&lab, around.to_str().unwrap(), &["around"]);
}

/// A hook that never ends is killed after its time, whatever it started with it, and ends the create.
#[test]
#[ignore = "needs root"]
fn a_hook_that_never_ends() {
    let lab = Lab::new();
    for kind in ["prestart", "createRuntime", "createContainer"] {
        let name = format!("sh-{}", lab.token());
        let bundle = lab.bundle().with(|config| {
            config["hooks"] = json!({(kind): [{
                "path": "/bin/sh", "timeout": 1,
                "args": [name, "-c", format!("sh -c 'while :; do sleep 600; done' {} & wait", lab.token())]
            }]});
        });
        let words = [
            &format!("hooks.{kind}[0] /bin/sh"),
            "did not end within 1 s",
            "killed",
        ];
        refused(&lab, bundle.arg(), &words);
    }
}

/// What is large or roundabout and still right: a mebibyte of environment, a bundle named by links.
#[test]
#[ignore = "needs a VM"]
fn large_and_roundabout_input() {
    let lab = Lab::new();
    let bundle = lab
        .bundle()
        .script("env | wc -c; cat /mark; echo $LAST")
        .file("/mark", "found ");
    let bundle = bundle.with(|config| {
        let env = config["process"]["env"].as_array_mut().unwrap();
        env.extend((0..1024).map(|n| json!(format!("V{n:04}={}", "x".repeat(1017)))));
        env.push(json!("LAST=one"));
    });
    let (first, second) = (lab.dir().join("first"), lab.dir().join("second"));
    std::os::unix::fs::symlink(bundle.dir(), &first).unwrap();
    std::os::unix::fs::symlink("first", &second).unwrap();
    let id = lab.id();
    let run = lab
        .call(&["run", "--bundle", second.to_str().unwrap(), &id])
        .run()
        .ok();
    let text = run.text();
    let (size, rest) = text.split_once('\n').unwrap();
    assert!(size.parse::<usize>().unwrap() > 1 << 20, "{size}");
    assert_eq!(rest, "found one\n");
}

#[test]
#[ignore = "needs root"]
fn ids_that_are_none() {
    let lab = Lab::new();
    let bundle = lab.bundle();
    let long = "x".repeat(2000);
    for id in ["", "a/b", "/", ".", "..", "../x", "a b", "ä", "a\nb", "$x", &long] {
        let shown = if id.len() > 100 { "2000" } else { id };
        eprintln!("id {shown:?}");
        let words: Vec<&str> = if id.contains('\n') || id.is_empty() {
            vec![]
        } else {
            vec![shown]
        };
        let _ = lab.quick(&["create", "--bundle", bundle.arg(), id]).fails(&words);
        let _ = lab.quick(&["state", id]).fails(&[]);
        let _ = lab.quick(&["delete", id]).fails(&[]);
    }
    assert!(!lab.dir().join("x").exists());
}

/// Every verb says which id it does not know.
#[test]
#[ignore = "needs root"]
fn ids_nobody_knows() {
    let lab = Lab::new();
    let id = lab.id();
    for verb in [
        vec!["state"],
        vec!["start"],
        vec!["kill"],
        vec!["delete"],
        vec!["ps"],
        vec!["pause"],
        vec!["resume"],
        vec!["update", "--pids-limit", "5"],
        vec!["events", "--stats"],
        vec!["inspect"],
        vec!["logs"],
    ] {
        let arguments: Vec<&str> = verb.iter().copied().chain([id.as_str()]).collect();
        let _ = lab.quick(&arguments).exits(1).fails(&[&id, "does not exist"]);
    }
    let _ = lab
        .quick(&["exec", &id, "true"])
        .exits(255)
        .fails(&[&id, "does not exist"]);
    let _ = lab.quick(&["delete", "--force", &id]).ok();
}

#[test]
#[ignore = "needs root"]
fn options_that_cannot_be_honoured() {
    let lab = Lab::new();
    let bundle = lab.bundle();
    let id = lab.id();
    let create = |options: &[&str], words: &[&str]| {
        let mut arguments = vec!["create", "--bundle", bundle.arg()];
        arguments.extend(options);
        arguments.push(&id);
        let _ = lab.quick(&arguments).fails(words);
        lab.assert_clean();
    };
    create(&["--preserve-fds", "1"], &["preserve-fds"]);
    create(&["--preserve-fds", "x"], &["preserve-fds", "x"]);
    create(&["--nosuch"], &["--nosuch"]);
    create(&["--console-socket", "/nonexistent/sock"], &["console"]);
    let _ = lab.quick(&["nosuchverb"]).fails(&["nosuchverb"]);
    let _ = lab.quick(&["kill", &id, "99"]).fails(&[]);
    let _ = lab.quick(&["create", "--bundle", bundle.arg()]).fails(&[]);
    let terminal = lab
        .bundle()
        .with(|config| config["process"]["terminal"] = json!(true));
    let _ = lab
        .quick(&["create", "--bundle", terminal.arg(), &id])
        .fails(&["console"]);
    let _ = lab
        .quick(&[
            "create",
            "--bundle",
            terminal.arg(),
            "--console-socket",
            "/nonexistent/sock",
            &id,
        ])
        .fails(&["/nonexistent/sock"]);
    lab.assert_clean();
}

/// Programs that cannot be run: 127 and 126, in runc's words.
#[test]
#[ignore = "needs a VM"]
fn programs_that_cannot_be_run() {
    let lab = Lab::new();
    let bundle = lab.bundle().file("plain", "text").args(&["nosuch"]);
    let run = |bundle: &Bundle| lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run();
    let _ = run(&bundle)
        .exits(127)
        .fails(&["nosuch", "executable file not found in $PATH"]);
    lab.assert_clean();
    let bundle = bundle.args(&["/plain"]);
    let _ = run(&bundle).exits(126).fails(&["/plain", "permission denied"]);
}

fn write_config(lab: &Lab, kernel: &Path, initrd: &Path, rest: &str) -> String {
    let path = lab.dir().join("bulkhead.toml");
    let text = format!("[hypervisor]\nkernel = {kernel:?}\ninitrd = {initrd:?}\n{rest}\n");
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

fn guest_file(name: &str) -> std::path::PathBuf {
    Lab::config().parent().unwrap().join(name)
}

/// A guest that panics: the error carries the console's last lines and comes long before the boot's deadline.
#[test]
#[ignore = "needs a VM"]
fn a_guest_that_does_not_boot() {
    let lab = Lab::new();
    let bundle = lab.bundle();
    let initrd = lab.dir().join("initrd");
    std::fs::write(&initrd, [0x55; 4096]).unwrap();
    let config = write_config(&lab, &guest_file("vmlinux"), &initrd, "");
    let id = lab.id();
    let outcome = lab
        .call_with(&["--config", &config], &["run", "--bundle", bundle.arg(), &id])
        .run()
        .fails(&[&id, "panic"]);
    assert!(outcome.elapsed < Duration::from_secs(59), "{:?}", outcome.elapsed);
    lab.assert_clean();
    // A kernel that says nothing ends with the boot's deadline.
    let silent = lab.dir().join("vmlinux");
    let mut bytes = std::fs::read(guest_file("vmlinux")).unwrap();
    let entry = pvh_entry(&bytes);
    bytes[entry..entry + 2].copy_from_slice(&[0xeb, 0xfe]);
    std::fs::write(&silent, bytes).unwrap();
    let config = write_config(&lab, &silent, &guest_file("initrd"), "boot_timeout = 3");
    let id = lab.id();
    let outcome = lab
        .call_with(&["--config", &config], &["run", "--bundle", bundle.arg(), &id])
        .run()
        .fails(&[&id, "3 s"]);
    assert!(outcome.elapsed < Duration::from_secs(60), "{:?}", outcome.elapsed);
}

/// File offset of the PVH entry point: its address is in the Xen note of type 18.
fn pvh_entry(elf: &[u8]) -> usize {
    let u64_at =
        |at: usize| usize::try_from(u64::from_le_bytes(elf[at..at + 8].try_into().unwrap())).unwrap();
    let u32_at = |at: usize| u32::from_le_bytes(elf[at..at + 4].try_into().unwrap());
    let headers: Vec<usize> = (0..usize::from(elf[0x38]))
        .map(|n| u64_at(0x20) + n * 56)
        .collect();
    let note = headers.iter().find(|h| u32_at(**h) == 4).expect("a note segment");
    let (start, length) = (u64_at(note + 8), u64_at(note + 32));
    // Header: length of the owner's name, length of the contents, type; then the name.
    let at = (start..start + length)
        .find(|at| u32_at(*at) == 4 && u32_at(at + 8) == 18 && elf[at + 12..].starts_with(b"Xen\0"))
        .expect("a PVH note");
    let address = u32_at(at + 16) as usize;
    let load = headers
        .iter()
        .find(|h| {
            u32_at(**h) == 1 && (u64_at(**h + 24)..u64_at(**h + 24) + u64_at(**h + 32)).contains(&address)
        })
        .expect("a segment with the entry");
    u64_at(load + 8) + address - u64_at(load + 24)
}

#[test]
#[ignore = "needs root"]
fn parts_of_the_host_that_are_missing() {
    let lab = Lab::new();
    let bundle = lab.bundle();
    let run = |config: &str, words: &[&str]| {
        let _ = lab
            .call_with(
                &["--config", config],
                &["run", "--bundle", bundle.arg(), &lab.id()],
            )
            .within(QUICK)
            .run()
            .fails(words);
        lab.assert_clean();
    };
    let (kernel, initrd) = (guest_file("vmlinux"), guest_file("initrd"));
    run(
        &write_config(&lab, &kernel, &initrd, "path = \"/nonexistent/qemu\""),
        &["/nonexistent/qemu"],
    );
    run(
        &write_config(&lab, Path::new("/nonexistent/vmlinux"), &initrd, ""),
        &["/nonexistent/vmlinux", "bulkhead guest build"],
    );
    run(
        &write_config(&lab, &kernel, Path::new("/nonexistent/initrd"), ""),
        &["/nonexistent/initrd", "bulkhead guest build"],
    );
    let garbage = lab.dir().join("garbage");
    std::fs::write(&garbage, [0u8; 8192]).unwrap();
    run(&write_config(&lab, &garbage, &initrd, ""), &[]);
    run(
        &write_config(&lab, &kernel, &initrd, "kernle = \"x\""),
        &["kernle", "kernel"],
    );
    run(
        &write_config(&lab, &kernel, &initrd, "default_vcpus = \"many\""),
        &["default_vcpus"],
    );
    run("/nonexistent/config.toml", &["/nonexistent/config.toml"]);
}

/// A state directory on a full disk.
#[test]
#[ignore = "needs root"]
fn no_space_for_the_state() {
    let lab = Lab::new();
    let full = lab.dir().join("full");
    std::fs::create_dir(&full).unwrap();
    let size = Some("size=64k");
    nix::mount::mount(
        Some("tmpfs"),
        &full,
        Some("tmpfs"),
        nix::mount::MsFlags::empty(),
        size,
    )
    .unwrap();
    // A byte less than full: the directory can be made, its files cannot be written.
    let _ = std::fs::write(full.join("filler"), vec![0u8; 1 << 20]);
    let root = full.join("root");
    let lab = lab.root_at(root.clone());
    let bundle = lab.bundle();
    let _ = lab
        .call(&["run", "--bundle", bundle.arg(), &lab.id()])
        .within(QUICK)
        .run()
        .fails(&["o space left on device"]);
    let sandboxes = std::fs::read_dir(root.join("sandboxes"))
        .map(Iterator::count)
        .unwrap_or(0);
    nix::mount::umount(&full).unwrap();
    assert_eq!(sandboxes, 0);
}

/// Ctrl-C at any moment of a `run` leaves nothing.
#[test]
#[ignore = "needs a VM"]
fn interrupted_at_any_moment() {
    let lab = Lab::new();
    // A program that runs already gets the signal, and ends by it: as process 1 it has to ask for that.
    let bundle = lab
        .bundle()
        .script("trap 'exit 5' INT; echo up; while :; do sleep 0.1; done");
    for after_ms in [0, 5, 20, 60, 150, 400, 1000, 2500] {
        let running = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).start();
        std::thread::sleep(Duration::from_millis(after_ms));
        running.signal(nix::sys::signal::Signal::SIGINT);
        // Between its start and its trap the program loses the signal, as every process 1 does: then it gets another.
        until("it ends, or is up", VERB, || {
            !running.is_running() || running.stdout_so_far().contains("up")
        });
        if running.is_running() {
            running.signal(nix::sys::signal::Signal::SIGINT);
        }
        let outcome = running.wait();
        assert_ne!(outcome.status, 0, "after {after_ms} ms");
        let leaks = lab.leaks();
        assert!(
            leaks.is_empty(),
            "after {after_ms} ms left behind:\n{}",
            leaks.join("\n")
        );
    }
    // While the program runs the signal is the program's.
    let (out_read, out_write) = std::io::pipe().unwrap();
    let running = lab
        .call(&["run", "--bundle", bundle.arg(), &lab.id()])
        .stdout(out_write)
        .start();
    bulkhead_e2e::Lines::of(out_read).expect("up", VERB);
    running.signal(nix::sys::signal::Signal::SIGINT);
    let _ = running.wait().exits(5);
}
