//! VMs that wait, on a host that only exists in memory: filled, taken, drained, and every step of it failing once.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::snapshot::Provenance;
use bulkhead_model::{Failure, SandboxPlan};
use bulkhead_sandbox::template::{Outcome, Pool, TemplateStore, fill, make};
use support::*;

/// A plan that wants two VMs to wait.
fn plan(bench: &Bench) -> SandboxPlan {
    let mut plan = templated_plan(bench, "a");
    bench
        .ledger
        .seeds_differ
        .store(true, std::sync::atomic::Ordering::SeqCst);
    plan.factory.pool = 2;
    plan.factory.pool_path = bench.dir.path().join("pool");
    plan
}

/// The pool of the one template of `plan`, which is made.
async fn pool(bench: &Bench, plan: &SandboxPlan) -> Pool {
    let made = make(&order(plan), bench.host.as_ref(), bench.vmm.as_ref()).await;
    let (Outcome::Made(key) | Outcome::Present(key)) = made.unwrap() else {
        panic!("made")
    };
    TemplateStore::of(&plan.factory).pool(&key)
}

async fn filled(bench: &Bench, plan: &SandboxPlan) -> u32 {
    fill(&order(plan), bench.host.as_ref(), bench.vmm.as_ref())
        .await
        .unwrap()
}

fn waiting(bench: &Bench, pool: &Pool) -> usize {
    use bulkhead_sandbox::Platform;
    pool.waiting(|process| bench.host.runs(process)).len()
}

/// Ends all that wait; nothing of it is left.
fn drained(bench: &Bench, plan: &SandboxPlan, pool: &Pool) -> usize {
    let ended = pool
        .drain(&|marker| {
            bench.ledger.end_marked(marker);
            Ok(())
        })
        .unwrap();
    bench.ledger.assert_empty("drained");
    let left = std::fs::read_dir(&plan.factory.pool_path).into_iter().flatten();
    assert_eq!(left.count(), 0);
    ended
}

/// What a sandbox says of its start.
async fn life(bench: &Bench, plan: &SandboxPlan) -> Result<Provenance, Failure> {
    support::life(bench, plan.clone()).await
}

#[tokio::test]
async fn a_start_takes_one_that_waits_and_has_it_replaced() {
    let bench = Bench::new();
    let plan = plan(&bench);
    let pool = pool(&bench, &plan).await;
    assert_eq!(filled(&bench, &plan).await, 2);
    assert_eq!(filled(&bench, &plan).await, 0, "as many as are wanted");
    assert_eq!(waiting(&bench, &pool), 2);
    assert_eq!(
        TemplateStore::of(&plan.factory).list()[0]
            .manifest
            .as_ref()
            .unwrap()
            .memory_mib,
        plan.vm.memory_mib
    );
    for left in [1, 0] {
        let before = bench.faults.count();
        let start = life(&bench, &plan).await.unwrap();
        assert!(start.pool && start.template.is_some(), "{start:?}");
        let steps: Vec<_> = (before..bench.faults.count())
            .map(|k| bench.faults.name(k))
            .collect();
        assert!(
            !steps.contains(&"restore") && !steps.contains(&"launch"),
            "{steps:?}"
        );
        assert_eq!(waiting(&bench, &pool), left);
        assert_eq!(bench.ledger.take_orders(), 1);
    }
    let start = life(&bench, &plan).await.unwrap();
    assert!(
        !start.pool && start.template.is_some(),
        "none is left to take: {start:?}"
    );
    assert_eq!(filled(&bench, &plan).await, 2);
    assert_eq!(drained(&bench, &plan, &pool), 2);
}

