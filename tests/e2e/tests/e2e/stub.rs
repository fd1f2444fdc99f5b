//! The stub: the host process whose pid engines see.

use bulkhead_e2e::{Bundle, Lab, Lines, VERB, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use std::path::{Path, PathBuf};

fn stub_pid(lab: &Lab, id: &str) -> String {
    lab.state(id)["pid"].to_string()
}

fn namespace(pid: &str, kind: &str) -> PathBuf {
    std::fs::read_link(format!("/proc/{pid}/ns/{kind}")).unwrap()
}

fn sleeper(lab: &Lab) -> (Bundle, String) {
    let volume = lab.dir().join("volume");
    std::fs::create_dir_all(&volume).unwrap();
    std::fs::write(volume.join("file"), "in the volume\n").unwrap();
    let bundle = lab
        .bundle()
        .script("exec sleep 600")
        .file("etc/mark", "container\n")
        .with(|config| {
            let mount =
                json!({"destination": "/data", "type": "bind", "source": volume, "options": ["rbind", "ro"]});
            config["mounts"].as_array_mut().unwrap().push(mount);
        });
    std::fs::create_dir_all(bundle.rootfs().join("data")).unwrap();
    let id = lab.id();
    lab.run_detached(&bundle, &id);
    (bundle, id)
}

/// Whoever joins the namespaces of the pid we report lands in the container's view, and nowhere else.
#[test]
#[ignore = "needs a VM"]
fn its_namespaces_show_the_container_only() {
    let lab = Lab::new();
    let (_bundle, id) = sleeper(&lab);
    let pid = stub_pid(&lab, &id);
    for kind in ["mnt", "pid", "ipc", "uts", "net"] {
        assert_ne!(namespace(&pid, kind), namespace("self", kind), "{kind}");
    }
    let enter = |arguments: &[&str]| {
        let mut all = vec!["-t", pid.as_str(), "-m", "-p", "-u", "-i", "-n", "--"];
        all.extend(arguments);
        lab.program("nsenter", &all).run()
    };
    let script = "cat /etc/mark /data/file; hostname; ls /; touch /data/x 2>/dev/null && echo writable";
    let seen = enter(&["/bin/sh", "-c", script]).text();
    assert!(seen.starts_with("container\nin the volume\ninside\n"), "{seen}");
    assert!(!seen.contains("writable"), "{seen}");
    // No host file: neither this test's directory nor the host's own files are there.
    let own = lab.dir().to_str().unwrap().to_owned();
    for host_path in [
        own.as_str(),
        "/var/lib/dpkg",
        "/usr/bin/qemu-system-x86_64",
        "/run/bulkhead",
        "/..",
    ] {
        let _ = enter(&[
            "/bin/sh",
            "-c",
            &format!("test -e {host_path} && test {host_path} != /.."),
        ])
        .exits(1);
    }
    let up = enter(&["/bin/sh", "-c", "cat /../../../../etc/mark"]).ok().text();
    assert_eq!(up, "container\n");
    // No host process: only the stub and whoever entered.
    let processes = enter(&["/bin/sh", "-c", "ls /proc | grep -c '^[0-9]'"]).text();
    let count: usize = processes.trim().parse().unwrap();
    assert!(count <= 5, "{processes}");
    let root_of_one = enter(&["/bin/sh", "-c", "cat /proc/1/root/etc/mark"]).ok().text();
    assert_eq!(root_of_one, "container\n");
    // As `podman cp` and friends look at it.
    let by_root = Path::new("/proc").join(&pid).join("root/etc/mark");
    assert_eq!(std::fs::read_to_string(by_root).unwrap(), "container\n");
    lab.delete(&id);
}

/// SIGKILL to it kills what it stands for, and only that.
#[test]
#[ignore = "needs a VM"]
fn sigkill_to_it() {
    let lab = Lab::new();
    let (_bundle, id) = sleeper(&lab);
    let pid_file = lab.dir().join("pid");
    let arguments = [
        "exec",
        "-d",
        "--pid-file",
        pid_file.to_str().unwrap(),
        &id,
        "sleep",
        "700",
    ];
    let _ = lab.call(&arguments).run().ok();
    let exec: i32 = std::fs::read_to_string(&pid_file).unwrap().parse().unwrap();
    kill(Pid::from_raw(exec), Signal::SIGKILL).unwrap();
    until("the exec process is gone", VERB, || {
        !lab.quick(&["ps", &id]).ok().text().contains("sleep 700")
    });
    assert_eq!(lab.status(&id), "running");
    let stub: i32 = stub_pid(&lab, &id).parse().unwrap();
    kill(Pid::from_raw(stub), Signal::SIGKILL).unwrap();
    until("the container is stopped", VERB, || lab.status(&id) == "stopped");
    let _ = lab.quick(&["delete", &id]).ok();
}

/// A container that closes its standard output early: we see the end of file while it runs on.
#[test]
#[ignore = "needs a VM"]
fn end_of_file_comes_through() {
    let lab = Lab::new();
    let (out_read, out_write) = std::io::pipe().unwrap();
    let bundle = lab
        .bundle()
        .script("echo last words; exec >&-; trap 'exit 4' TERM; while :; do sleep 0.1; done");
    let id = lab.id();
    // Not `run`: in the foreground the verb itself holds its standard output open.
    let _ = lab
        .call(&["create", "--bundle", bundle.arg(), &id])
        .stdout(out_write)
        .run()
        .ok();
    let _ = lab.quick(&["start", &id]).ok();
    assert_eq!(Lines::of(out_read).rest(VERB), ["last words"]);
    assert_eq!(lab.status(&id), "running");
    lab.delete(&id);
}

/// A reader that goes away: the writer in the container gets EPIPE.
#[test]
#[ignore = "needs a VM"]
fn broken_pipe_comes_through() {
    let lab = Lab::new();
    let (out_read, out_write) = std::io::pipe().unwrap();
    let bundle = lab.bundle().script("yes; echo \"yes: $?\" >&2; exit 8");
    let running = lab
        .call(&["run", "--bundle", bundle.arg(), &lab.id()])
        .stdout(out_write)
        .start();
    let mut lines = Lines::of(out_read);
    lines.expect("y", VERB);
    drop(lines);
    let outcome = running.wait().exits(8);
    assert!(outcome.errors().contains("yes: "), "{}", outcome.errors());
}
