//! Network namespaces of a test: a world with a bridge, and pods on it. The host's own namespace is not touched.
//!
//! ```text
//!  world: br0 10.77.0.1/24, fd77::1/64 ── p0 ═══ eth0 :pod 0 (10.77.0.10, fd77::10)
//!                                      └─ p1 ═══ eth0 :pod 1 (10.77.0.11, fd77::11)
//! ```
//! Owns: the namespaces, which go with it, and what is asked in them. Never: an expectation.

use crate::call::{Call, Outcome};
use crate::{Lab, QUICK};
use std::cell::RefCell;
use std::path::PathBuf;

/// Applets for which the host may have no program of its own.
const HOST_TOOLS: &str = "for a in ping nc wget httpd; do alias $a=\"busybox $a\"; done\n";

/// The namespaces of one test.
#[derive(Debug)]
pub struct Net<'a> {
    lab: &'a Lab,
    names: RefCell<Vec<String>>,
}

impl<'a> Net<'a> {
    /// A world without pods.
    #[must_use]
    pub fn new(lab: &'a Lab) -> Self {
        let net = Self {
            lab,
            names: RefCell::default(),
        };
        net.add("world");
        for arguments in [
            "link set lo up",
            "link add br0 type bridge forward_delay 0 mcast_snooping 0",
            "addr add 10.77.0.1/24 dev br0",
            "-6 addr add fd77::1/64 dev br0 nodad",
            "link set br0 up",
        ] {
            net.ip("world", arguments);
        }
        net
    }

    /// Makes a namespace.
    pub fn add(&self, name: &str) {
        let full = self.full(name);
        let _ = self
            .lab
            .program("/usr/sbin/ip", &["netns", "add", &full])
            .run()
            .ok();
        self.names.borrow_mut().push(name.to_owned());
    }

    /// Removes a namespace, or its name if something still uses it.
    pub fn remove(&self, name: &str) {
        self.names.borrow_mut().retain(|one| one != name);
        let full = self.full(name);
        let _ = self
            .lab
            .program("/usr/sbin/ip", &["netns", "del", &full])
            .run()
            .ok();
    }

    /// Makes a namespace `pod<number>` with `eth0` on the bridge: 10.77.0.`<10 + number>` and `fd77::<10 + number>`,
    /// default routes, and MTU 1400.
    pub fn pod(&self, number: u8) -> String {
        let name = format!("pod{number}");
        self.add(&name);
        self.ip(&name, "link set lo up");
        self.veth(&name, "eth0", &format!("p{number}"));
        let host = 10 + number;
        for arguments in [
            format!("addr add 10.77.0.{host}/24 broadcast 10.77.0.255 dev eth0"),
            format!("-6 addr add fd77::{host}/64 dev eth0 nodad"),
            "link set eth0 mtu 1400".to_owned(),
            "link set eth0 up".to_owned(),
            "route add default via 10.77.0.1".to_owned(),
            "-6 route add default via fd77::1".to_owned(),
        ] {
            self.ip(&name, &arguments);
        }
        name
    }

    /// A veth pair between `name`, where its end is called `inside`, and the bridge.
    pub fn veth(&self, name: &str, inside: &str, outside: &str) {
        let full = self.full(name);
        self.ip(
            "world",
            &format!("link add {outside} type veth peer name {inside} netns {full}"),
        );
        self.ip("world", &format!("link set {outside} master br0 up"));
    }

    /// Runs `ip` in a namespace; what it prints.
    #[track_caller]
    pub fn ip(&self, name: &str, arguments: &str) -> String {
        let full = self.full(name);
        let words: Vec<&str> = ["-n", &full].into_iter().chain(arguments.split(' ')).collect();
        self.lab.program("/usr/sbin/ip", &words).run().ok().text()
    }

    /// A shell script of busybox and what else is on the host, in a namespace.
    #[must_use]
    pub fn script(&self, name: &str, script: &str) -> Call {
        let net = format!("--net={}", self.path(name).display());
        self.lab.program(
            "/usr/bin/nsenter",
            &[&net, "/bin/sh", "-c", &format!("{HOST_TOOLS}{script}")],
        )
    }

    /// Runs it.
    #[must_use]
    pub fn run(&self, name: &str, script: &str) -> Outcome {
        self.script(name, script).within(QUICK).run()
    }

    /// Path of a namespace.
    #[must_use]
    pub fn path(&self, name: &str) -> PathBuf {
        PathBuf::from("/run/netns").join(self.full(name))
    }

    /// Links, queues and filters in a namespace: what a runtime may not leave changed.
    #[must_use]
    pub fn inventory(&self, name: &str) -> String {
        let script = "ip -o link | sed 's/^[0-9]*: //; s/ qlen.*//; s/ state [A-Z]*//'; tc qdisc show; \
            for l in $(ls /proc/sys/net/ipv4/conf); do tc filter show dev $l ingress 2>/dev/null; done; ip addr | sed 's/ tentative//'; ip route; ip -6 route";
        self.run(name, script).ok().text()
    }

    fn full(&self, name: &str) -> String {
        format!("{}-{name}", self.lab.token())
    }
}

impl Drop for Net<'_> {
    fn drop(&mut self) {
        for name in self.names.borrow().iter() {
            let full = self.full(name);
            // A test that failed may have left processes that use it: the name goes all the same.
            let _ = self.lab.program("/usr/sbin/ip", &["netns", "del", &full]).run();
        }
    }
}
