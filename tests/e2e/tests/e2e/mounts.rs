//! Mounts and volumes: what is shared, what is the guest's own, what changes under a watcher (C-30 to C-37).
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bulkhead_e2e::{Bundle, Lab, VERB, until};
use serde_json::{Value, json};
use std::io::Write;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

fn bind(source: &Path, destination: &str, options: &[&str]) -> Value {
    json!({"destination": destination, "type": "bind", "source": source, "options": options})
}

fn with_mounts(bundle: Bundle, mounts: Vec<Value>) -> Bundle {
    bundle.with(|config| config["mounts"].as_array_mut().unwrap().extend(mounts))
}

/// A directory in the lab.
fn directory(lab: &Lab, path: &str) -> PathBuf {
    let path = lab.dir().join(path);
    std::fs::create_dir_all(&path).unwrap();
    path
}

/// Marks a bundle as the sandbox of a pod, or as a container in the pod of `sandbox`.
pub(crate) fn in_pod(bundle: Bundle, kind: &str, sandbox: &str) -> Bundle {
    bundle.with(|config| {
        config["annotations"] = json!({
            "io.kubernetes.cri.container-type": kind, "io.kubernetes.cri.sandbox-id": sandbox
        });
    })
}

/// Output of a shell script in a running container.
#[track_caller]
pub(crate) fn inside(lab: &Lab, id: &str, script: &str) -> String {
    let outcome = lab.call(&["exec", id, "sh", "-c", script]).run().ok();
    outcome.text().trim_end().to_owned()
}

/// C-30, C-31: directories and files are shared, `ro` holds inside, a later mount wins, /proc is the guest's own.
#[test]
#[ignore = "needs a VM"]
fn c30_c31_bind_mounts() {
    let lab = Lab::new();
    let (one, two) = (directory(&lab, "one"), directory(&lab, "two"));
    std::fs::write(one.join("name"), "one").unwrap();
    std::fs::write(two.join("name"), "two").unwrap();
    let file = lab.dir().join("file");
    std::fs::write(&file, "contents").unwrap();
    let linked = lab.dir().join("linked");
    symlink(&two, &linked).unwrap();
    let mounts = vec![
        bind(&one, "/data", &["rbind"]),
        bind(&two, "/data", &["rbind"]),
        bind(&one, "/readonly", &["rbind", "ro"]),
        bind(&file, "/etc/file", &["bind"]),
        bind(&linked, "/linked", &["bind"]),
        bind(Path::new("/proc/version"), "/version", &["bind"]),
    ];
    let script = "cat /data/name /readonly/name /etc/file /linked/name; echo; \
        echo new > /data/new; echo no > /readonly/new 2> /dev/null || echo refused; \
        test \"$(cat /version)\" = \"$(cat /proc/version)\" && echo own";
    let bundle = with_mounts(lab.bundle().script(script), mounts);
    let id = lab.id();
    let text = lab
        .call(&["run", "--bundle", bundle.arg(), &id])
        .run()
        .ok()
        .text();
    assert_eq!(text, "twoonecontentstwo\nrefused\nown\n");
    assert_eq!(std::fs::read_to_string(two.join("new")).unwrap(), "new\n");
    assert!(!one.join("new").exists());
}

/// C-30: a source that is not there, or that is the sandbox's own directory, is named; nothing stays.
#[test]
#[ignore = "needs a VM"]
fn c30_sources_that_cannot_be() {
    let lab = Lab::new();
    let absent = lab.dir().join("absent");
    let loop_link = lab.dir().join("loop");
    symlink(&loop_link, &loop_link).unwrap();
    for source in [&absent, &loop_link] {
        let bundle = with_mounts(lab.bundle(), vec![bind(source, "/x", &["rbind"])]);
        let id = lab.id();
        let stat = format!("stat {}", source.display());
        let run = lab.call(&["run", "--bundle", bundle.arg(), &id]).run();
        let _ = run.fails(&["error mounting", "to rootfs at", &stat]);
        lab.assert_clean();
    }
}

