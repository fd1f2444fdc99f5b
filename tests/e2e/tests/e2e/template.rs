//! Templates: clones that are clones, and differ where they must; damage; makers that are killed.

use crate::options::guest_has_9p;
use crate::shop::Shop;
use bulkhead_e2e::{VERB, until};
use serde_json::Value;
use std::time::{Duration, SystemTime};

fn now() -> f64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap();
    since.as_secs_f64()
}

/// Two sandboxes from one template: the nonce that lives only in its memory is in both; identity, randomness and time
/// are their own. A supervisor that is killed is replaced, and the VM grows from the template's size. Its initial RAM disk
/// was written just before, as by an installation.
#[test]
#[ignore = "needs a VM"]
fn two_clones_are_clones_and_differ() {
    let shop = Shop::new("");
    let text = std::fs::read_to_string(&shop.config).unwrap();
    let initrd = text.lines().find_map(|line| line.strip_prefix("initrd = "));
    let initrd = initrd.unwrap().trim_matches('"').to_owned();
    let fresh = shop.lab.dir().join("initrd");
    std::fs::write(&shop.config, text.replace(&initrd, fresh.to_str().unwrap())).unwrap();
    std::fs::copy(initrd, fresh).unwrap();
    let key = shop.call(&["template", "create"]).ok().text();
    let key = key.split(' ').next().unwrap().to_owned();
    let made = shop.list();
    assert_eq!(made.len(), 1);
    assert_eq!(
        (made[0]["key"].as_str(), &made[0]["condition"]),
        (Some(key.as_str()), &Value::from("ready"))
    );
    let script = "head -c 16 /dev/urandom | od -An -tx1; cat /proc/sys/kernel/random/uuid; hostname; \
        sleep 0.2; exec sleep 600";
    let mut words = Vec::new();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let bundle = shop
            .lab
            .bundle()
            .script(script)
            .with(|config| config["hostname"] = name.into());
        let id = shop.lab.id();
        let out = shop.lab.dir().join(name);
        let file = std::fs::File::create(&out).unwrap();
        let config = shop.config.to_str().unwrap();
        let run = ["run", "--detach", "--bundle", bundle.arg(), &id];
        let _ = shop
            .lab
            .call_with(&["--config", config], &run)
            .stdout(file)
            .within(VERB)
            .run()
            .ok();
        let text = || std::fs::read_to_string(&out).unwrap();
        until("the container spoke", VERB, || text().lines().count() == 3);
        let provenance = shop.provenance(&id);
        assert_eq!(provenance["template"], key.as_str(), "{provenance}");
        assert_eq!(provenance["boot_nonce"], made[0]["manifest"]["boot_nonce"]);
        assert_eq!(provenance["boot_nonce"].as_str().unwrap().len(), 32);
        words.push(text().lines().map(str::to_owned).collect::<Vec<_>>());
        ids.push(id);
    }
    for (one, two) in words[0].iter().zip(&words[1]) {
        assert_ne!(one, two);
    }
    assert_eq!((words[0][2].as_str(), words[1][2].as_str()), ("one", "two"));
    // Their guests knew the share: none had to find it.
    for id in &ids {
        let timeline = shop.call(&["timeline", "--format", "json", id]).ok().text();
        let timeline: Value = serde_json::from_str(&timeline).unwrap();
        let operations = timeline["operations"].as_array().unwrap().iter();
        let mut spans = operations.flat_map(|operation| operation["spans"].as_array().unwrap());
        assert!(
            spans.any(|span| span["name"] == "give its device back"),
            "{timeline:#}"
        );
    }
    // The wall clock: what the guest says lies between what the host says before and after.
    let before = now();
    let told = shop.call(&["exec", &ids[1], "busybox", "adjtimex"]).ok().text();
    let after = now();
    let number = |name: &str| -> f64 {
        let line = told.lines().find(|line| line.contains(name)).unwrap();
        line.split_whitespace().last().unwrap().parse().unwrap()
    };
    let told = number("time.tv_sec") + number("time.tv_usec") / 1e6;
    assert!(
        (before - 0.01..after + 0.01).contains(&told),
        "{before} {told} {after}"
    );
    // Monotonic time went on from the template's, it did not jump to the host's; timers fire.
    let up = shop
        .call(&["exec", &ids[1], "cut", "-d.", "-f1", "/proc/uptime"])
        .ok()
        .text();
    assert!(up.trim().parse::<u64>().unwrap() < 600, "{up}");
    let _ = shop.call(&["exec", &ids[1], "sleep", "0.1"]).ok();
    // A fresh supervisor takes a clone over.
    let supervisor = shop.lab.pid_of(&ids[0], "supervisor");
    nix::sys::signal::kill(
        nix::unistd::Pid::from_raw(supervisor),
        nix::sys::signal::Signal::SIGKILL,
    )
    .unwrap();
    assert_eq!(
        shop.call(&["exec", &ids[0], "echo", "still here"]).ok().text(),
        "still here\n"
    );
    assert_eq!(shop.provenance(&ids[0])["template"], key.as_str());
    for id in &ids {
        shop.lab.delete(id);
    }
    assert_eq!(
        shop.call(&["template", "destroy", &key]).ok().text(),
        format!("{key}\n")
    );
    assert!(shop.list().is_empty());
}