#[tokio::test]
async fn only_the_same_machine_is_taken_and_none_without_the_option() {
    let bench = Bench::new();
    let mut plan = plan(&bench);
    let pool = pool(&bench, &plan).await;
    filled(&bench, &plan).await;
    plan.factory.pool = 0;
    assert!(!life(&bench, &plan).await.unwrap().pool);
    assert_eq!(bench.ledger.take_orders(), 0);
    assert_eq!(waiting(&bench, &pool), 2);
    assert_eq!(filled(&bench, &plan).await, 0);
    assert_eq!(waiting(&bench, &pool), 0, "an order of none ends those that wait");
    assert_eq!(drained(&bench, &plan, &pool), 0);
}

/// Two want the same one: one of them gets it.
#[tokio::test]
async fn a_vm_is_taken_once() {
    let bench = Bench::new();
    let mut plan = plan(&bench);
    plan.factory.pool = 1;
    let pool = pool(&bench, &plan).await;
    filled(&bench, &plan).await;
    let seen = pool.waiting(|_| true);
    assert!(seen[0].claim("one").unwrap());
    assert!(!seen[0].claim("two").unwrap());
    assert!(seen[0].claimed("one").join("qmp").exists());
    assert_eq!(waiting(&bench, &pool), 0);
    // What is being taken is no longer the pool's.
    assert_eq!(pool.drain(&|_| panic!("nobody's")).unwrap(), 0);
    assert!(!life(&bench, &plan).await.unwrap().pool);
}

#[tokio::test]
async fn every_step_of_taking_one_fails_once_and_nothing_is_left() {
    let bench = Bench::new();
    let plan = plan(&bench);
    pool(&bench, &plan).await;
    filled(&bench, &plan).await;
    let before = bench.faults.count();
    assert!(life(&bench, &plan).await.unwrap().pool);
    let steps = bench.faults.count() - before;
    assert!(steps > 20, "only {steps} steps were counted");
    for k in 0..steps {
        let bench = Bench::new();
        let plan = self::plan(&bench);
        let pool = pool(&bench, &plan).await;
        filled(&bench, &plan).await;
        bench.faults.fail_at(k);
        // It started some other way, or was refused.
        let _ = life(&bench, &plan).await;
        bench.faults.fail_each(&[]);
        let again = life(&bench, &plan).await;
        again.unwrap_or_else(|error| panic!("after step {k}: {error}"));
        drained(&bench, &plan, &pool);
    }
}

/// One that waits does not do: the template does, and stays.
#[tokio::test]
async fn a_waiting_vm_that_does_not_do_is_ended_and_the_template_is_used() {
    for step in ["adopt", "hold", "plug", "resume", "connect_guest", "configure"] {
        let bench = Bench::new();
        let plan = plan(&bench);
        let pool = pool(&bench, &plan).await;
        filled(&bench, &plan).await;
        bench.faults.fail_at_name(step);
        let start = life(&bench, &plan).await.unwrap();
        assert!(!start.pool && start.template.is_some(), "{step}: {start:?}");
        assert_eq!(waiting(&bench, &pool), 1, "{step}");
        drained(&bench, &plan, &pool);
    }
}

#[tokio::test]
async fn every_step_of_filling_fails_once_and_nothing_is_left() {
    let bench = Bench::new();
    let plan = plan(&bench);
    pool(&bench, &plan).await;
    let before = bench.faults.count();
    filled(&bench, &plan).await;
    let steps = bench.faults.count() - before;
    assert!(steps > 20, "only {steps} steps were counted");
    for k in 0..steps {
        let bench = Bench::new();
        let plan = self::plan(&bench);
        let pool = pool(&bench, &plan).await;
        let now = bench.faults.count();
        bench.faults.fail_at(k);
        let outcome = fill(&order(&plan), bench.host.as_ref(), bench.vmm.as_ref()).await;
        let step = bench.faults.name(now + k);
        let optional = ["pool_cgroup", "rehearse"].contains(&step);
        assert_eq!(outcome.is_err(), !optional, "{step}: {outcome:?}");
        let there = bench.ledger.processes.lock().unwrap().len();
        assert_eq!(
            there,
            waiting(&bench, &pool),
            "{step}: those that run are those that wait"
        );
        drained(&bench, &plan, &pool);
        assert_eq!(filled(&bench, &plan).await, 2, "{step}");
        drained(&bench, &plan, &pool);
    }
}