/// C-30: the host's root with all its mounts, twice: the share is not in it.
#[test]
#[ignore = "needs a VM"]
fn c30_the_hosts_root_does_not_bring_the_share_along() {
    let lab = Lab::new();
    let id = lab.id();
    let marker = directory(&lab, "marker");
    let script = format!(
        "for at in /a /b; do test -d $at{0} && echo there; ls $at/run/bulkhead/s/*/share 2> /dev/null; done; true",
        marker.display()
    );
    let root = Path::new("/");
    let mounts = vec![
        bind(root, "/a", &["rbind", "ro"]),
        bind(root, "/b", &["rbind", "ro"]),
    ];
    let bundle = with_mounts(lab.bundle().script(&script), mounts);
    let text = lab
        .call(&["run", "--bundle", bundle.arg(), &id])
        .run()
        .ok()
        .text();
    // Names of mount points are there, nothing is in them.
    assert_eq!(text.matches("there").count(), 2, "{text}");
    assert!(!text.contains("busybox"), "{text}");
}

/// What the kubelet writes: a dated directory, `..data` to it, and a link through `..data` for each key.
fn publish(volume: &Path, date: &str, content: &str) {
    std::fs::create_dir(volume.join(date)).unwrap();
    std::fs::write(volume.join(date).join("key"), content).unwrap();
    symlink(date, volume.join("..data_tmp")).unwrap();
    std::fs::rename(volume.join("..data_tmp"), volume.join("..data")).unwrap();
    if !volume.join("key").exists() {
        symlink("..data/key", volume.join("key")).unwrap();
    }
}

fn watcher(bundle: Bundle) -> Bundle {
    with_program(bundle, env!("CARGO_BIN_EXE_watcher"), "/watcher")
}

/// Puts a program and the libraries it was linked with into a bundle.
pub(crate) fn with_program(bundle: Bundle, program: &str, at: &str) -> Bundle {
    let bundle = bundle.file(at, std::fs::read(program).unwrap());
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(bundle.rootfs().join(at.trim_start_matches('/')), mode).unwrap();
    let listed = std::process::Command::new("ldd").arg(program).output().unwrap();
    let listed = String::from_utf8(listed.stdout).unwrap();
    let libraries = listed.split_whitespace().filter(|word| word.starts_with('/'));
    libraries.fold(bundle, |bundle, library| {
        let bundle = bundle.file(library, std::fs::read(library).unwrap());
        let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
        std::fs::set_permissions(bundle.rootfs().join(&library[1..]), mode).unwrap();
        bundle
    })
}

/// C-32: inotify fires in the container when a config map is swapped, and what is read then is the new content.
#[test]
#[ignore = "needs a VM"]
fn c32_inotify_sees_a_config_map_change() {
    let lab = Lab::new();
    let volume = directory(&lab, "volumes/kubernetes.io~configmap/settings");
    publish(&volume, "..2026_1", "first");
    let bundle = with_mounts(
        watcher(lab.bundle()).args(&["/watcher", "/etc/settings"]),
        vec![bind(&volume, "/etc/settings", &["rbind", "ro"])],
    );
    let id = lab.id();
    let running = lab.call(&["run", "--bundle", bundle.arg(), &id]).start();
    until("the watch began", VERB, || {
        running.stdout_so_far().contains("watching")
    });
    assert_eq!(inside(&lab, &id, "cat /etc/settings/key"), "first");
    publish(&volume, "..2026_2", "second");
    std::fs::remove_dir_all(volume.join("..2026_1")).unwrap();
    until("the old one went", VERB, || {
        running.stdout_so_far().contains("..2026_1")
    });
    assert_eq!(inside(&lab, &id, "cat /etc/settings/key"), "second");
    let seen = running.stdout_so_far();
    let at = |word: &str| seen.find(word).unwrap_or_else(|| panic!("{word}: {seen}"));
    assert!(
        at("..2026_2") < at("..data") && at("..data") < at("..2026_1"),
        "{seen}"
    );
    assert_eq!(
        inside(&lab, &id, "touch /etc/settings/x 2> /dev/null || echo refused"),
        "refused"
    );
    lab.delete(&id);
    running.end(VERB);
}

