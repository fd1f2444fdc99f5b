//! Sharing files and giving size, on the fake host: order, tolerance, faults (C-07, C-08, C-13, C-20, C-24,
//! C-30 to C-37).

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::{ContainerPlan, FailureKind, SandboxPlan, State, oci};
use bulkhead_sandbox::{SavedSandbox, World};
use serde_json::json;
use support::*;

fn plan_with_room() -> SandboxPlan {
    let mut plan = sandbox_plan("a");
    plan.pod = true;
    plan.vm.max_vcpus = 8;
    plan.vm.base_vcpus = 1;
    plan.vm.base_memory_mib = 256;
    plan.vm.max_memory_mib = 4096;
    plan.vm.memory_slots = 4;
    plan
}

fn limited(name: &str, quota: i64, mib: i64) -> ContainerPlan {
    let mut plan = container_plan(name, name == "a");
    plan.resources = serde_json::from_value(json!({
        "cpu": {"quota": quota, "period": 100_000}, "memory": {"limit": mib << 20, "swappiness": 60}
    }))
    .unwrap();
    plan.share = bulkhead_model::Share::of(Some(quota), Some(100_000), Some(mib << 20));
    plan
}

async fn with_b(bench: &Bench) -> World {
    let mut world = bench.booted(plan_with_room()).await;
    world.create(limited("a", 0, 0), None).await.unwrap();
    world.create(limited("b", 150_000, 300), None).await.unwrap();
    world.start(&id("b")).await.unwrap();
    bench.ledger.take_order();
    world
}

async fn end(bench: &Bench, mut world: World, context: &str) {
    assert_eq!(world.tear_down().await, Vec::<String>::new(), "{context}");
    bench.ledger.assert_empty(context);
}

fn saved(bench: &Bench) -> SavedSandbox {
    SavedSandbox::read(&bench.paths("a").state()).unwrap()
}

/// C-24: hot-added at create, before the agent; the first container's share is in the boot size.
#[tokio::test]
async fn c24_create_gives_the_vm_its_size_before_the_agent() {
    let bench = Bench::new();
    let mut world = bench.booted(plan_with_room()).await;
    world.create(limited("a", 0, 0), None).await.unwrap();
    assert_eq!(bench.ledger.take_order(), ["create_container"]);
    world.create(limited("b", 150_000, 300), None).await.unwrap();
    assert_eq!(
        bench.ledger.take_order(),
        [
            "set_vcpus 3",
            "set_memory 556",
            "online 3 memory=true",
            "create_container"
        ]
    );
    assert_eq!(
        saved(&bench).size.map(|size| (size.vcpus, size.memory_mib)),
        Some((3, 556))
    );
    end(&bench, world, "create").await;
}

/// C-24: a failure of any step fails the create; the VM has its former size then, and nothing stays bound.
#[tokio::test]
async fn c24_a_failed_resize_fails_the_create() {
    for step in ["set_vcpus", "set_memory", "online"] {
        let bench = Bench::new();
        let mut world = bench.booted(plan_with_room()).await;
        world.create(limited("a", 0, 0), None).await.unwrap();
        let mounts = bench.ledger.mounts.lock().unwrap().len();
        bench.faults.fail_at_name(step);
        let error = world.create(limited("b", 150_000, 300), None).await.unwrap_err();
        assert!(error.failure().message.contains(step), "{error}");
        world.rollback(&id("b")).await;
        assert_eq!(bench.ledger.mounts.lock().unwrap().len(), mounts, "{step}");
        let (_, memory, online) = *bench.ledger.size.lock().unwrap();
        assert_eq!((memory, online), (256, 1), "{step}");
        world.create(limited("b", 150_000, 300), None).await.unwrap();
        assert_eq!(bench.ledger.size.lock().unwrap().2, 3, "{step}");
        end(&bench, world, step).await;
    }
}