/// With virtio-9p, two clones map the memory of their template, and each has a directory of its own; what they write
/// stays theirs. A guest kernel that has no 9p says so after a template as after a boot.
#[test]
#[ignore = "needs a VM"]
fn clones_over_9p_map_their_template_and_serve_their_own_files() {
    let shop = Shop::of("shared_fs = \"virtio-9p\"", "");
    let key = shop.create();
    let memory = || {
        let list = shop.list();
        let path = list[0]["manifest"]["memory"]["path"].as_str().unwrap().to_owned();
        let sum = shop.lab.program("sha256sum", &[&path]).run().ok().text();
        (path, sum)
    };
    let (path, before) = memory();
    let mut ids = Vec::new();
    for name in ["one", "two"] {
        let bundle = shop.lab.bundle().script("exec sleep 600");
        std::fs::write(bundle.rootfs().join("name"), name).unwrap();
        let id = shop.lab.id();
        let run = shop.call(&["run", "--detach", "--bundle", bundle.arg(), &id]);
        if !guest_has_9p() {
            let _ = run.fails(&["9p", "the guest's kernel"]);
            return;
        }
        let _ = run.ok();
        assert_eq!(shop.provenance(&id)["template"], key.as_str());
        assert_eq!(shop.call(&["exec", &id, "cat", "/name"]).ok().text(), name);
        let fill = "head -c 20000000 /dev/urandom > /dev/filled";
        let _ = shop.call(&["exec", &id, "sh", "-c", fill]).ok();
        let maps = std::fs::read_to_string(format!("/proc/{}/maps", shop.lab.pid_of(&id, "vmm"))).unwrap();
        let mapped = maps.lines().find(|line| line.ends_with(&path)).unwrap();
        assert!(mapped.contains("rw-p"), "{mapped}");
        ids.push(id);
    }
    assert_eq!(memory().1, before);
    for id in &ids {
        shop.lab.delete(id);
    }
}

/// The first start is cold and has a template made; a memory cut short makes a cold start again, and a new template.
#[test]
#[ignore = "needs a VM"]
fn a_cold_start_has_a_template_made_and_a_damaged_one_is_replaced() {
    let shop = Shop::new("");
    let bundle = shop.lab.bundle().script("exec sleep 600");
    let started = |words: &str| {
        let id = shop.lab.id();
        let _ = shop
            .call(&["run", "--detach", "--bundle", bundle.arg(), &id])
            .ok();
        let provenance = shop.provenance(&id);
        let why = provenance["why_cold"].as_str().unwrap_or_default().to_owned();
        assert!(why.contains(words), "{provenance}");
        shop.lab.delete(&id);
        provenance["template"].is_string()
    };
    let ready = || shop.list().iter().any(|one| one["condition"] == "ready");
    assert!(!started("no template"));
    until("a template is made", 3 * VERB, ready);
    assert!(started(""));
    let memory = std::fs::read_dir(&shop.templates)
        .unwrap()
        .map(|entry| entry.unwrap().path())
        .max_by_key(|path| path.metadata().unwrap().len())
        .unwrap();
    std::fs::OpenOptions::new()
        .write(true)
        .open(&memory)
        .unwrap()
        .set_len(1 << 20)
        .unwrap();
    assert!(!started("length"));
    until("the template is replaced", 3 * VERB, ready);
    assert!(started(""));
}

/// `template = "off"`, and a directory that cannot be made: cold, and nothing is said to the user.
#[test]
#[ignore = "needs a VM"]
fn without_a_template_a_start_is_cold() {
    let off = Shop::new("template = \"off\"\n");
    let bundle = off.lab.bundle().script("exec sleep 600");
    let id = off.lab.id();
    let _ = off.call(&["run", "--detach", "--bundle", bundle.arg(), &id]).ok();
    let provenance = off.provenance(&id);
    assert!(
        provenance["why_cold"].as_str().unwrap().contains("switched off"),
        "{provenance}"
    );
    off.lab.delete(&id);
    assert!(!off.templates.exists());
    std::fs::write(&off.templates, "no directory").unwrap();
    let text = std::fs::read_to_string(&off.config)
        .unwrap()
        .replace("\"off\"", "\"on\"");
    std::fs::write(&off.config, text).unwrap();
    let quick = off.lab.bundle().script("exit 5");
    let outcome = off
        .call(&["run", "--bundle", quick.arg(), &off.lab.id()])
        .exits(5);
    assert_eq!(outcome.errors(), "");
}

/// A maker that is killed while its VM boots: gc ends the VM and removes its files.
#[test]
#[ignore = "needs a VM"]
fn a_maker_that_is_killed_leaves_nothing_after_gc() {
    let shop = Shop::new("");
    let config = shop.config.to_str().unwrap();
    let making = shop
        .lab
        .call_with(&["--config", config], &["template", "create"])
        .start();
    let dir = shop.templates.clone();
    let memory = || {
        let all = std::fs::read_dir(&dir).into_iter().flatten().flatten();
        all.map(|entry| entry.path()).find(|path| {
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            name.len() == 32 + 1 + 8 + 16
                && path
                    .metadata()
                    .is_ok_and(|meta| std::os::unix::fs::MetadataExt::blocks(&meta) > 0)
        })
    };
    until("its VM boots", VERB, || memory().is_some());
    making.signal(nix::sys::signal::Signal::SIGKILL);
    making.end(Duration::from_secs(30));
    let vms = || {
        let all = bulkhead_host::process::marked(None).unwrap();
        let path = memory();
        all.into_iter()
            .filter(|(pid, ..)| {
                let fd = std::fs::read_link(format!("/proc/{pid}/fd/7"));
                fd.ok().is_some_and(|fd| Some(fd) == path)
            })
            .count()
    };
    assert_eq!(vms(), 1, "the VM outlives its maker");
    let _ = shop.call(&["gc"]).ok();
    assert_eq!(vms(), 0);
    assert_eq!(memory(), None);
    let left: Vec<_> = std::fs::read_dir(&shop.templates)
        .unwrap()
        .flatten()
        .map(|e| e.file_name())
        .collect();
    assert_eq!(left, ["digests.json"]);
}
