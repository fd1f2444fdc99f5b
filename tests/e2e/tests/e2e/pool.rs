//! VMs that wait: taken once, replaced, drained, whoever is killed.

use crate::shop::Shop;
use bulkhead_e2e::{VERB, until};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use std::path::Path;
use std::time::Duration;

/// Pids of those that wait for the only template.
fn waiting(shop: &Shop) -> Vec<i64> {
    let list = shop.list();
    let all = list.first().map(|one| one["waiting"].as_array().unwrap().clone());
    let pid = |one: &Value| one["process"]["pid"].as_i64().unwrap();
    all.unwrap_or_default().iter().map(pid).collect()
}

fn runs(pid: i64) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    !stat.is_empty() && !stat.contains(") Z ")
}

/// Directories of pools whose templates are this shop's.
fn pools(shop: &Shop) -> Vec<String> {
    let all = std::fs::read_dir("/run/bulkhead/pool")
        .into_iter()
        .flatten()
        .flatten();
    let ours = |dir: &Path| {
        let owner = std::fs::read_to_string(dir.join("owner")).unwrap_or_default();
        owner.contains(shop.templates.to_str().unwrap())
    };
    all.filter(|entry| ours(&entry.path()))
        .map(|entry| entry.path().display().to_string())
        .collect()
}

fn vmm_of(shop: &Shop, id: &str) -> i64 {
    i64::from(shop.lab.pid_of(id, "vmm"))
}

