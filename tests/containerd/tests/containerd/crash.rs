//! What dies at the wrong moment.

use bulkhead_containerd::{Daemon, Engine};
use bulkhead_e2e::{VERB, until};
use bulkhead_host::process::{signal_exact, wait_gone};
use std::time::{Duration, Instant};

/// How soon nothing is left after a client gave up.
const GIVEN_UP: Duration = Duration::from_secs(10);

/// SIGKILL to the supervisor: containerd's `delete` removes VM, daemon, stub, mounts, cgroups and state.
#[test]
#[ignore = "needs a VM"]
fn a_killed_shim_leaves_nothing() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let id = daemon.sleeper();
    let namespace = daemon.place.token().to_owned();
    let supervisors = daemon.place.marked(&namespace, &id, "supervisor");
    assert_eq!(supervisors.len(), 1);
    for (pid, start) in supervisors {
        assert!(signal_exact(pid, start, 9).unwrap());
        assert!(wait_gone(pid, start, VERB).unwrap());
    }
    until("containerd has cleaned up", VERB, || {
        daemon.status(&id).is_empty() || daemon.status(&id) == "STOPPED"
    });
    let state = bulkhead_containerd::Place::root(&namespace)
        .join("sandboxes")
        .join(&id);
    until("all of it is removed", VERB, || !state.exists());
    let _ = daemon.ctr(&["task", "delete", &id]).run();
    let _ = daemon.ctr(&["container", "delete", &id]).run().ok();
    daemon.place.assert_no_sandbox(&namespace, &id);
}

/// SIGKILL to the VMM is the end of the container by signal 9.
#[test]
#[ignore = "needs a VM"]
fn a_killed_vmm_ends_the_container() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let id = daemon.id();
    let running = daemon.run(&["--rm"], &id, &["sleep", "1000"]).start();
    let namespace = daemon.place.token().to_owned();
    until("it runs", VERB, || daemon.status(&id) == "RUNNING");
    let (pid, start) = daemon.place.marked(&namespace, &id, "vmm")[0];
    assert!(signal_exact(pid, start, 9).unwrap());
    assert_eq!(running.wait().status, 137);
    daemon.place.assert_no_sandbox(&namespace, &id);
}

/// A client that is killed while the guest boots leaves nothing within ten seconds.
#[test]
#[ignore = "needs a VM"]
fn a_client_that_gives_up_during_the_boot_leaves_nothing() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let id = daemon.id();
    let namespace = daemon.place.token().to_owned();
    let running = daemon.run(&["--rm"], &id, &["true"]).start();
    until("the VM boots", VERB, || {
        !daemon.place.marked(&namespace, &id, "vmm").is_empty()
    });
    running.signal(nix::sys::signal::Signal::SIGKILL);
    let since = Instant::now();
    until("nothing is left", GIVEN_UP, || {
        ["supervisor", "vmm", "fsd", "stub"]
            .iter()
            .all(|role| daemon.place.marked(&namespace, &id, role).is_empty())
    });
    eprintln!("gone after {:?}", since.elapsed());
    drop(running);
    daemon.place.assert_no_sandbox(&namespace, &id);
    let _ = daemon.ctr(&["container", "delete", &id]).run();
}

/// containerd is killed and started again: the container goes on, and can be used and removed.
#[test]
#[ignore = "needs a VM"]
fn a_restarted_containerd_finds_its_containers() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let id = daemon.sleeper();
    daemon.kill();
    daemon.launch();
    assert_eq!(daemon.status(&id), "RUNNING");
    assert_eq!(
        daemon.exec(&id, "after", &["echo", "still"]).run().ok().text(),
        "still\n"
    );
    daemon.remove(&id);
}

/// Fifty containers come and go two at a time; each pair leaves nothing to the next.
#[test]
#[ignore = "needs a VM"]
fn fifty_come_and_go_in_pairs() {
    let daemon = Daemon::start(Engine::Bulkhead);
    let namespace = daemon.place.token().to_owned();
    for _ in 0..25 {
        let ids = [daemon.id(), daemon.id()];
        let pair = ids.each_ref().map(|id| {
            let script = format!("echo {id}");
            daemon.run(&["--rm"], id, &["sh", "-c", &script]).start()
        });
        for (running, id) in pair.into_iter().zip(&ids) {
            assert_eq!(running.wait().ok().text().trim(), id);
        }
        for id in &ids {
            daemon.place.assert_no_sandbox(&namespace, id);
        }
    }
    assert_eq!(daemon.ctr(&["task", "ls", "-q"]).run().ok().text(), "");
}
