//! `run` in the foreground: exit status, streams, environment, root file system.

use bulkhead_e2e::{Lab, Lines, Runtime, VERB};
use serde_json::json;
use std::fs::File;
use std::io::Write;

on_both! {
    /// C-12, C-17: the container's exit status is the program's.
    fn exit_status_is_carried_back(lab) {
        let bundle = lab.bundle().script("exit 7");
        let _ = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().exits(7);
    }
}

on_both! {
    /// Standard output and error stay apart, and carry every byte.
    fn streams_are_separate_and_binary_clean(lab) {
        let bytes: Vec<u8> = (0..=255u8).cycle().take(300_000).collect();
        let input = lab.dir().join("input");
        std::fs::write(&input, &bytes).unwrap();
        let bundle = lab.bundle().script("cat; printf 'to err' >&2");
        let outcome = lab
            .call(&["run", "--bundle", bundle.arg(), &lab.id()])
            .stdin(File::open(&input).unwrap())
            .run()
            .ok();
        assert!(outcome.stdout == bytes, "{} bytes came back", outcome.stdout.len());
        assert_eq!(outcome.errors(), "to err");
    }
}

on_both! {
    /// Closing our end of standard input ends the program's input, not its output.
    fn half_close(lab) {
        let (read, mut write) = std::io::pipe().unwrap();
        let (out_read, out_write) = std::io::pipe().unwrap();
        let bundle = lab.bundle().script("echo ready; cat; echo after end of input");
        let running = lab
            .call(&["run", "--bundle", bundle.arg(), &lab.id()])
            .stdin(read)
            .stdout(out_write)
            .start();
        let mut lines = Lines::of(out_read);
        lines.expect("ready", VERB);
        writeln!(write, "one line").unwrap();
        lines.expect("one line", VERB);
        drop(write);
        lines.expect("after end of input", VERB);
        let _ = running.wait().ok();
        assert!(lines.rest(VERB).is_empty());
    }
}

on_both! {
    /// Arguments, environment, working directory, user, host name and pid 1 are the spec's.
    fn process_is_as_the_spec_says(lab) {
        let script = "echo \"$0|$1|$FOO|$(pwd)|$(id -u):$(id -g)|$(hostname)|$$\"";
        let bundle = lab
            .bundle()
            .args(&["sh", "-c", script, "zero", "a b\n'\"$"])
            .with(|config| {
                config["process"]["env"] = json!(["PATH=/bin", "FOO=bär baz"]);
                config["process"]["cwd"] = json!("/tmp");
                config["process"]["user"] = json!({"uid": 1000, "gid": 1000});
            });
        let outcome = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().ok();
        assert_eq!(outcome.text(), "zero|a b\n'\"$|bär baz|/tmp|1000:1000|inside|1\n");
    }
}

on_both! {
    /// What is written in the container is there on the host, and a read-only root is read-only.
    fn rootfs_is_the_bundles(lab) {
        let bundle = lab.bundle().file("etc/greeting", "hello\n").script("cat /etc/greeting > /written");
        let _ = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().ok();
        assert_eq!(std::fs::read_to_string(bundle.rootfs().join("written")).unwrap(), "hello\n");
        let bundle = bundle
            .script("touch /no 2>/dev/null && exit 1; test ! -e /no")
            .with(|config| config["root"]["readonly"] = json!(true));
        let _ = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().ok();
    }
}

on_both! {
    /// M: bind mounts of directories and files, read-only ones too, and a tmpfs.
    fn mounts(lab) {
        let shared = lab.dir().join("shared");
        std::fs::create_dir_all(shared.join("deep")).unwrap();
        std::fs::write(shared.join("deep/file"), "from the host\n").unwrap();
        let single = lab.dir().join("single");
        std::fs::write(&single, "one file\n").unwrap();
        let script = "cat /data/deep/file /one; echo back > /data/answer; \
            touch /ro/x 2>/dev/null && exit 3; cat /ro/deep/file; \
            touch /scratch/x && stat -f -c %T /scratch && exit 0";
        let bundle = lab.bundle().script(script).with(|config| {
            let mounts = config["mounts"].as_array_mut().unwrap();
            mounts.push(json!({"destination": "/data", "type": "bind", "source": shared, "options": ["rbind", "rw"]}));
            mounts.push(json!({"destination": "/ro", "type": "bind", "source": shared, "options": ["rbind", "ro"]}));
            mounts.push(json!({"destination": "/one", "type": "bind", "source": single, "options": ["bind"]}));
            mounts.push(json!({"destination": "/scratch", "type": "tmpfs", "source": "tmpfs",
                "options": ["nosuid", "size=1m"]}));
        });
        let outcome = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().ok();
        assert_eq!(
            outcome.text(),
            "from the host\none file\nfrom the host\ntmpfs\n"
        );
        assert_eq!(std::fs::read_to_string(shared.join("answer")).unwrap(), "back\n");
    }
}

on_both! {
    /// `--pid-file`, `--detach`: the verb returns, the pid stands for the container.
    fn detached(lab) {
        let bundle = lab.bundle().script("sleep 600");
        let (id, pid_file) = (lab.id(), lab.dir().join("pid"));
        let outcome = lab
            .call(&["run", "-d", "--pid-file", pid_file.to_str().unwrap(), "-b", bundle.arg(), &id])
            .run()
            .ok();
        assert_eq!(outcome.text(), "");
        let pid = std::fs::read_to_string(&pid_file).unwrap();
        let state = lab.state(&id);
        assert_eq!(state["pid"].to_string(), pid);
        assert_eq!(state["status"], "running");
        let _ = lab.quick(&["kill", &id, "KILL"]).ok();
        lab.delete(&id);
    }
}

on_both! {
    /// A signal from outside ends a foreground `run` with 128 + n.
    fn killed_from_outside(lab) {
        let (out_read, out_write) = std::io::pipe().unwrap();
        let bundle = lab.bundle().script("echo ready; exec sleep 600");
        let id = lab.id();
        let running = lab.call(&["run", "--bundle", bundle.arg(), &id]).stdout(out_write).start();
        Lines::of(out_read).expect("ready", VERB);
        let _ = lab.quick(&["kill", &id, "SIGKILL"]).ok();
        let _ = running.wait().exits(137);
    }
}

/// A hundred megabytes go in and come out as they were.
#[test]
#[ignore = "needs a VM"]
fn a_hundred_mebibytes_through_cat() {
    let lab = Lab::new();
    let input = lab.dir().join("input");
    let block: Vec<u8> = (0u32..262_144)
        .flat_map(|n| n.wrapping_mul(2_654_435_761).to_le_bytes())
        .collect();
    let mut file = File::create(&input).unwrap();
    for _ in 0..100 {
        file.write_all(&block).unwrap();
    }
    let bundle = lab.bundle().args(&["cat"]);
    let outcome = lab
        .call(&["run", "--bundle", bundle.arg(), &lab.id()])
        .stdin(File::open(&input).unwrap())
        .run()
        .ok();
    assert_eq!(outcome.stdout.len(), 100 << 20);
    assert!(outcome.stdout.chunks(block.len()).all(|chunk| chunk == block));
}

/// The kernel in the container is the guest's, not the host's.
#[test]
#[ignore = "needs a VM"]
fn it_is_a_virtual_machine() {
    let lab = Lab::new();
    let bundle = lab.bundle().args(&["uname", "-r"]);
    let outcome = lab.call(&["run", "--bundle", bundle.arg(), &lab.id()]).run().ok();
    let host = nix::sys::utsname::uname().unwrap();
    assert_ne!(outcome.text().trim(), host.release().to_str().unwrap());
}