/// Two starts at once take two VMs, each with an identity of its own; what they took is replaced; a supervisor that is
/// killed is replaced as well, mounts and all; in the end nothing waits.
#[test]
#[ignore = "needs a VM"]
fn o21_two_at_once_take_two_and_a_third_goes_on_by_itself() {
    let shop = Shop::new("pool = 2\n");
    let key = shop.create();
    let ready = waiting(&shop);
    assert_eq!(ready.len(), 2, "{:?}", shop.list());
    assert!(shop.call(&["template", "list"]).ok().text().contains("  2  "));
    // A mount made when the VM was already there is in the container all the same.
    let volume = shop.lab.dir().join("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("word"), "late").unwrap();
    let script = "cat /proc/sys/kernel/random/uuid; hostname; cat /v/word; echo; exec sleep 600";
    let started: Vec<_> = ["one", "two"]
        .map(|name| {
            let bundle = shop.lab.bundle().script(script).with(|config| {
                config["hostname"] = name.into();
                config["mounts"].as_array_mut().unwrap().push(json!({
                    "destination": "/v", "type": "bind", "source": volume, "options": ["rbind"]
                }));
            });
            let (id, out) = (shop.lab.id(), shop.lab.dir().join(name));
            let file = std::fs::File::create(&out).unwrap();
            let run = ["run", "--detach", "--bundle", bundle.arg(), &id];
            let running = shop.prepare(&run).stdout(file).start();
            (id, out, running, name, bundle)
        })
        .into_iter()
        .collect();
    let mut ids = Vec::new();
    let mut words = Vec::new();
    for (id, out, running, name, _bundle) in started {
        let _ = running.wait().ok();
        let text = || std::fs::read_to_string(&out).unwrap();
        until("the container spoke", VERB, || text().lines().count() == 3);
        let lines: Vec<String> = text().lines().map(str::to_owned).collect();
        assert_eq!((lines[1].as_str(), lines[2].as_str()), (name, "late"));
        words.push(lines[0].clone());
        let provenance = shop.provenance(&id);
        assert_eq!(
            (&provenance["pool"], &provenance["template"]),
            (&json!(true), &json!(key)),
            "{provenance}"
        );
        assert!(ready.contains(&vmm_of(&shop, &id)));
        ids.push(id);
    }
    assert_ne!(words[0], words[1]);
    assert_ne!(vmm_of(&shop, &ids[0]), vmm_of(&shop, &ids[1]));
    // Those that take their place were started for nobody, and hold nothing of a sandbox.
    until("they are replaced", 3 * VERB, || waiting(&shop).len() == 2);
    let next = waiting(&shop);
    assert!(next.iter().all(|pid| !ready.contains(pid)));
    let here = std::fs::read_link("/proc/self/ns/mnt").unwrap();
    for pid in &next {
        assert_eq!(std::fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap(), here);
    }
    // A successor finds the mounts, and makes more.
    kill(
        Pid::from_raw(shop.lab.pid_of(&ids[0], "supervisor")),
        Signal::SIGKILL,
    )
    .unwrap();
    let again = shop.call(&["exec", &ids[0], "cat", "/v/word"]).ok();
    assert_eq!(again.text(), "late");
    assert_eq!(shop.provenance(&ids[0])["pool"], true);
    for id in &ids {
        shop.lab.delete(id);
    }
    assert_eq!(
        shop.call(&["template", "drain"]).ok().text(),
        format!("{key} 2\n")
    );
    assert!(
        next.iter().all(|pid| !runs(*pid)) && pools(&shop).is_empty(),
        "{:?}",
        pools(&shop)
    );
    shop.lab.assert_clean();
    // Nothing waits any more: from the template.
    let bundle = shop.lab.bundle().script("exec sleep 600");
    let id = shop.run(&bundle);
    let provenance = shop.provenance(&id);
    assert_eq!(
        (&provenance["pool"], &provenance["template"]),
        (&Value::Null, &json!(key))
    );
    until("some wait again", 3 * VERB, || waiting(&shop).len() == 2);
    shop.lab.delete(&id);
    // With its template a pool goes.
    let last = waiting(&shop);
    let _ = shop.call(&["template", "destroy", &key]).ok();
    assert!(last.iter().all(|pid| !runs(*pid)) && pools(&shop).is_empty());
}

/// Who fills it is killed; one that waits is killed; a supervisor is killed while it takes one: what there is of VMs is
/// either a sandbox's or waits, and gc leaves neither.
#[test]
#[ignore = "needs a VM"]
fn whoever_is_killed_no_waiting_vm_is_lost() {
    let shop = Shop::new("");
    shop.create();
    let text = std::fs::read_to_string(&shop.config).unwrap();
    std::fs::write(&shop.config, format!("{text}pool = 1\n")).unwrap();
    // The filler, once its VM is there.
    let filling = shop.prepare(&["template", "create"]).start();
    let marked = || {
        let pool = pools(&shop).pop().unwrap_or_default();
        let mark = format!("p-{}-", pool.rsplit('/').next().unwrap_or("none"));
        let all = bulkhead_host::process::marked(None).unwrap();
        all.into_iter()
            .filter(|(.., value)| mark.len() > 4 && value.starts_with(&mark))
            .map(|(pid, ..)| i64::from(pid))
            .collect::<Vec<_>>()
    };
    until("a VM is made", VERB, || !marked().is_empty());
    filling.signal(Signal::SIGKILL);
    filling.end(Duration::from_secs(30));
    let orphan = marked();
    assert!(waiting(&shop).len() <= 1);
    let _ = shop.call(&["template", "create"]).ok();
    let ready = waiting(&shop);
    assert_eq!(ready.len(), 1);
    assert!(
        orphan == ready || orphan.iter().all(|pid| !runs(*pid)),
        "{orphan:?} {ready:?}"
    );
    // One that waits.
    kill(Pid::from_raw(i32::try_from(ready[0]).unwrap()), Signal::SIGKILL).unwrap();
    until("it is gone", VERB, || !runs(ready[0]));
    assert_eq!(waiting(&shop), Vec::<i64>::new());
    let bundle = shop.lab.bundle().script("exit 5");
    let _ = shop
        .call(&["run", "--bundle", bundle.arg(), &shop.lab.id()])
        .exits(5);
    until("it is replaced", 3 * VERB, || waiting(&shop).len() == 1);
    // The supervisor that takes it.
    let ready = waiting(&shop);
    let id = shop.lab.id();
    let running = shop.prepare(&["run", "--bundle", bundle.arg(), &id]).start();
    until("it is taken", VERB, || waiting(&shop) != ready);
    for pid in shop.lab.marked(&id, "supervisor") {
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = running.wait();
    let _ = shop.lab.quick(&["delete", "--force", &id]);
    let text = std::fs::read_to_string(&shop.config).unwrap();
    std::fs::write(&shop.config, text.replace("pool = 1", "pool = 0")).unwrap();
    let _ = shop.call(&["gc"]).ok();
    until("a filler has seen it", VERB, || {
        let _ = shop.call(&["gc"]).ok();
        pools(&shop).is_empty() && marked().is_empty()
    });
    assert!(!runs(ready[0]));
    shop.lab.assert_clean();
}
