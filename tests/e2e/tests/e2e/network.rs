//! The pod network, on real namespaces, bridges and CNI plugins.

use crate::mounts::with_program;
use bulkhead_e2e::{Bundle, Lab, Net, VERB, until};
use serde_json::json;
use std::path::Path;

/// Speaks UDP; see there.
const DATAGRAM: &str = env!("CARGO_BIN_EXE_datagram");

/// A bundle that lives in the namespace at `path`, may ping and change its network, and sleeps.
fn in_netns(lab: &Lab, path: &Path) -> Bundle {
    lab.bundle().script("exec sleep 600").with(|config| {
        for set in ["bounding", "effective", "permitted"] {
            let capabilities = config["process"]["capabilities"][set].as_array_mut().unwrap();
            capabilities.extend([json!("CAP_NET_RAW"), json!("CAP_NET_ADMIN")]);
        }
        let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|ns| ns["type"] != "network");
        namespaces.push(json!({"type": "network", "path": path}));
        config["linux"]["sysctl"] = json!({"net.ipv4.ping_group_range": "0 0"});
    })
}

/// Runs a script in the container; its output.
#[track_caller]
fn inside(lab: &Lab, id: &str, script: &str) -> String {
    lab.call(&["exec", id, "sh", "-c", script]).run().ok().text()
}

/// Kills supervisor, VMM, daemon and stubs of a sandbox.
fn kill_all(lab: &Lab, id: &str) {
    for role in ["supervisor", "vmm", "fsd", "stub"] {
        for pid in lab.marked(id, role) {
            let _ =
                nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), nix::sys::signal::Signal::SIGKILL);
        }
    }
}

/// Everything the namespace says of its interface is so in the guest, both ways work, and nothing stays behind.
#[test]
#[ignore = "needs a VM"]
fn a_veth_and_all_that_is_on_it() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let pod = net.pod(0);
    net.ip(
        &pod,
        "route add 10.99.0.0/16 via 10.77.0.1 src 10.77.0.10 metric 7",
    );
    net.ip(&pod, "route add 192.0.2.1 dev eth0 scope link");
    net.ip(&pod, "route add 198.51.100.0/24 via 203.0.113.1 dev eth0 onlink");
    net.ip(
        &pod,
        "neigh add 10.77.0.200 lladdr 02:00:00:00:00:c8 dev eth0 nud permanent",
    );
    let before = net.inventory(&pod);
    let bundle = in_netns(&lab, &net.path(&pod));
    let id = lab.id();
    lab.run_detached(&bundle, &id);

    let mac = net
        .run(&pod, "ip -br link show eth0 | awk '{print $3}'")
        .ok()
        .text();
    let shown = inside(
        &lab,
        &id,
        "cat /sys/class/net/eth0/address /sys/class/net/eth0/mtu; ip -o addr show; ip route; ip -6 route; ip neigh; ls /sys/class/net",
    );
    for there in [
        mac.trim(),
        "1400",
        "10.77.0.10/24 brd 10.77.0.255",
        "fd77::10/64",
        "127.0.0.1/8",
        "default via 10.77.0.1 dev eth0",
        "10.99.0.0/16 via 10.77.0.1 dev eth0  src 10.77.0.10  metric 7",
        "192.0.2.1 dev eth0 scope link",
        "198.51.100.0/24 via 203.0.113.1 dev eth0 onlink",
        "10.77.0.0/24 dev eth0 scope link  src 10.77.0.10",
        "default via fd77::1 dev eth0",
        "fd77::/64 dev eth0",
        "10.77.0.200 dev eth0 lladdr 02:00:00:00:00:c8",
    ] {
        assert!(shown.contains(there), "{there:?} is not in:\n{shown}");
    }
    // Nothing but what the namespace has.
    assert_eq!(inside(&lab, &id, "ls /sys/class/net"), "eth0\nlo\n");
    inside(
        &lab,
        &id,
        "ping -c 2 -W 20 10.77.0.1 && ping -6 -c 2 -W 20 fd77::1",
    );
    let _ = net
        .run(
            "world",
            "ping -c 2 -W 20 10.77.0.10 && ping -6 -c 2 -W 20 fd77::10",
        )
        .ok();
    lab.delete(&id);
    assert_eq!(net.inventory(&pod), before);
}

