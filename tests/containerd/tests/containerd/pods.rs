//! Pods over CRI.

use bulkhead_containerd::{Cri, Daemon, Engine, GATEWAY, NamespaceMode, NamespaceOption, Pod};
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

/// A container that runs, in the process namespace of the pod or of the container `target`.
fn among(cri: &Cri<'_>, pod: &Pod, name: &str, script: &str, target: Option<&str>) -> String {
    let mode = target.map_or(NamespaceMode::Pod, |_| NamespaceMode::Target);
    let namespaces = NamespaceOption {
        pid: mode.into(),
        target_id: target.unwrap_or_default().to_owned(),
        ..NamespaceOption::default()
    };
    let id = cri
        .create_in(pod, name, &["sh", "-c", script], namespaces)
        .unwrap();
    cri.start(&id).unwrap();
    id
}

on_both! {
    /// Containers that share the pod's processes see and signal each other's, and none ends with another; one that is
    /// put beside another container sees that one's; a container of its own sees nobody.
    fn shared_processes(engine) {
        let daemon = Daemon::start_for_pods(engine);
        let cri = daemon.cri();
        let pod = cri.run_pod("pod").unwrap();
        let first = among(&cri, &pod, "first", "exec sleep 1111", None);
        let second = among(&cri, &pod, "second", "exec sleep 2222", None);
        let seen = inside(&cri, &second, "ps -o pid,args");
        assert!(seen.contains("sleep 1111") && seen.contains("sleep 2222"), "{seen}");
        // The first process is nobody's among them: it outlives each.
        assert!(!seen.contains("  1 sleep"), "{seen}");
        // What is left of a container whose own process has ended goes too.
        let third = among(&cri, &pod, "third", "sleep 3333 & sleep 4444 & exec true", None);
        until("the third has ended", VERB, || cri.status(&third).unwrap().finished_at > 0);
        until("nothing of it is left", VERB, || {
            let seen = inside(&cri, &second, "ps -o args");
            !seen.contains("3333") && !seen.contains("4444")
        });
        let _ = inside(&cri, &second, "for p in /proc/[0-9]*; do if grep -q '[1]111' $p/cmdline; then kill -9 ${p#/proc/}; fi; done");
        until("the first has ended", VERB, || cri.status(&first).unwrap().exit_code == 137);
        let again = among(&cri, &pod, "again", "exec sleep 5555", None);
        let seen = inside(&cri, &second, "ps -o args");
        assert!(seen.contains("sleep 5555") && seen.contains("sleep 2222"), "{seen}");

        let alone = cri.run(&pod, "alone", &["sleep", "6666"]).unwrap();
        let seen = inside(&cri, &alone, "cat /proc/1/comm; ps -o args");
        assert!(seen.starts_with("sleep\n") && !seen.contains("2222"), "{seen}");
        let beside = among(&cri, &pod, "beside", "exec sleep 7777", Some(&alone));
        let seen = inside(&cri, &beside, "readlink /proc/1/exe; ps -o args");
        assert!(seen.contains("sleep 6666") && seen.contains("sleep 7777") && !seen.contains("2222"), "{seen}");
        for id in [first, again] {
            cri.remove(&id).unwrap();
        }
        let _ = inside(&cri, &second, "true");
        cri.stop_pod(&pod).unwrap();
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
