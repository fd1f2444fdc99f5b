//! Templates in trouble: a started container or one clear error, and nothing left.

use crate::shop::Shop;
use bulkhead_e2e::{Outcome, VERB, until};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::Value;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A file system of the test's, until it goes.
struct Mounted(PathBuf);

impl Mounted {
    fn new(kind: &str, at: &Path, options: &str) -> Self {
        std::fs::create_dir_all(at).unwrap();
        mount(Some("none"), at, Some(kind), MsFlags::empty(), Some(options)).unwrap();
        Self(at.to_owned())
    }

    fn make_read_only(&self) {
        let flags = MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
        mount(None::<&str>, &self.0, None::<&str>, flags, None::<&str>).unwrap();
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = umount2(&self.0, MntFlags::MNT_DETACH);
    }
}

fn sigkill(pid: i32) {
    let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
}

fn names(dir: &Path) -> Vec<String> {
    let all = std::fs::read_dir(dir).into_iter().flatten().flatten();
    all.map(|entry| entry.file_name().into_string().unwrap())
        .collect()
}

/// One line that says what is wrong, and status 1.
#[track_caller]
fn is_one_clear_error(outcome: Outcome, words: &str) {
    let outcome = outcome.exits(1);
    let errors = outcome.errors();
    assert_eq!(errors.trim_end().lines().count(), 1, "{errors}");
    assert!(errors.contains(words), "{errors}");
}

/// Directories no template can be made in: full, without holes, read-only. Making one is a clear error, a container
/// starts all the same, and its user is told nothing.
#[test]
#[ignore = "needs a VM"]
fn directories_that_do_not_do() {
    let shop = Shop::new("");
    let at = shop.templates.clone();
    let bundle = shop.lab.bundle().script("exit 5");
    let start = || {
        let id = shop.lab.id();
        let outcome = shop.call(&["run", "--bundle", bundle.arg(), &id]).exits(5);
        assert_eq!(outcome.errors(), "");
    };
    {
        let _small = Mounted::new("tmpfs", &at, "size=24m");
        is_one_clear_error(shop.call(&["template", "create"]), "is full");
        let list = shop.list();
        assert!(
            list[0]["condition"]["failed"]
                .as_str()
                .unwrap()
                .contains("is full"),
            "{list:?}"
        );
        let left = names(&at);
        assert!(
            !left.iter().any(|name| name.contains(".new") || name.len() > 45),
            "{left:?}"
        );
        start();
    }
    {
        let _no_holes = Mounted::new("ramfs", &at, "mode=700");
        is_one_clear_error(shop.call(&["template", "create"]), "sparse");
    }
    {
        let fixed = Mounted::new("tmpfs", &at, "size=1m");
        fixed.make_read_only();
        is_one_clear_error(shop.call(&["template", "create"]), "Read-only file system");
        start();
        assert_eq!(names(&at), Vec::<String>::new());
    }
}

/// A start from a template in a directory that has become full and read-only: nothing has to be written there. QEMU
/// killed while it goes on: the container starts, cold, and the template stays. The supervisor killed: a started
/// container or an error, and nothing left. In the end the template still does.
#[test]
#[ignore = "needs a VM"]
fn killed_while_going_on() {
    let shop = Shop::new("");
    let mounted = Mounted::new("tmpfs", &shop.templates.clone(), "mode=700");
    let key = shop.create();
    mounted.make_read_only();
    let bundle = shop.lab.bundle().script("exec sleep 600");
    let from_template = || {
        let id = shop.run(&bundle);
        assert_eq!(shop.provenance(&id)["template"], key.as_str());
        shop.lab.delete(&id);
    };
    from_template();
    let quick = shop.lab.bundle().script("exit 5");
    let kill_when_there = |role: &str| {
        let id = shop.lab.id();
        let running = shop.prepare(&["run", "--bundle", quick.arg(), &id]).start();
        until("the VM is there", VERB, || {
            !shop.lab.marked(&id, "vmm").is_empty()
        });
        let all = shop.lab.marked(&id, role);
        // The one that works is a child of the one that minds it.
        sigkill(*all.iter().max().unwrap());
        let outcome = running.wait();
        let _ = shop.lab.quick(&["delete", "--force", &id]);
        let leaks = shop.lab.leaks();
        assert!(
            leaks.iter().all(|leak| leak.contains(" ro,mode=700")),
            "{leaks:?}"
        );
        outcome
    };
    let cold = kill_when_there("vmm").exits(5);
    assert_eq!(cold.errors(), "");
    assert!(shop.is_ready(), "{:?}", shop.list());
    let outcome = kill_when_there("supervisor");
    let errors = outcome.errors();
    assert!(
        errors.trim_end().lines().count() <= 1 && !errors.contains("panicked"),
        "{errors}"
    );
    from_template();
}

