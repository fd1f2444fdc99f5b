//! Templates on a host that only exists in memory: made, used, refused, and every step of it failing once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::snapshot::Provenance;
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{Failure, SandboxPlan};
use bulkhead_sandbox::template::{Condition, Found, Outcome, TemplateKey, TemplateStore, find, make};
use bulkhead_sandbox::{Command, Reply};
use std::path::Path;
use std::time::Duration;
use support::*;

async fn made(bench: &Bench) -> TemplateKey {
    let order = order(&templated_plan(bench, "a"));
    match make(&order, bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap()
    {
        Outcome::Made(key) => key,
        other => panic!("{other:?}"),
    }
}

fn files(dir: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.file_name().into_string().unwrap())
        // The link to whose memories lie there.
        .filter(|name| !name.ends_with(".owner"))
        .collect();
    names.sort();
    names
}

/// What a sandbox says of its start; nothing is left of it then.
async fn life(bench: &Bench, plan: SandboxPlan) -> Result<Provenance, Failure> {
    let result = support::life(bench, plan).await;
    bench.assert_nothing_left("a", "a life");
    result
}

#[tokio::test]
async fn a_start_goes_on_from_a_template_and_grows_to_its_size() {
    let bench = Bench::new();
    let mut large = templated_plan(&bench, "a");
    large.vm.max_vcpus = 4;
    large.vm.max_memory_mib = 1024;
    large.vm.memory_slots = 4;
    large.vm.base_vcpus = 1;
    large.vm.base_memory_mib = 256;
    large.vm.vcpus = 3;
    large.vm.memory_mib = 512;
    large.pod = true;
    let cold = life(&bench, large.clone()).await.unwrap();
    assert_eq!((cold.template, cold.why_cold.is_empty()), (None, false));
    assert_eq!(
        bench.ledger.take_orders(),
        1,
        "a template is ordered once the first container runs"
    );
    let outcome = make(&order(&large), bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap();
    let Outcome::Made(key) = outcome else {
        panic!("{outcome:?}")
    };
    bench.ledger.take_order();
    let warm = life(&bench, large).await.unwrap();
    assert_eq!(warm.template, Some(key.to_string()));
    assert!(bench.faults.reached("restore"));
    let order = bench.ledger.take_order();
    assert!(
        order.contains(&"set_vcpus 3".into()) && order.contains(&"set_memory 512".into()),
        "{order:?}"
    );
    assert_eq!(bench.ledger.take_orders(), 0);
}

#[tokio::test]
async fn templates_can_be_switched_off() {
    let bench = Bench::new();
    made(&bench).await;
    let mut plan = templated_plan(&bench, "a");
    plan.factory.template = false;
    let start = life(&bench, plan).await.unwrap();
    assert_eq!(start.template, None);
    assert_eq!(bench.ledger.take_orders(), 0);
    assert!(!bench.faults.reached("restore"));
}

/// Whatever fails when a saved machine is to go on, the container starts by a boot, once, or there is one error.
#[tokio::test]
async fn a_template_that_does_not_do_is_thrown_away_and_the_start_is_cold() {
    for step in ["restore", "plug", "resume", "connect_guest", "configure"] {
        let bench = Bench::new();
        let key = made(&bench).await;
        bench.faults.fail_at_name(step);
        let start = life(&bench, templated_plan(&bench, "a")).await.unwrap();
        assert_eq!(start.template, None, "{step}");
        assert!(!start.why_cold.is_empty(), "{step}");
        assert_eq!(bench.ledger.take_orders(), 1, "{step}");
        let kept = TemplateStore::of(&templated_plan(&bench, "a").factory).list();
        assert!(kept.is_empty(), "{step}: {key} {kept:?}");
        assert_eq!(
            files(&bench.dir.path().join("memory")),
            Vec::<String>::new(),
            "{step}"
        );
    }
}

#[tokio::test]
async fn every_step_of_a_start_from_a_template_fails_once_and_nothing_is_left() {
    let bench = Bench::new();
    made(&bench).await;
    let before = bench.faults.count();
    life(&bench, templated_plan(&bench, "a")).await.unwrap();
    let steps = bench.faults.count() - before;
    assert!(steps > 20, "only {steps} steps were counted");
    for k in 0..steps {
        let bench = Bench::new();
        made(&bench).await;
        bench.faults.fail_at(k);
        // Nothing is left, whether it started cold or was refused.
        let _ = life(&bench, templated_plan(&bench, "a")).await;
        life(&bench, templated_plan(&bench, "a"))
            .await
            .unwrap_or_else(|e| panic!("retry after step {k}: {e}"));
    }
}

#[tokio::test]
async fn every_step_of_making_one_fails_once_and_nothing_is_left_but_the_reason() {
    let bench = Bench::new();
    made(&bench).await;
    let steps = bench.faults.count();
    assert!(steps > 10, "only {steps} steps were counted");
    for k in 0..steps {
        let bench = Bench::new();
        let plan = templated_plan(&bench, "a");
        bench.faults.fail_at(k);
        let result = make(&order(&plan), bench.host.as_ref(), bench.vmm.as_ref()).await;
        let step = bench.faults.name(k);
        bench.ledger.assert_empty(step);
        if ["rehearse", "keep_share"].contains(&step) {
            // A guest that does not is saved all the same.
            assert_eq!(step == "keep_share", bench.faults.reached("unplug"));
            assert!(matches!(result, Ok(Outcome::Made(_))), "{result:?}");
            continue;
        }
        // `kill` too: it ended all the same, and what it saved is not trusted.
        assert!(result.is_err(), "{step}");
        assert_eq!(
            files(&plan.factory.template_memory),
            Vec::<String>::new(),
            "{step}"
        );
        let kept = TemplateStore::of(&plan.factory).list();
        assert!(
            matches!(&kept[..], [one] if matches!(one.condition, Condition::Failed(_))),
            "{step}: {kept:?}"
        );
        // A start does not ask for another one at once.
        match find(&plan, bench.vmm.as_ref(), Accelerator::Tcg) {
            Found::Absent { order: false, .. } => {}
            other => panic!("{step}: {other:?}"),
        }
        made(&bench).await;
    }
}

#[tokio::test]
async fn one_is_made_however_many_ask() {
    let bench = Bench::new();
    let order = order(&templated_plan(&bench, "a"));
    bench.faults.hang_at(Some("connect_guest"));
    {
        let mut first = Box::pin(make(&order, bench.host.as_ref(), bench.vmm.as_ref()));
        while !bench.faults.reached("connect_guest") {
            tokio::select! {
                biased;
                done = &mut first => panic!("{done:?}"),
                () = tokio::task::yield_now() => {}
            }
        }
        let second = make(&order, bench.host.as_ref(), bench.vmm.as_ref())
            .await
            .unwrap();
        assert!(matches!(second, Outcome::BeingMade(_)), "{second:?}");
        let store = TemplateStore::of(&order.factory);
        assert_eq!(store.list()[0].condition, Condition::BeingMade);
        assert_eq!(
            store.collect(|_| Ok(())),
            (Vec::new(), Vec::new()),
            "gc leaves a live maker alone"
        );
    }
    // The first went away in the middle, as by kill -9: its files are still there.
    assert_eq!(files(&order.factory.template_memory).len(), 1);
    let store = TemplateStore::of(&order.factory);
    let ended = std::cell::Cell::new(0);
    let (removed, left) = store.collect(|mark| {
        assert!(mark.starts_with("t-"), "{mark}");
        ended.set(ended.get() + 1);
        Ok(())
    });
    assert_eq!((removed.len(), left.len(), ended.get()), (1, 0, 1));
    assert_eq!(files(&order.factory.template_memory), Vec::<String>::new());
    assert_eq!(files(&order.factory.template_path), ["digests.json"]);
    bench.faults.hang_at(None);
    made(&bench).await;
    let again = make(&order, bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap();
    assert!(matches!(again, Outcome::Present(_)), "{again:?}");
}

fn edit(place: &Path, change: fn(&mut serde_json::Value)) {
    let manifest = place.join("manifest.json");
    let mut record = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    change(&mut record);
    std::fs::write(&manifest, record.to_string()).unwrap();
}

#[tokio::test]
async fn damage_is_found_before_a_vm_is_started() {
    type Harm = fn(&Path, &Path);
    let harms: [(&str, Harm); 7] = [
        ("a memory of the same length, of another machine", |_, memory| {
            let bytes = memory.metadata().unwrap().len();
            std::fs::remove_file(memory).unwrap();
            let file = std::fs::File::create(memory).unwrap();
            file.set_len(bytes).unwrap();
        }),
        ("of another form", |place, _| {
            edit(place, |record| record["form"] = 99.into())
        }),
        ("another's record", |place, _| {
            edit(place, |record| record["key"] = "0".repeat(32).into())
        }),
        ("a memory cut short", |_, memory| {
            let file = std::fs::OpenOptions::new().write(true).open(memory).unwrap();
            file.set_len(4096).unwrap();
        }),
        ("no memory", |_, memory| std::fs::remove_file(memory).unwrap()),
        ("another state", |place, _| {
            std::fs::remove_file(place.join("state")).unwrap();
            std::fs::write(place.join("state"), "wrong").unwrap();
        }),
        ("half a manifest", |place, _| {
            std::fs::write(place.join("manifest.json"), "{\"form\":").unwrap()
        }),
    ];
    for (what, harm) in harms {
        let bench = Bench::new();
        let key = made(&bench).await;
        let plan = templated_plan(&bench, "a");
        let memory = &plan.factory.template_memory;
        harm(
            &plan.factory.template_path.join(key.as_str()),
            &memory.join(&files(memory)[0]),
        );
        match find(&plan, bench.vmm.as_ref(), Accelerator::Tcg) {
            Found::Absent { order: true, why } => assert!(!why.is_empty()),
            other => panic!("{what}: {other:?}"),
        }
        assert!(!plan.factory.template_path.join(key.as_str()).exists(), "{what}");
        let start = life(&bench, plan).await.unwrap();
        assert_eq!(start.template, None, "{what}");
        assert!(!bench.faults.reached("restore"), "{what}");
        made(&bench).await;
        assert!(
            life(&bench, templated_plan(&bench, "a"))
                .await
                .unwrap()
                .template
                .is_some(),
            "{what}"
        );
    }
}

/// Both directories may be one: the lock of a maker is no memory that can go.
#[tokio::test]
async fn one_directory_for_everything_does() {
    let bench = Bench::new();
    let mut plan = templated_plan(&bench, "a");
    plan.factory
        .template_memory
        .clone_from(&plan.factory.template_path);
    let order = order(&plan);
    bench.faults.hang_at(Some("save"));
    let mut making = Box::pin(make(&order, bench.host.as_ref(), bench.vmm.as_ref()));
    while !bench.faults.reached("save") {
        tokio::select! {
            biased;
            done = &mut making => panic!("{done:?}"),
            () = tokio::task::yield_now() => {}
        }
    }
    let second = make(&order, bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap();
    assert!(matches!(second, Outcome::BeingMade(_)), "{second:?}");
    drop(making);
    bench.faults.hang_at(None);
    bench.ledger.processes.lock().unwrap().clear();
    let made = make(&order, bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap();
    assert!(matches!(made, Outcome::Made(_)), "{made:?}");
    assert!(life(&bench, plan).await.unwrap().template.is_some());
}

#[tokio::test]
async fn gc_keeps_what_is_of_use_and_removes_what_is_stale() {
    let bench = Bench::new();
    let key = made(&bench).await;
    let plan = templated_plan(&bench, "a");
    let store = TemplateStore::of(&plan.factory);
    assert_eq!(store.collect(|_| Ok(())), (Vec::new(), Vec::new()));
    assert_eq!(store.list().len(), 1);
    // Its kernel is another one now.
    let manifest = plan
        .factory
        .template_path
        .join(key.as_str())
        .join("manifest.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&manifest).unwrap()).unwrap();
    record["assets"][1]["sha256"] = "0".repeat(64).into();
    std::fs::write(&manifest, record.to_string()).unwrap();
    assert_eq!(store.collect(|_| Ok(())), (vec![key], Vec::new()));
    assert_eq!(files(&plan.factory.template_memory), Vec::<String>::new());
    assert_eq!(files(&plan.factory.template_path), ["digests.json"]);
}

/// Two configurations with one directory for the memories, and the same machine: what one does to its template is nothing
/// to the other's. What a store that is gone has left there goes.
#[tokio::test]
async fn stores_with_one_directory_of_memories_leave_each_others_alone() {
    let bench = Bench::new();
    let ours = templated_plan(&bench, "a");
    let mut theirs = templated_plan(&bench, "b");
    theirs.factory.template_path = bench.dir.path().join("theirs");
    let [our_store, their_store] = [&ours, &theirs].map(|plan| TemplateStore::of(&plan.factory));
    let mut keys = Vec::new();
    for plan in [&ours, &theirs] {
        let made = make(&order(plan), bench.host.as_ref(), bench.vmm.as_ref())
            .await
            .unwrap();
        let Outcome::Made(key) = made else {
            panic!("{made:?}")
        };
        keys.push(key);
    }
    assert_eq!(keys[0], keys[1]);
    let memories = || files(&ours.factory.template_memory).len();
    assert_eq!(memories(), 2);
    assert_eq!(their_store.collect(|_| Ok(())), (Vec::new(), Vec::new()));
    assert_eq!(memories(), 2);
    our_store.destroy(&keys[0]);
    assert_eq!(memories(), 1);
    assert_eq!(our_store.collect(|_| Ok(())), (vec![keys.remove(0)], Vec::new()));
    assert!(life(&bench, theirs.clone()).await.unwrap().template.is_some());

    std::fs::remove_dir_all(&theirs.factory.template_path).unwrap();
    assert_eq!(our_store.collect(|_| Ok(())), (Vec::new(), Vec::new()));
    let left: Vec<_> = std::fs::read_dir(&ours.factory.template_memory)
        .unwrap()
        .collect();
    assert!(left.is_empty(), "{left:?}");
}

#[tokio::test]
async fn a_directory_that_cannot_be_had_is_an_error_of_the_maker_only() {
    let bench = Bench::new();
    let mut plan = templated_plan(&bench, "a");
    // A file where the directory should be.
    std::fs::write(bench.dir.path().join("file"), "").unwrap();
    plan.factory.template_path = bench.dir.path().join("file/templates");
    assert!(
        make(&order(&plan), bench.host.as_ref(), bench.vmm.as_ref())
            .await
            .is_err()
    );
    bench.ledger.assert_empty("no directory");
    let start = life(&bench, plan).await.unwrap();
    assert_eq!(start.template, None);
}

/// Killed at whatever step, a maker leaves what the next maker, or gc, takes away.
#[tokio::test]
async fn a_maker_that_is_killed_at_any_step_is_in_nobodys_way() {
    for step in ["launch", "resume", "connect_guest", "save"] {
        let bench = Bench::new();
        let order = order(&templated_plan(&bench, "a"));
        bench.faults.hang_at(Some(step));
        {
            let mut making = Box::pin(make(&order, bench.host.as_ref(), bench.vmm.as_ref()));
            while !bench.faults.reached(step) {
                tokio::select! {
                    biased;
                    done = &mut making => panic!("{step}: {done:?}"),
                    () = tokio::task::yield_now() => {}
                }
            }
        }
        bench.faults.hang_at(None);
        assert_eq!(files(&order.factory.template_memory).len(), 1, "{step}");
        let start = life_beside(&bench, templated_plan(&bench, "a")).await;
        assert_eq!(start.template, None, "{step}: half of one is none");
        made(&bench).await;
        assert_eq!(files(&order.factory.template_memory).len(), 1, "{step}");
        assert_eq!(
            TemplateStore::of(&order.factory).list()[0].condition,
            Condition::Ready,
            "{step}"
        );
        assert!(
            !files(&order.factory.template_path)
                .iter()
                .any(|name| name.ends_with(".new")),
            "{step}"
        );
    }
}

/// [`life`] while something else holds things on the host.
async fn life_beside(bench: &Bench, plan: SandboxPlan) -> bulkhead_model::snapshot::Provenance {
    let (handle, engine) = bench.sandbox_of(plan);
    create(&handle, "a", true).await.unwrap();
    call(&handle, Command::Start { id: id("a") }).await.unwrap();
    let Reply::Snapshot { snapshot } = call(&handle, Command::Snapshot).await.unwrap() else {
        panic!("no snapshot")
    };
    remove(&handle, "a").await.unwrap();
    assert_eq!(engine.await.unwrap(), Vec::<String>::new());
    snapshot.provenance
}

#[tokio::test]
async fn a_vmm_that_was_upgraded_makes_a_cold_start_and_a_template_of_its_own() {
    let bench = Bench::new();
    let mut plan = templated_plan(&bench, "a");
    let vmm = bench.dir.path().join("vmm");
    plan.vm.hypervisor.clone_from(&vmm);
    let install = |from: &str| {
        // As a package manager does: another file by the same name.
        let new = bench.dir.path().join("vmm.new");
        std::fs::copy(from, &new).unwrap();
        std::fs::rename(&new, &vmm).unwrap();
    };
    install("/bin/sh");
    let order = order(&plan);
    let make = || make(&order, bench.host.as_ref(), bench.vmm.as_ref());
    let Outcome::Made(before) = make().await.unwrap() else {
        panic!("made")
    };
    install("/bin/cat");
    assert_eq!(life(&bench, plan.clone()).await.unwrap().template, None);
    assert_eq!(bench.ledger.take_orders(), 1);
    let Outcome::Made(after) = make().await.unwrap() else {
        panic!("made anew")
    };
    assert_ne!(before, after);
    let store = TemplateStore::of(&plan.factory);
    assert_eq!(store.collect(|_| Ok(())), (vec![before], Vec::new()));
    assert_eq!(store.list().len(), 1);
}

/// The host's clock is set forward, and back: each guest is told what the host's says when it starts.
#[tokio::test]
async fn clocks_that_jump() {
    let bench = Bench::new();
    made(&bench).await;
    for now in [1_000_000_000_000_000_000, 3_000_000_000_000_000_000, 5] {
        bench.host.clock.store(now, std::sync::atomic::Ordering::SeqCst);
        assert!(
            life(&bench, templated_plan(&bench, "a"))
                .await
                .unwrap()
                .template
                .is_some()
        );
        let told = bench.ledger.identities.lock().unwrap().last().unwrap().time_ns;
        assert_eq!(told, now);
    }
    // Files that are, by such a clock, of a time to come: of use, and in nobody's way.
    let plan = templated_plan(&bench, "a");
    let store = TemplateStore::of(&plan.factory);
    let key = store.list()[0].key.clone();
    let to_come = std::time::SystemTime::now() + Duration::from_secs(400 * 24 * 3600);
    let touch = |path: std::path::PathBuf| {
        let file = std::fs::File::create(path).unwrap();
        file.set_modified(to_come).unwrap();
    };
    touch(plan.factory.template_path.join(key.as_str()).join("used"));
    assert_eq!(store.collect(|_| Ok(())), (Vec::new(), Vec::new()));
    store.destroy(&key);
    touch(plan.factory.template_path.join(format!("{key}.failed")));
    match find(&plan, bench.vmm.as_ref(), Accelerator::Tcg) {
        Found::Absent { order: true, .. } => {}
        other => panic!("a failure of next year holds nothing up: {other:?}"),
    }
}

/// Killed while it goes on, as by a host that is out of memory: the start is cold, and the template is still good.
#[tokio::test]
async fn a_vmm_that_is_killed_does_not_cost_the_template() {
    let bench = Bench::new();
    let key = made(&bench).await;
    bench.vmm.kill_next_restore();
    let start = life(&bench, templated_plan(&bench, "a")).await.unwrap();
    assert_eq!(start.template, None);
    assert!(start.why_cold.contains("Signal(9)"), "{start:?}");
    assert_eq!(bench.ledger.take_orders(), 0);
    let start = life(&bench, templated_plan(&bench, "a")).await.unwrap();
    assert_eq!(start.template, Some(key.to_string()));
}

/// The cold start that takes the place of one from a template fails as well: one error, no third try.
#[tokio::test]
async fn a_start_is_retried_once() {
    let bench = Bench::new();
    made(&bench).await;
    let before = bench.faults.count();
    bench.faults.fail_each(&["restore", "launch"]);
    let refused = life(&bench, templated_plan(&bench, "a")).await.unwrap_err();
    assert!(refused.message.contains("injected into launch"), "{refused}");
    let starts = (before..bench.faults.count())
        .filter(|k| ["restore", "launch"].contains(&bench.faults.name(*k)))
        .count();
    assert_eq!(starts, 2);
}

/// A guest that takes its time has its clock set again, with nothing else, until it is right or has been tried enough.
#[tokio::test]
async fn the_clock_is_set_until_it_is_right() {
    use std::sync::atomic::Ordering::SeqCst;
    let bench = Bench::new();
    made(&bench).await;
    let mut told = Vec::new();
    for tick in [1_000_000, 20_000_000] {
        bench.ledger.identities.lock().unwrap().clear();
        bench.host.tick.store(tick, SeqCst);
        let mut plan = templated_plan(&bench, "a");
        plan.hostname = Some("name".into());
        assert!(life(&bench, plan).await.unwrap().template.is_some());
        told.push(std::mem::take(&mut *bench.ledger.identities.lock().unwrap()));
    }
    assert_eq!((told[0].len(), told[1].len()), (1, 4));
    for pair in told[1].windows(2) {
        assert_eq!(pair[1].time_ns, pair[0].time_ns + 20_000_000);
        assert!(pair[1].hostname.is_empty() && pair[1].entropy.is_empty() && pair[1].storages.is_empty());
    }
    assert_eq!(told[1][0].hostname, "name");
}

/// As the last one, but the connection's end is seen first.
#[tokio::test]
async fn a_vm_that_is_killed_while_its_agent_is_waited_for_does_not_cost_the_template() {
    let bench = Bench::new();
    let key = made(&bench).await;
    bench
        .host
        .kill_vm
        .store(true, std::sync::atomic::Ordering::SeqCst);
    let start = life(&bench, templated_plan(&bench, "a")).await.unwrap();
    assert_eq!(start.template, None);
    assert!(start.why_cold.contains("Signal(9)"), "{start:?}");
    let start = life(&bench, templated_plan(&bench, "a")).await.unwrap();
    assert_eq!(start.template, Some(key.to_string()));
}
