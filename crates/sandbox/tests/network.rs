//! The pod network with everything faked: order, journal, faults.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod support;

use bulkhead_model::NetworkPlan;
use bulkhead_model::timeline::Lane;
use bulkhead_sandbox::network::NetworkSource;
use bulkhead_sandbox::{Command, Reply};
use std::time::Duration;
use support::*;

fn plan(name: &str) -> bulkhead_model::SandboxPlan {
    let mut plan = sandbox_plan(name);
    plan.network = NetworkPlan::Existing {
        path: "/run/netns/fake".into(),
    };
    plan.network_model = "tcfilter".into();
    plan
}

fn bench(interfaces: &[u32]) -> Bench {
    let bench = Bench::new();
    bench
        .host
        .space
        .change(|scan| scan.interfaces = interfaces.iter().copied().map(interface).collect());
    bench
}

async fn life(bench: &Bench) -> Result<(), bulkhead_model::Failure> {
    let (handle, engine) = bench.sandbox_of(plan("a"));
    let result = async {
        create(&handle, "a", true).await?;
        call(&handle, Command::Start { id: id("a") }).await
    }
    .await;
    if !engine.is_finished() {
        let _ = call(&handle, Command::Shutdown).await;
    }
    let left = tokio::time::timeout(Duration::from_secs(60), engine)
        .await
        .expect("the engine ends")
        .unwrap();
    assert_eq!(left, Vec::<String>::new());
    result.map(drop)
}

/// Cards are plugged and told of before the container is made; nothing is left afterwards.
#[tokio::test]
async fn cards_come_before_the_container() {
    let bench = bench(&[2, 3]);
    life(&bench).await.unwrap();
    bench.assert_nothing_left("a", "no fault");
    let order = bench.ledger.take_order();
    let source = NetworkSource::Path("/run/netns/fake".into());
    assert!(order.contains(&format!("open {source:?}")), "{order:?}");
    assert!(
        order.iter().any(|step| step == "plug net2 02:00:00:00:00:02 1"),
        "{order:?}"
    );
    let told = bench.ledger.networks.lock().unwrap();
    assert_eq!(told.len(), 1, "one call for all");
    let names: Vec<&str> = told[0]
        .interfaces
        .iter()
        .map(|one| one.interface.name.as_str())
        .collect();
    assert_eq!(names, ["eth2", "eth3"]);
    let steps = bench.faults.steps.lock().unwrap();
    let at = |name| steps.iter().position(|step| *step == name).unwrap();
    assert!(at("update_network") < at("create_container"));
}

/// An empty namespace costs no call and no card.
#[tokio::test]
async fn an_empty_namespace_costs_nothing() {
    let bench = bench(&[]);
    life(&bench).await.unwrap();
    assert!(bench.ledger.networks.lock().unwrap().is_empty());
    assert!(!bench.faults.steps.lock().unwrap().contains(&"tap"));
}

/// Each step of it fails once: nothing is left, and the same id works at once.
#[tokio::test]
async fn every_network_step_fails_once_and_nothing_is_left() {
    let counting = bench(&[2, 3]);
    life(&counting).await.unwrap();
    let steps = counting.faults.count();
    let network = [
        "open_network",
        "scan",
        "tap",
        "redirect",
        "plug",
        "update_network",
    ];
    let mut refused = 0;
    for k in 0..steps {
        let name = counting.faults.name(k);
        if !network.contains(&name) {
            continue;
        }
        let bench = bench(&[2, 3]);
        bench.faults.fail_at(k);
        let result = life(&bench).await;
        bench.assert_nothing_left("a", &format!("step {k} ({name})"));
        if let Err(failure) = result {
            refused += 1;
            assert!(failure.message.contains("injected"), "{failure}");
        }
        life(&bench)
            .await
            .unwrap_or_else(|e| panic!("retry after step {k} ({name}): {e}"));
        bench.assert_nothing_left("a", &format!("retry after {name}"));
    }
    assert!(refused >= 8, "only {refused} faults were seen");
}

/// What comes and goes later is followed.
#[tokio::test]
async fn later_changes_are_followed() {
    let bench = bench(&[2]);
    let (handle, engine) = bench.sandbox_of(plan("a"));
    create(&handle, "a", true).await.unwrap();
    let told = |count: usize| {
        let ledger = std::sync::Arc::clone(&bench.ledger);
        async move {
            while ledger.networks.lock().unwrap().len() < count {
                tokio::task::yield_now().await;
            }
            ledger.networks.lock().unwrap().last().unwrap().clone()
        }
    };
    bench.host.space.change(|scan| scan.interfaces.push(interface(7)));
    assert_eq!(told(2).await.interfaces.len(), 2);
    bench.host.space.change(|scan| scan.interfaces[0].mtu = 1400);
    assert_eq!(told(3).await.interfaces[0].interface.mtu, 1400);
    bench
        .host
        .space
        .change(|scan| scan.interfaces.retain(|it| it.index == 7));
    assert_eq!(told(4).await.interfaces.len(), 1);
    assert_eq!(
        bench.ledger.cards.lock().unwrap().iter().collect::<Vec<_>>(),
        ["net7"]
    );
    assert_eq!(
        bench.ledger.links.lock().unwrap().len(),
        2,
        "one tap and its redirection"
    );
    let Reply::Timeline { timeline } = call(&handle, Command::Timeline).await.unwrap() else {
        panic!("no timeline")
    };
    let of_network = |name: &str| -> Vec<Vec<&str>> {
        let operations = timeline.operations.iter().filter(|one| one.name == name);
        let names = operations.map(|one| {
            let spans = one.spans.iter().filter(|span| span.lane == Lane::Network);
            spans.map(|span| span.name.as_str()).collect()
        });
        names.collect()
    };
    let (look, tell) = ("look at the network namespace", "tell the guest its network");
    let open = "open the network namespace";
    assert_eq!(of_network("create"), [[open, look, "plug a card", tell]]);
    assert_eq!(
        of_network("network"),
        [
            vec![look, "plug a card", tell],
            vec![look, tell],
            vec![look, "unplug a card", tell]
        ]
    );
    call(&handle, Command::Shutdown).await.unwrap();
    engine.await.unwrap();
    bench.assert_nothing_left("a", "after changes");
}