/// A clone whose guest never answers: its memory is somebody else's. The start is cold, once, says so, and the
/// template is replaced.
#[test]
#[ignore = "needs a VM"]
fn a_clone_that_never_answers() {
    let shop = Shop::new("");
    let key = shop.create();
    let place = shop.templates.join(&key).join("manifest.json");
    let mut record: Value = serde_json::from_slice(&std::fs::read(&place).unwrap()).unwrap();
    let memory = PathBuf::from(record["memory"]["path"].as_str().unwrap());
    // Every page the guest used is noughts now, and the record agrees with it.
    let meta = memory.metadata().unwrap();
    std::fs::remove_file(&memory).unwrap();
    let file = std::fs::File::create(&memory).unwrap();
    file.set_len(meta.len()).unwrap();
    file.write_all_at(&[0; 4096], 0).unwrap();
    let meta = file.metadata().unwrap();
    record["memory"]["stamp"] = serde_json::json!({
        "inode": meta.ino(), "bytes": meta.len(),
        "modified": [meta.mtime(), meta.mtime_nsec()], "changed": [meta.ctime(), meta.ctime_nsec()],
    });
    std::fs::write(&place, record.to_string()).unwrap();
    let bundle = shop.lab.bundle().script("exec sleep 600");
    let id = shop.run(&bundle);
    let provenance = shop.provenance(&id);
    assert_eq!(provenance["template"], Value::Null, "{provenance}");
    assert!(
        !provenance["why_cold"].as_str().unwrap().is_empty(),
        "{provenance}"
    );
    let log = shop.call(&["logs", &id]).ok().text();
    assert_eq!(
        log.matches("the template does not do: booting, once").count(),
        1,
        "{log}"
    );
    shop.lab.delete(&id);
    until("the template is replaced", 3 * VERB, || shop.is_ready());
}

/// A maker that is killed while it saves: no half of a template is ever taken for one.
#[test]
#[ignore = "needs a VM"]
fn a_maker_that_is_killed_while_it_saves() {
    let shop = Shop::new("");
    let making = shop.prepare(&["template", "create"]).start();
    let saving = || {
        let all = names(&shop.templates);
        let unfinished = all.into_iter().find(|name| name.ends_with(".new"));
        unfinished.is_some_and(|name| shop.templates.join(name).join("state").exists())
    };
    until("it saves", VERB, saving);
    making.signal(Signal::SIGKILL);
    making.end(Duration::from_secs(30));
    assert!(!shop.is_ready(), "{:?}", shop.list());
    let _ = shop.call(&["gc"]).ok();
    assert_eq!(names(&shop.templates), ["digests.json"]);
}

/// A host, or a pod, that is out of memory: the kernel kills what is largest, while the VM goes on from its template and
/// while it boots in its place. One error, nothing left, and the template as good as before.
#[test]
#[ignore = "needs a VM"]
fn out_of_memory() {
    let shop = Shop::new("");
    let key = shop.create();
    let version_1 = Path::new("/sys/fs/cgroup/memory");
    let (base, limit) = match version_1.is_dir() {
        true => (version_1, "memory.limit_in_bytes"),
        false => (Path::new("/sys/fs/cgroup"), "memory.max"),
    };
    let group = base.join(shop.lab.token());
    std::fs::create_dir(&group).unwrap();
    let bundle = shop.lab.bundle().script("exit 5");
    // So tight that nothing fits; so that all but the VM does.
    for mib in [40, 100] {
        std::fs::write(group.join(limit), (mib << 20).to_string()).unwrap();
        let id = shop.lab.id();
        let line = format!(
            "echo $$ > {}/cgroup.procs; exec {} --root {} --config {} run --bundle {} {id}",
            group.display(),
            bulkhead_e2e::Runtime::Bulkhead.program().display(),
            shop.lab.root().display(),
            shop.config.display(),
            bundle.arg(),
        );
        let outcome = shop.lab.program("sh", &["-c", &line]).within(VERB).run();
        let errors = outcome.errors();
        // The verb itself may have been killed: then it says nothing.
        assert!(
            !errors.contains("panicked") && errors.trim_end().lines().count() <= 1,
            "{errors}"
        );
        assert_ne!(outcome.status, 5, "{mib} MiB do for a VM?");
        let _ = shop.lab.quick(&["delete", "--force", &id]);
        let _ = shop.call(&["gc"]).ok();
        until("nothing is in it", VERB, || {
            std::fs::read_to_string(group.join("cgroup.procs"))
                .unwrap()
                .is_empty()
        });
    }
    std::fs::remove_dir(&group).unwrap();
    shop.lab.assert_clean();
    let id = shop.lab.id();
    let sleeper = shop.lab.bundle().script("exec sleep 600");
    let _ = shop
        .call(&["run", "--detach", "--bundle", sleeper.arg(), &id])
        .ok();
    assert_eq!(shop.provenance(&id)["template"], key.as_str());
    shop.lab.delete(&id);
}