/// C-34, C-35, O-06: the containers of a pod share empty-dirs and /dev/shm, which are the guest's own; one that
/// goes does not take them along.
#[test]
#[ignore = "needs a VM"]
fn c34_c35_a_pod_shares_empty_dirs_and_shm() {
    let lab = Lab::new();
    let scratch = directory(&lab, "volumes/kubernetes.io~empty-dir/scratch");
    let memory = directory(&lab, "volumes/kubernetes.io~empty-dir/memory");
    let shm = directory(&lab, "shm");
    let tmpfs = |at: &Path, size: &str| {
        let none = nix::mount::MsFlags::empty();
        nix::mount::mount(Some("t"), at, Some("tmpfs"), none, Some(size)).unwrap();
    };
    tmpfs(&memory, "size=4m");
    tmpfs(&shm, "size=8m");
    let make = |kind: &str, sandbox: &str| {
        let mut bundle = lab.bundle().script("exec sleep 600").with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.retain(|mount| mount["destination"] != "/dev/shm");
        });
        bundle = in_pod(bundle, kind, sandbox);
        with_mounts(
            bundle,
            vec![
                bind(&scratch, "/scratch", &["rbind"]),
                bind(&memory, "/memory", &["rbind"]),
                bind(&shm, "/dev/shm", &["rbind"]),
            ],
        )
    };
    let (pod, second) = (lab.id(), lab.id());
    lab.run_detached(&make("sandbox", &pod), &pod);
    lab.run_detached(&make("container", &pod), &second);
    let write = "for at in /scratch /memory /dev/shm; do echo $0 > $at/from; done";
    inside(
        &lab,
        &second,
        &format!("{write}; df -k /memory /dev/shm > /tmp/df"),
    );
    let sizes = inside(&lab, &second, "awk '/\\/memory|\\/dev\\/shm/ {print $2}' /tmp/df");
    assert_eq!(sizes.split_whitespace().collect::<Vec<_>>(), ["4096", "8192"]);
    assert_eq!(
        inside(&lab, &pod, "ls /scratch/from /memory/from /dev/shm/from | wc -l"),
        "3"
    );
    for at in [&scratch, &memory, &shm] {
        assert_eq!(
            std::fs::read_dir(at).unwrap().count(),
            0,
            "{at:?} is not the host's"
        );
    }
    lab.delete(&second);
    assert_eq!(
        inside(&lab, &pod, "ls /scratch/from /memory/from /dev/shm/from | wc -l"),
        "3"
    );
    lab.delete(&pod);
    for at in [&memory, &shm] {
        nix::mount::umount(at.as_path()).unwrap();
    }
}

/// C-33: a container that goes takes its mounts out of the share; the pod goes on.
#[test]
#[ignore = "needs a VM"]
fn c33_a_container_takes_its_mounts_along() {
    let lab = Lab::new();
    let data = directory(&lab, "data");
    let (pod, second) = (lab.id(), lab.id());
    lab.run_detached(
        &in_pod(lab.bundle().script("exec sleep 600"), "sandbox", &pod),
        &pod,
    );
    let mounts = |lab: &Lab| {
        let supervisor = lab.pid_of(&pod, "supervisor");
        let table = std::fs::read_to_string(format!("/proc/{supervisor}/mountinfo")).unwrap();
        table.lines().filter(|line| line.contains(&second)).count()
    };
    for _ in 0..2 {
        let bundle = in_pod(lab.bundle().script("exec sleep 600"), "container", &pod);
        let bundle = with_mounts(bundle, vec![bind(&data, "/data", &["rbind"])]);
        lab.run_detached(&bundle, &second);
        inside(&lab, &second, "echo x > /data/x; cat /data/x");
        assert!(mounts(&lab) >= 2);
        lab.delete(&second);
        assert_eq!(mounts(&lab), 0);
        assert_eq!(lab.status(&pod), "running");
    }
    lab.delete(&pod);
}

