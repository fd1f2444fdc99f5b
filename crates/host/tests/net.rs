//! Taps, macvtaps, redirections and the watch, in namespaces of their own.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use bulkhead_host::deadline::{Deadline, readable};
use bulkhead_host::net::{Netlink, Watch, link, macvtap, redirect, tap};
use bulkhead_host::netns::Netns;
use std::os::fd::AsFd;
use std::process::Command;
use std::time::Duration;

fn sh(script: &str) -> String {
    let output = Command::new("/bin/sh").args(["-ec", script]).output().unwrap();
    assert!(
        output.status.success(),
        "{script}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// Runs `code` in a namespace with a veth pair, `va` and `vb`, both up.
fn inside(code: impl FnOnce() + Send) {
    let netns = Netns::new().unwrap();
    netns
        .run(|| {
            sh("ip link add va numrxqueues 2 numtxqueues 2 type veth peer name vb && ip link set va up && ip link set vb up");
            code();
        })
        .unwrap();
}

fn index(name: &str) -> u32 {
    link::index(name).unwrap().unwrap()
}

/// What arrives on the interface comes out of the tap, what is written to the tap leaves by the interface; the tap
/// goes with its descriptor, the redirection by its own undo.
#[test]
#[ignore = "needs root"]
fn frames_cross_between_an_interface_and_a_tap_both_ways() {
    inside(|| {
        let fds = tap("t0", 1, 1400).unwrap();
        let mut netlink = Netlink::open().unwrap();
        redirect::add(&mut netlink, index("va"), index("t0")).unwrap();
        redirect::add(&mut netlink, index("t0"), index("va")).unwrap();
        assert!(sh("ip -o link show t0").contains("mtu 1400"));
        // An ARP request out of `vb` arrives on `va`, and so on the tap: a virtio header of ten bytes, then the frame.
        sh(
            "ip addr add 192.0.2.1/24 dev vb; ip neigh flush dev vb; busybox ping -c 1 -W 1 192.0.2.9 || true",
        );
        let mut frame = [0; 2048];
        let asks = |frame: &[u8]| frame.len() > 24 && frame[22..24] == [8, 6];
        loop {
            assert!(readable(fds[0].as_fd(), Deadline::after(Duration::from_secs(30))).unwrap());
            let count = nix::unistd::read(&fds[0], &mut frame).unwrap();
            if asks(&frame[..count]) {
                break;
            }
        }
        let before = sh("cat /proc/net/dev | awk '/ vb:/ {print $3}'");
        nix::unistd::write(&fds[0], &frame[..10 + 60]).unwrap();
        assert_ne!(
            sh("cat /proc/net/dev | awk '/ vb:/ {print $3}'"),
            before,
            "nothing left by `va`"
        );
        drop(fds);
        gone("t0");
        assert!(sh("tc qdisc show dev va").contains("ingress"));
        redirect::remove(&mut netlink, index("va"), "t0").unwrap();
        assert!(!sh("tc qdisc show dev va").contains("ingress"));
        redirect::remove(&mut netlink, index("va"), "t0").unwrap();
        redirect::remove(&mut netlink, 4711, "t0").unwrap();
    });
}

/// A tap goes with its last descriptor. A shell of another test has a copy of each from its fork to its exec.
fn gone(name: &str) {
    let deadline = Deadline::after(Duration::from_secs(30));
    while link::index(name).unwrap().is_some() {
        assert!(!deadline.passed(), "{name} stayed");
        std::thread::yield_now();
    }
}

/// What a dead one left is replaced, what belongs to somebody else is left alone.
#[test]
#[ignore = "needs root"]
fn an_ingress_queue_is_taken_over_only_from_the_dead() {
    inside(|| {
        let mut netlink = Netlink::open().unwrap();
        let dead = tap("t0", 1, 1500).unwrap();
        redirect::add(&mut netlink, index("va"), index("t0")).unwrap();
        drop(dead);
        gone("t0");
        let alive = tap("t1", 1, 1500).unwrap();
        redirect::add(&mut netlink, index("va"), index("t1")).unwrap();
        let _other = tap("t2", 1, 1500).unwrap();
        let error = redirect::add(&mut netlink, index("va"), index("t2")).unwrap_err();
        assert!(error.is(nix::errno::Errno::EEXIST), "{error:?}");
        // The dead one's undo, run late, does not take its successor's away.
        redirect::remove(&mut netlink, index("va"), "t0").unwrap();
        assert!(sh("tc filter show dev va ingress").contains("t1"));
        drop(alive);
    });
}

/// Several queues are several descriptors; another of the same name is refused.
#[test]
#[ignore = "needs root"]
fn a_tap_has_as_many_descriptors_as_queues() {
    inside(|| {
        assert_eq!(tap("t0", 3, 1500).unwrap().len(), 3);
        gone("t0");
        let held = tap("t0", 1, 1500).unwrap();
        assert!(tap("t0", 1, 1500).is_err(), "in use");
        drop(held);
        gone("t0");
        assert!(tap("a-name-of-sixteen", 1, 1500).is_err());
        assert!(tap("t0", 1, 17).is_err(), "an MTU no device has");
        gone("t0");
    });
}

/// A macvtap has the MAC address of its interface and takes what arrives there; gone, the interface is as before.
#[test]
#[ignore = "needs root"]
fn a_macvtap_takes_what_arrives() {
    inside(|| {
        let before = sh("ip -o link show va");
        let fds = macvtap("t0", index("va"), 2).unwrap();
        assert_eq!(fds.len(), 2);
        let mac = |name: &str| sh(&format!("ip -br link show {name} | awk '{{print $3}}'"));
        assert_eq!(mac("t0"), mac("va"));
        sh("ip addr add 192.0.2.1/24 dev vb; busybox ping -c 1 -W 1 192.0.2.9 || true");
        let mut fds_ready: Vec<_> = fds
            .iter()
            .map(|fd| nix::poll::PollFd::new(fd.as_fd(), nix::poll::PollFlags::POLLIN))
            .collect();
        let ready = bulkhead_host::deadline::poll(&mut fds_ready, Deadline::after(Duration::from_secs(30)));
        assert!(ready.unwrap() > 0);
        let mut netlink = Netlink::open().unwrap();
        link::remove(&mut netlink, "t0").unwrap();
        link::remove(&mut netlink, "t0").unwrap();
        assert_eq!(sh("ip -o link show va"), before);
    });
}

/// A change is told, silence is not.
#[test]
#[ignore = "needs root"]
fn a_watch_tells_of_changes() {
    inside(|| {
        let watch = Watch::begin().unwrap();
        assert!(!watch.drain().unwrap());
        for change in [
            "ip addr add 192.0.2.1/24 dev va",
            "ip route add 198.51.100.0/24 dev va",
            "ip neigh add 192.0.2.7 lladdr 02:00:00:00:00:07 dev va nud permanent",
            "ip link add vc type veth peer name vd",
            "ip link del vc",
        ] {
            sh(change);
            assert!(
                readable(watch.as_fd(), Deadline::after(Duration::from_secs(30))).unwrap(),
                "{change}"
            );
            assert!(watch.drain().unwrap(), "{change}");
        }
    });
}