/// HTTP, UDP and a second pod over the bridge; an interface that comes later is there, one that goes is gone; the next
/// start in the same namespace works.
#[test]
#[ignore = "needs a VM"]
fn two_pods_talk_and_follow_their_namespaces() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let (one, two) = (net.pod(0), net.pod(1));
    let before = net.inventory(&one);
    let (first, second) = (lab.id(), lab.id());
    for (pod, id) in [(&one, &first), (&two, &second)] {
        let bundle = with_program(in_netns(&lab, &net.path(pod)), DATAGRAM, "/datagram");
        lab.run_detached(&bundle, id);
    }

    let answering = lab.call(&["exec", &first, "/datagram", "answer", "9000"]).start();
    until("it listens", VERB, || {
        answering.stdout_so_far().contains("listening")
    });
    // A small one, as large as fits the pods' MTU, and one in pieces, for which the world's MTU is too large.
    for bytes in ["1", "1352", "5000"] {
        for to in ["10.77.0.10:9000", "[fd77::10]:9000"] {
            let ask = format!("ask {to} {bytes}");
            for from in [&second, &first] {
                inside(&lab, from, &format!("/datagram {ask}"));
            }
            if bytes != "5000" {
                let _ = net.run("world", &format!("{DATAGRAM} {ask}")).ok();
            }
        }
    }
    drop(answering);

    inside(
        &lab,
        &first,
        "mkdir -p /www; dd if=/dev/urandom of=/www/file bs=64k count=16 2>/dev/null; httpd -p 80 -h /www",
    );
    let sum = inside(&lab, &first, "sha256sum /www/file | cut -d' ' -f1");
    let fetch = |from: &str| format!("wget -q -O - {from}/file | sha256sum | cut -d' ' -f1");
    assert_eq!(inside(&lab, &second, &fetch("http://10.77.0.10")), sum);
    assert_eq!(inside(&lab, &second, &fetch("http://[fd77::10]")), sum);
    assert_eq!(
        inside(&lab, &first, &fetch("http://10.77.0.10")),
        sum,
        "to itself"
    );
    assert_eq!(net.run("world", &fetch("http://10.77.0.10")).ok().text(), sum);

    net.veth(&one, "net1", "p9");
    net.ip(&one, "addr add 10.88.0.2/24 dev net1");
    net.ip(&one, "link set net1 up");
    until("the later interface is in the guest", VERB, || {
        inside(&lab, &first, "ip -o addr show; ip route").contains("10.88.0.0/24 dev net1")
    });
    net.ip(&one, "addr add 10.77.0.50/24 dev eth0");
    until("the later address is in the guest", VERB, || {
        inside(&lab, &first, "ip -o addr show eth0").contains("10.77.0.50/24")
    });
    net.ip(&one, "addr del 10.77.0.50/24 dev eth0");
    net.ip(&one, "link del net1");
    until("both are gone", VERB, || {
        let shown = inside(&lab, &first, "ip -o addr show; ls /sys/class/net");
        !shown.contains("net1") && !shown.contains("10.77.0.50")
    });
    inside(&lab, &first, "ping -c 1 -W 20 10.77.0.11");

    lab.delete(&first);
    assert_eq!(net.inventory(&one), before);
    lab.run_detached(&in_netns(&lab, &net.path(&one)), &first);
    inside(&lab, &first, "ping -c 1 -W 20 10.77.0.11");
    lab.delete(&first);
    lab.delete(&second);
}

/// Everything of a sandbox is killed: `gc` takes what it had put into the caller's namespace out again.
#[test]
#[ignore = "needs a VM"]
fn gc_leaves_nothing_in_the_callers_namespace() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let pod = net.pod(0);
    let before = net.inventory(&pod);
    let id = lab.id();
    lab.run_detached(&in_netns(&lab, &net.path(&pod)), &id);
    assert_ne!(net.inventory(&pod), before);
    kill_all(&lab, &id);
    let _ = lab.quick(&["gc"]).ok();
    assert_eq!(net.inventory(&pod), before);
}

/// The name of a namespace, and its interface, go while the pod runs: exec, stop, delete and `gc` work as before.
#[test]
#[ignore = "needs a VM"]
fn a_namespace_deleted_under_a_running_pod() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let (one, two) = (net.pod(0), net.pod(1));
    let (first, second) = (lab.id(), lab.id());
    lab.run_detached(&in_netns(&lab, &net.path(&one)), &first);
    lab.run_detached(&in_netns(&lab, &net.path(&two)), &second);
    net.remove(&one);
    net.remove(&two);
    // What uses the namespace keeps it.
    inside(
        &lab,
        &first,
        "ping -c 1 -W 20 10.77.0.1 && ping -c 1 -W 20 10.77.0.11",
    );
    net.ip("world", "link del p0");
    until("the interface is gone in the guest, too", VERB, || {
        !inside(&lab, &first, "ls /sys/class/net").contains("eth0")
    });
    assert_eq!(inside(&lab, &first, "echo on"), "on\n");
    let _ = lab.quick(&["kill", &first, "KILL"]).ok();
    until("it has stopped", VERB, || lab.status(&first) == "stopped");
    let _ = lab.quick(&["delete", &first]).ok();

    kill_all(&lab, &second);
    let _ = lab.quick(&["gc"]).ok();
    until("the kernel has taken the namespace away", VERB, || {
        !net.ip("world", "-br link").contains("p1@")
    });
}

