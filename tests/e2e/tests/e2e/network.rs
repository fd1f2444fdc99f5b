//! The pod network, on real namespaces, bridges and CNI plugins.

use bulkhead_e2e::{Bundle, Lab, Net};
use serde_json::json;
use std::path::Path;

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