/// A container with two thousand mounts starts and goes; what it took is taken back at once.
#[test]
#[ignore = "needs a VM"]
fn two_thousand_mounts() {
    let lab = Lab::new();
    let data = directory(&lab, "data");
    std::fs::write(data.join("x"), "x").unwrap();
    let mounts = (0..2000)
        .map(|n| bind(&data, &format!("/m/{n}"), &["bind"]))
        .collect();
    let bundle = with_mounts(
        lab.bundle()
            .script("cat /m/0/x /m/1999/x; grep -c /m/ /proc/mounts"),
        mounts,
    );
    let id = lab.id();
    let text = lab
        .call(&["run", "--bundle", bundle.arg(), &id])
        .within(VERB * 2)
        .run()
        .ok()
        .text();
    assert_eq!(text, "xx2000\n");
}

/// Bytes the daemon of a sandbox has read so far, proc(5).
fn read_by_daemon(lab: &Lab, id: &str) -> u64 {
    let io = std::fs::read_to_string(format!("/proc/{}/io", lab.pid_of(id, "fsd"))).unwrap();
    let line = io.lines().find_map(|line| line.strip_prefix("rchar: "));
    line.unwrap().parse().unwrap()
}

/// A program stays in the guest's memory from one start to the next, until it changes on the host.
#[test]
#[ignore = "needs a VM"]
fn programs_are_read_once_and_seen_to_change() {
    let lab = Lab::new();
    let programs = directory(&lab, "programs");
    let [binary, script] = ["busybox", "script"].map(|name| programs.join(name));
    std::fs::copy("/bin/busybox", &binary).unwrap();
    std::fs::write(&script, "#!/bin/sh\necho one\n").unwrap();
    std::fs::set_permissions(&script, PermissionsExt::from_mode(0o755)).unwrap();
    let bundle = with_mounts(
        lab.bundle().script("exec sleep 600"),
        vec![bind(&programs, "/programs", &["ro"])],
    );
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    // Until then it may change once more without its times changing.
    let settled = |path: &Path| {
        let changed = Duration::new(path.metadata().unwrap().ctime().cast_unsigned(), 0);
        until("its times are old", VERB, || {
            SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap()
                > changed + Duration::from_secs(4)
        });
    };
    let start = || {
        let before = read_by_daemon(&lab, &id);
        let _ = lab.call(&["exec", &id, "/programs/busybox", "true"]).run().ok();
        read_by_daemon(&lab, &id) - before
    };
    settled(&script);
    let first = start();
    assert!(first > 100_000, "{first}");
    let second = start();
    assert!(second * 4 < first, "{first}, then {second}");
    std::fs::OpenOptions::new()
        .append(true)
        .open(&binary)
        .unwrap()
        .write_all(b"x")
        .unwrap();
    let third = start();
    assert!(third * 2 > first, "{first}, then {third} when it had changed");

    let says = || inside(&lab, &id, "/programs/script");
    assert_eq!([says(), says()], ["one", "one"]);
    std::fs::write(&script, "#!/bin/sh\necho two\n").unwrap();
    assert_eq!(says(), "two");
    // Of the same length, and right after it was read.
    std::fs::write(&script, "#!/bin/sh\necho six\n").unwrap();
    assert_eq!(says(), "six");
    settled(&script);
    assert_eq!([says(), says()], ["six", "six"]);
    std::fs::write(&script, "#!/bin/sh\necho ten\n").unwrap();
    assert_eq!(says(), "ten");
    lab.delete(&id);
}
