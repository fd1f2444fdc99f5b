//! Pods over CRI.

use bulkhead_containerd::{Daemon, Engine};
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
        cri.stop(&third, 0).unwrap();
        assert_eq!(cri.status(&third).unwrap().exit_code, 137);
        cri.stop_pod(&pod).unwrap();
        assert!(!cri.pod_is_ready(&pod).unwrap());
        cri.remove_pod(&pod).unwrap();
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