/// C-13, C-24, C-33: the order of a stop.
#[tokio::test]
async fn c13_c24_c33_stop_in_order() {
    let bench = Bench::new();
    let mut world = with_b(&bench).await;
    world.stop(&id("b"), false).await.unwrap();
    let order = bench.ledger.take_order();
    assert_eq!(order[..2], ["signal 9 all=true", "remove_container"]);
    assert!(
        order[2].starts_with("unmount b-0707070707070707-mnt"),
        "{order:?}"
    );
    assert_eq!(order[3..], ["unmount rootfs", "online 1 memory=false"]);
    assert_eq!(saved(&bench).containers[&id("b")].state, State::Stopped);
    world.stop(&id("b"), false).await.unwrap();
    assert_eq!(bench.ledger.take_order(), Vec::<String>::new(), "already stopped");
    // C-24: the next container has the vCPUs and the memory that are there.
    world.create(limited("c", 150_000, 300), None).await.unwrap();
    let order = bench.ledger.take_order();
    assert_eq!(
        order,
        ["set_vcpus 3", "online 3 memory=false", "create_container"]
    );
    end(&bench, world, "stop").await;
}

/// C-13: SIGKILL and wait never count; without force the first failure ends the stop, with it every step runs
/// and the container is stopped.
#[tokio::test]
async fn c13_tolerance_of_a_stop() {
    for (step, counts) in [("signal", false), ("remove_container", true), ("online", true)] {
        for force in [false, true] {
            let context = format!("{step}, force {force}");
            let bench = Bench::new();
            let mut world = with_b(&bench).await;
            bench.faults.fail_at_name(step);
            let result = world.stop(&id("b"), force).await;
            assert_eq!(result.is_err(), counts && !force, "{context}: {result:?}");
            let order = bench.ledger.take_order();
            if result.is_ok() {
                assert!(
                    order.iter().any(|what| what == "unmount rootfs"),
                    "{context}: {order:?}"
                );
                assert_eq!(
                    saved(&bench).containers[&id("b")].state,
                    State::Stopped,
                    "{context}"
                );
            } else {
                let state = world.container(&id("b")).unwrap().state();
                assert_eq!(state, State::Running, "{context}");
                let unmounted = order.iter().any(|what| what.starts_with("unmount"));
                assert_eq!(unmounted, step == "online", "{context}: {order:?}");
                world.stop(&id("b"), false).await.unwrap();
            }
            end(&bench, world, &context).await;
        }
    }
}

/// C-13, C-33: a mount that does not go is the first failure, the others are tried; the entry stays.
#[tokio::test]
async fn c33_every_host_mount_is_tried() {
    for force in [false, true] {
        let bench = Bench::new();
        let mut world = bench.booted(plan_with_room()).await;
        let mut plan = limited("a", 0, 0);
        let mounts = ["/one", "/two", "/three"].map(|destination| {
            let mut mount = oci::Mount::default();
            mount
                .set_source(Some("/data".into()))
                .set_destination(destination.into())
                .set_typ(Some("bind".into()));
            mount
        });
        plan.spec.set_mounts(Some(mounts.to_vec()));
        world.create(plan, None).await.unwrap();
        bench.ledger.take_order();
        let stuck = bench.paths("a").share().join("a-0707070707070707-two");
        *bench.host.sticky.lock().unwrap() = Some(stuck.clone());
        let result = world.stop(&id("a"), force).await;
        let unmounted: Vec<_> = bench
            .ledger
            .take_order()
            .into_iter()
            .filter_map(|what| what.strip_prefix("unmount ").map(str::to_owned))
            .collect();
        let expected = ["three", "two", "one"].map(|name| format!("a-0707070707070707-{name}"));
        assert_eq!(unmounted[..3], expected);
        assert_eq!(
            unmounted.len(),
            if force { 4 } else { 3 },
            "the rootfs under force only"
        );
        match result {
            Ok(()) => assert!(force),
            Err(error) => {
                assert!(!force);
                assert!(
                    error.failure().message.contains(stuck.to_str().unwrap()),
                    "{error}"
                );
            }
        }
        assert!(bench.ledger.mounts.lock().unwrap().contains(&stuck));
        *bench.host.sticky.lock().unwrap() = None;
        end(&bench, world, "sticky").await;
    }
}

/// C-13: the final save is attempted, and under force only its failure is returned.
#[tokio::test]
async fn c13_only_a_failure_to_record_stopped_is_returned_under_force() {
    let bench = Bench::new();
    let mut world = with_b(&bench).await;
    let state = bench.paths("a").state();
    std::fs::remove_file(&state).unwrap();
    std::fs::create_dir(&state).unwrap();
    let error = world.stop(&id("b"), true).await.unwrap_err();
    assert!(error.failure().message.contains("state.json"), "{error}");
    // C-02: the state in memory stands.
    assert_eq!(world.container(&id("b")).unwrap().state(), State::Stopped);
    std::fs::remove_dir(&state).unwrap();
    end(&bench, world, "save").await;
}