/// As by kill -9: what is half made is ended by the next who fills, or drains.
#[tokio::test]
async fn a_filler_that_is_killed_leaves_nothing_for_long() {
    for step in ["restore", "resume", "connect_guest", "halt"] {
        for drains in [false, true] {
            let bench = Bench::new();
            let plan = plan(&bench);
            let pool = pool(&bench, &plan).await;
            bench.faults.hang_at(Some(step));
            {
                let order = order(&plan);
                let mut filling = Box::pin(fill(&order, bench.host.as_ref(), bench.vmm.as_ref()));
                let from = bench.faults.count();
                while !(from..bench.faults.count()).any(|k| bench.faults.name(k) == step) {
                    tokio::select! {
                        biased;
                        done = &mut filling => panic!("{step}: {done:?}"),
                        () = tokio::task::yield_now() => {}
                    }
                }
                // Somebody fills it: who comes now has nothing to do.
                assert_eq!(filled(&bench, &plan).await, 0, "{step}");
            }
            bench.faults.hang_at(None);
            assert_eq!(waiting(&bench, &pool), 0, "{step}: half of one is none");
            if drains {
                assert_eq!(drained(&bench, &plan, &pool), 0, "{step}");
            }
            assert_eq!(filled(&bench, &plan).await, 2, "{step}");
            assert_eq!(bench.ledger.processes.lock().unwrap().len(), 2, "{step}");
            drained(&bench, &plan, &pool);
        }
    }
}

/// gc: the VMs of a template that is gone, or of a pool that is switched off, go; others stay.
#[tokio::test]
async fn gc_ends_those_nobody_wants() {
    let bench = Bench::new();
    let mut plan = plan(&bench);
    let pool = pool(&bench, &plan).await;
    filled(&bench, &plan).await;
    let collect = |plan: &SandboxPlan| {
        TemplateStore::of(&plan.factory).collect(|marker| {
            bench.ledger.end_marked(marker);
            Ok(())
        })
    };
    assert_eq!(collect(&plan), (Vec::new(), Vec::new()));
    assert_eq!(waiting(&bench, &pool), 2);
    // Of another configuration, whose templates are there.
    let mut other = plan.clone();
    other.factory.template_path = bench.dir.path().join("others");
    other.factory.template_memory = bench.dir.path().join("others");
    other.factory.pool = 0;
    assert_eq!(collect(&other), (Vec::new(), Vec::new()));
    assert_eq!(waiting(&bench, &pool), 2);
    plan.factory.pool = 0;
    assert_eq!(collect(&plan), (Vec::new(), Vec::new()));
    bench.ledger.assert_empty("switched off");
    plan.factory.pool = 2;
    filled(&bench, &plan).await;
    std::fs::remove_dir_all(&plan.factory.template_path).unwrap();
    assert_eq!(collect(&other), (Vec::new(), Vec::new()));
    bench.ledger.assert_empty("its template is gone");
}

/// One that died while it waited is not taken, and is replaced.
#[tokio::test]
async fn one_that_died_is_not_taken() {
    let bench = Bench::new();
    let plan = plan(&bench);
    let pool = pool(&bench, &plan).await;
    filled(&bench, &plan).await;
    let first = pool.waiting(|_| true)[0].record.process;
    bench.ledger.processes.lock().unwrap().remove(&first.pid);
    assert_eq!(waiting(&bench, &pool), 1);
    assert_eq!(filled(&bench, &plan).await, 1);
    assert_eq!(pool.waiting(|_| true).len(), 2, "of the dead one nothing is left");
    assert!(life(&bench, &plan).await.unwrap().pool);
    drained(&bench, &plan, &pool);
}