/// A macvtap in place of tap and redirection, on the same veth.
#[test]
#[ignore = "needs a VM"]
fn over_a_macvtap() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let pod = net.pod(0);
    let before = net.inventory(&pod);
    let text = std::fs::read_to_string(Lab::config()).unwrap();
    let config = lab.dir().join("macvtap.toml");
    let text = format!("runtime.internetworking_model = \"macvtap\"\n{text}");
    std::fs::write(&config, text).unwrap();
    let bundle = in_netns(&lab, &net.path(&pod));
    let id = lab.id();
    let _ = lab
        .call_with(
            &["--config", config.to_str().unwrap()],
            &["run", "--detach", "--bundle", bundle.arg(), &id],
        )
        .run()
        .ok();
    let queues = net
        .run(&pod, "ip -d link show type macvtap; tc qdisc show dev eth0")
        .ok()
        .text();
    assert!(
        queues.contains("mode passthru") && !queues.contains("ingress"),
        "{queues}"
    );
    let shown = inside(&lab, &id, "ip -o addr show eth0");
    assert!(
        shown.contains("10.77.0.10/24") && shown.contains("fd77::10/64"),
        "{shown}"
    );
    inside(
        &lab,
        &id,
        "ping -c 2 -W 20 10.77.0.1 && ping -6 -c 2 -W 20 fd77::1",
    );
    let _ = net.run("world", "ping -c 2 -W 20 10.77.0.10").ok();
    lab.delete(&id);
    assert_eq!(net.inventory(&pod), before);
}

/// A spec without a network namespace, the host's own, a path that is none: refused with the reason.
#[test]
#[ignore = "needs root"]
fn what_cannot_be_a_pods_network_is_refused() {
    let lab = Lab::new();
    let refused = |path: Option<&str>, words: &[&str]| {
        let bundle = lab.bundle().with(|config| {
            let namespaces = config["linux"]["namespaces"].as_array_mut().unwrap();
            namespaces.retain(|ns| ns["type"] != "network");
            if let Some(path) = path {
                namespaces.push(json!({"type": "network", "path": path}));
            }
        });
        let outcome = lab.call(&["create", "--bundle", bundle.arg(), &lab.id()]).run();
        let _ = outcome.fails(words);
        lab.assert_clean();
    };
    refused(None, &["no network namespace", "host's", "expected"]);
    refused(Some("/proc/self/ns/net"), &["/proc/self/ns/net", "host's own"]);
    refused(Some("/run/netns/absent"), &["/run/netns/absent", "No such file"]);
    refused(Some("/etc/passwd"), &["/etc/passwd", "not a network namespace"]);
}

/// An interface of several queues is a card, and so is a macvlan.
#[test]
#[ignore = "needs a VM"]
fn several_queues_and_a_macvlan() {
    let lab = Lab::new();
    let net = Net::new(&lab);
    let pod = net.pod(0);
    net.ip(&pod, "link del eth0");
    let full = net.path(&pod);
    let full = full.file_name().unwrap().to_str().unwrap();
    for arguments in [
        format!("link add q0 type veth peer name eth0 netns {full} numtxqueues 2 numrxqueues 2"),
        "link set q0 master br0 up".to_owned(),
        "link add m0 type veth peer name under".to_owned(),
        "link set m0 master br0 up".to_owned(),
        "link set under up".to_owned(),
        format!("link add link under name mac0 netns {full} type macvlan mode bridge"),
    ] {
        net.ip("world", &arguments);
    }
    for arguments in [
        "addr add 10.77.0.10/24 dev eth0",
        "link set eth0 up",
        "addr add 10.77.0.20/24 dev mac0",
        "link set mac0 up",
    ] {
        net.ip(&pod, arguments);
    }
    let id = lab.id();
    let bundle = in_netns(&lab, &net.path(&pod)).with(|config| {
        // One CPU beside the VM's own: QEMU's end of the card has two queues then.
        config["linux"]["resources"] = json!({"cpu": {"quota": 100_000, "period": 100_000}});
    });
    lab.run_detached(&bundle, &id);
    let taps = net.run(&pod, "ip -d link show type tun").ok().text();
    assert_eq!(taps.matches("multi_queue numqueues").count(), 1, "{taps}");
    for interface in ["eth0", "mac0"] {
        inside(&lab, &id, &format!("ping -I {interface} -c 2 -W 20 10.77.0.1"));
    }
    lab.delete(&id);
}