fn resources(json: serde_json::Value) -> oci::LinuxResources {
    serde_json::from_value(json).unwrap()
}

/// C-20: merged, sized, then applied by the agent, without the host's CPU and node numbers.
#[tokio::test]
async fn c20_update_sizes_the_vm_before_the_agent() {
    let bench = Bench::new();
    let mut world = with_b(&bench).await;
    let vanilla = world.container(&id("b")).unwrap().plan.spec.clone();
    let new = resources(json!({
        "cpu": {"quota": 400_000, "cpus": "0-1", "mems": "0", "shares": 7},
        "memory": {"limit": 600 << 20}, "pids": {"limit": 9}
    }));
    world.update(&id("b"), &new).await.unwrap();
    assert_eq!(
        bench.ledger.take_order(),
        ["set_vcpus 5", "set_memory 856", "online 5 memory=true", "update"]
    );
    assert_eq!(
        bench.guest.updates.lock().unwrap()[0],
        json!({"cpu": {"quota": 400_000, "shares": 7}, "memory": {"limit": 600 << 20}, "pids": {"limit": 9}})
    );
    let stored = saved(&bench).containers[&id("b")].plan.clone();
    assert_eq!(
        stored.resources.cpu().as_ref().unwrap().cpus().as_deref(),
        Some("0-1")
    );
    assert_eq!(stored.share.vcpus, 4);
    assert_eq!(stored.spec, vanilla, "C-07: the vanilla spec stays");
    // Less memory is given back, and so are vCPUs.
    let less = resources(json!({"cpu": {"quota": 100_000}, "memory": {"limit": 100 << 20}}));
    world.update(&id("b"), &less).await.unwrap();
    assert_eq!(
        bench.ledger.take_order(),
        ["set_memory 356", "online 2 memory=false", "update"]
    );
    // What has nothing to do with size asks nobody for one.
    world
        .update(&id("b"), &resources(json!({"pids": {"limit": 3}})))
        .await
        .unwrap();
    assert_eq!(bench.ledger.take_order(), ["update"]);
    end(&bench, world, "update").await;
}

/// C-20: a limit below what is in use (beside caches) is an error, and nothing has changed.
#[tokio::test]
async fn c20_memory_below_use_is_refused() {
    let bench = Bench::new();
    let mut world = with_b(&bench).await;
    let low = resources(json!({"memory": {"limit": 39 << 20}, "cpu": {"quota": 500_000}}));
    let error = world.update(&id("b"), &low).await.unwrap_err();
    assert_eq!(error.kind(), FailureKind::FailedPrecondition);
    assert!(
        error.to_string().contains("40894464") && error.to_string().contains("41943040"),
        "{error}"
    );
    assert_eq!(bench.ledger.take_order(), Vec::<String>::new());
    let enough = resources(json!({"memory": {"limit": 41 << 20}}));
    world.update(&id("b"), &enough).await.unwrap();
    end(&bench, world, "below use").await;
}

/// C-20: when VMM or agent refuse, stored resources and size are as before.
#[tokio::test]
async fn c20_a_failed_update_changes_nothing() {
    for step in ["stats", "set_vcpus", "set_memory", "online", "update"] {
        let bench = Bench::new();
        let mut world = with_b(&bench).await;
        let before = world.container(&id("b")).unwrap().plan.clone();
        bench.faults.fail_at_name(step);
        let new = resources(json!({"cpu": {"quota": 400_000}, "memory": {"limit": 600 << 20}}));
        let error = world.update(&id("b"), &new).await.unwrap_err();
        assert!(error.failure().message.contains(step), "{error}");
        assert_eq!(world.container(&id("b")).unwrap().plan, before, "{step}");
        let (_, memory, online) = *bench.ledger.size.lock().unwrap();
        assert_eq!((memory, online), (556, 3), "{step}");
        end(&bench, world, step).await;
    }
}

