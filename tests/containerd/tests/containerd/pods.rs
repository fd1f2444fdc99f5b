//! Pods over CRI.

use bulkhead_containerd::{Cri, Daemon, Engine, GATEWAY};
use bulkhead_e2e::{VERB, until};

on_both! {
    /// A pod, two containers in it, exec, logs, statistics, stop and removal, one container at a time.
    fn two_containers_in_a_pod(engine) {
        let daemon = Daemon::start_for_pods(engine);
        let cri = daemon.cri();
        let pod = cri.run_pod("pod").unwrap();
        assert!(cri.pod_is_ready(&pod).unwrap());
        let first = cri.run(&pod, "first", &["sh", "-c", "echo from-first; exec sleep 1000"]).unwrap();
        let second = cri.run(&pod, "second", &["sh", "-c", "exit 5"]).unwrap();
        until("the second has ended", VERB, || cri.status(&second).unwrap().exit_code == 5);
        let answer = cri.exec(&first, &["sh", "-c", "hostname; exit 4"]).unwrap();
        assert_eq!(answer.exit_code, 4);
        assert_eq!(String::from_utf8(answer.stdout).unwrap(), "pod\n");
        until("its log is written", VERB, || {
            std::fs::read_to_string(pod.logs().join("first.log"))
                .unwrap_or_default()
                .contains("stdout F from-first")
        });
        let stats = cri.stats(&first).unwrap();
        assert!(stats.memory.unwrap().working_set_bytes.unwrap().value > 0);
        cri.remove(&second).unwrap();
        // The pod goes on without it, and takes another.
        let third = cri.run(&pod, "third", &["sleep", "1000"]).unwrap();
        let ipc = "readlink /proc/self/ns/ipc";
        assert_eq!(inside(&cri, &first, ipc), inside(&cri, &third, ipc));
        let _ = inside(&cri, &first, "echo from-first >/dev/shm/word");
        assert_eq!(inside(&cri, &third, "cat /dev/shm/word"), "from-first\n");
        cri.stop(&third, 0).unwrap();
        assert_eq!(cri.status(&third).unwrap().exit_code, 137);
        cri.stop_pod(&pod).unwrap();
        assert!(!cri.pod_is_ready(&pod).unwrap());
        cri.remove_pod(&pod).unwrap();
    }
}

/// Runs a script in a container; its output.
#[track_caller]
fn inside(cri: &Cri<'_>, id: &str, script: &str) -> String {
    let answer = cri.exec(id, &["sh", "-c", script]).unwrap();
    let text = |bytes| String::from_utf8(bytes).unwrap();
    assert_eq!(answer.exit_code, 0, "{script}\n{}", text(answer.stderr));
    text(answer.stdout)
}

on_both! {
    /// Bridge, addresses and a published port by CNI plugins: pods have them, talk to the bridge, to each other and,
    /// through the published port, to themselves.
    fn what_network_plugins_made(engine) {
        let daemon = Daemon::start_for_pods(engine);
        let cri = daemon.cri();
        let one = cri.run_pod_with("one", &[(8080, 80)]).unwrap();
        let two = cri.run_pod("two").unwrap();
        let (address, other) = (cri.address(&one).unwrap(), cri.address(&two).unwrap());
        assert!(address.starts_with("10.231.0.") && other.starts_with("10.231.0.") && address != other);
        let served = "echo served >/tmp/page; exec httpd -f -p 80 -h /tmp";
        let first = cri.run(&one, "first", &["sh", "-c", served]).unwrap();
        let second = cri.run(&two, "second", &["sleep", "1000"]).unwrap();
        let shown = inside(&cri, &first, "ip -o -4 addr show eth0; ip route");
        assert!(shown.contains(&format!("inet {address}/24")), "{shown}");
        assert!(shown.contains(&format!("default via {GATEWAY} dev eth0")), "{shown}");
        for (id, there) in [(&first, GATEWAY), (&first, &other), (&second, &address)] {
            let _ = inside(&cri, id, &format!("ping -c 2 -W 20 {there}"));
        }
        let fetch = |from: &str| format!("wget -q -O - http://{from}/page");
        until("the server listens", VERB, || {
            cri.exec(&first, &["sh", "-c", &fetch("127.0.0.1")]).unwrap().exit_code == 0
        });
        let published = format!("{GATEWAY}:8080");
        for (id, from) in [(&second, &address), (&second, &published), (&first, &published)] {
            assert_eq!(inside(&cri, id, &fetch(from)), "served\n", "from {from}");
        }
        for from in [&address, &published] {
            let script = format!("busybox {}", fetch(from));
            assert_eq!(daemon.world.run(&daemon.place, &script).ok().text(), "served\n", "from {from}");
        }
        for pod in [&one, &two] {
            cri.stop_pod(pod).unwrap();
            cri.remove_pod(pod).unwrap();
        }
        let left = daemon.world.run(&daemon.place, "ip -o link show type veth; iptables -t nat -S | grep 8080; true");
        assert_eq!(left.ok().text(), "");
    }
}

on_both! {
    /// `ctr run --cni`: a specification that names no namespace has a new one, that of the pid the client is told, and
    /// what is put there between create and start is the container's.
    fn a_namespace_known_by_its_pid(engine) {
        let daemon = Daemon::start(engine);
        let script = format!("ip -o -4 addr show eth0; ping -c 2 -W 20 {GATEWAY}");
        let outcome = daemon.run_with_cni(&daemon.id(), &["sh", "-c", &script]).run().ok();
        assert!(outcome.text().contains("inet 10.231.0.2/24"), "{}", outcome.text());
    }
}

/// One VM serves the whole pod, and the pod's own container is no process in it.
#[test]
#[ignore = "needs a VM"]
fn one_supervisor_and_one_vm_for_a_pod() {
    let daemon = Daemon::start_for_pods(Engine::Bulkhead);
    let cri = daemon.cri();
    let pod = cri.run_pod("pod").unwrap();
    let count = |role: &str| daemon.place.marked("k8s.io", &pod.id, role).len();
    assert_eq!(
        (count("supervisor"), count("vmm"), count("pause"), count("stub")),
        (1, 1, 1, 0)
    );
    let id = cri.run(&pod, "only", &["sleep", "1000"]).unwrap();
    assert_eq!((count("supervisor"), count("vmm"), count("stub")), (1, 1, 1));
    let (pause, _) = daemon.place.marked("k8s.io", &pod.id, "pause")[0];
    let netns = |pid: i32| std::fs::read_link(format!("/proc/{pid}/ns/net")).unwrap();
    assert_ne!(netns(pause), netns(i32::try_from(std::process::id()).unwrap()));
    // Its memory, of which most is the program's text, shared with the supervisor.
    let rollup = std::fs::read_to_string(format!("/proc/{pause}/smaps_rollup")).unwrap();
    let private: u64 = rollup
        .lines()
        .filter(|line| line.starts_with("Private_"))
        .filter_map(|line| line.split_whitespace().nth(1)?.parse::<u64>().ok())
        .sum();
    assert!(private < 4096, "{private} KiB\n{rollup}");
    cri.remove(&id).unwrap();
    cri.stop_pod(&pod).unwrap();
    cri.remove_pod(&pod).unwrap();
    daemon.place.assert_no_sandbox("k8s.io", &pod.id);
}