/// C-07, C-08, O-15: what the agent gets, and that it stays readable.
#[tokio::test]
async fn c07_c08_the_patched_spec_is_what_the_agent_gets() {
    let bench = Bench::new();
    let mut plan = plan_with_room();
    plan.agent.container_pipe_bytes = 1 << 20;
    let mut world = bench.booted(plan).await;
    world.create(limited("a", 0, 0), None).await.unwrap();
    let made = bench.ledger.containers_made.lock().unwrap()[0].clone();
    assert_eq!(made.pipe_bytes, 1 << 20);
    let sent: oci::Spec = serde_json::from_slice(&made.spec).unwrap();
    let memory = sent
        .linux()
        .as_ref()
        .unwrap()
        .resources()
        .as_ref()
        .unwrap()
        .memory()
        .unwrap();
    assert_eq!(memory.swappiness(), Some(60));
    let source = sent.mounts().as_ref().unwrap()[0].source().clone().unwrap();
    assert!(source.starts_with("/run/bulkhead/share"), "{source:?}");
    let kept = saved(&bench).containers[&id("a")].clone();
    assert_eq!(kept.patched.as_deref(), Some(&sent));
    assert_ne!(kept.plan.spec, sent);
    end(&bench, world, "patched").await;
}

/// C-31, C-32, C-35, C-37: storages reach the agent, what they stand for is durable, `watchable` is there.
#[tokio::test]
async fn c32_c35_c37_storages_reach_the_agent() {
    let bench = Bench::new();
    let mut world = bench.booted(plan_with_room()).await;
    let volumes = bench.dir.path().join("volumes");
    let (config, scratch) = (
        volumes.join("kubernetes.io~configmap/cm"),
        volumes.join("kubernetes.io~empty-dir/scratch"),
    );
    std::fs::create_dir_all(&config).unwrap();
    std::fs::create_dir_all(&scratch).unwrap();
    std::fs::write(config.join("key"), "value").unwrap();
    let mut plan = limited("a", 0, 0);
    let mounts = [(&config, "/etc/config"), (&scratch, "/scratch")].map(|(source, destination)| {
        let mut mount = oci::Mount::default();
        mount
            .set_source(Some(source.clone()))
            .set_destination(destination.into())
            .set_typ(Some("bind".into()));
        mount
    });
    plan.spec.set_mounts(Some(mounts.to_vec()));
    world.create(plan, None).await.unwrap();
    let made = bench.ledger.containers_made.lock().unwrap()[0].clone();
    let drivers: Vec<_> = made
        .storages
        .iter()
        .map(|storage| storage.driver.as_str())
        .collect();
    assert_eq!(drivers, ["watchable-bind", "local"]);
    assert!(bench.paths("a").share().join("watchable").is_dir());
    let shares = saved(&bench).containers[&id("a")].shares.clone();
    let host: Vec<_> = shares.iter().map(|share| share.is_bound()).collect();
    assert_eq!(host, [true, true, false]);
    for (share, storage) in shares[1..].iter().zip(&made.storages) {
        assert_eq!(share.guest_path(), std::path::Path::new(&storage.mount_point));
    }
    assert_eq!(
        bench.ledger.mounts.lock().unwrap().len(),
        3,
        "share, rootfs, config map"
    );
    end(&bench, world, "storages").await;
}

/// C-30, C-32: failing at any step of a create with storages names what it was about and leaves nothing.
#[tokio::test]
async fn c30_c32_a_failed_share_is_undone() {
    for step in ["make_guest_dir", "mount_namespace", "bind", "entropy"] {
        let bench = Bench::new();
        let mut world = bench.booted(plan_with_room()).await;
        let config = bench.dir.path().join("kubernetes.io~secret/s");
        std::fs::create_dir_all(&config).unwrap();
        std::fs::write(config.join("key"), "value").unwrap();
        let mut plan = limited("a", 0, 0);
        let mut mount = oci::Mount::default();
        mount
            .set_source(Some(config))
            .set_destination("/etc/secret".into())
            .set_typ(Some("bind".into()));
        plan.spec.set_mounts(Some(vec![mount]));
        bench.faults.fail_at_name(step);
        let error = world.create(plan, None).await.unwrap_err().failure();
        assert!(error.message.contains(step), "{error}");
        if step == "make_guest_dir" {
            assert!(error.message.contains("share/watchable"), "{error}");
        }
        world.rollback(&id("a")).await;
        assert_eq!(
            bench.ledger.mounts.lock().unwrap().len(),
            1,
            "{step}: the share alone"
        );
        end(&bench, world, step).await;
    }
}
