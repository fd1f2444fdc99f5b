//! The network containerd lives in: a namespace of the test's own, in which CNI makes its bridge and its rules.
//!
//! ```text
//!  world: containerd, cni0 10.231.0.1/24 ── veth ═══ eth0 :pod        the host's namespace is not touched
//! ```
//! Owns: the namespace, which goes with it, and the configuration of the plugins. Never: an expectation.

use crate::place::Place;
use bulkhead_e2e::{Call, Outcome, QUICK};
use std::path::{Path, PathBuf};

/// Where Debian's containernetworking-plugins puts them.
pub(crate) const PLUGINS: &str = "/usr/lib/cni";

/// The bridge's address, which pods have as their gateway.
pub const GATEWAY: &str = "10.231.0.1";

/// A network namespace.
#[derive(Debug)]
pub struct World {
    name: String,
}

impl World {
    /// Makes it.
    #[must_use]
    pub fn new(place: &Place) -> Self {
        let world = Self {
            name: place.token().to_owned(),
        };
        for words in [
            ["netns", "add", &world.name].as_slice(),
            &["-n", &world.name, "link", "set", "lo", "up"],
        ] {
            let _ = place.program("/usr/sbin/ip", words).run().ok();
        }
        world
    }

    /// An invocation of a program inside.
    #[must_use]
    pub fn program(&self, place: &Place, program: &str, args: &[&str]) -> Call {
        let net = format!("--net={}", self.path().display());
        let words: Vec<&str> = [net.as_str(), program]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        place.program("nsenter", &words)
    }

    /// Runs a shell script inside.
    #[must_use]
    pub fn run(&self, place: &Place, script: &str) -> Outcome {
        self.program(place, "/bin/sh", &["-c", script])
            .within(QUICK)
            .run()
    }

    /// The file that holds it.
    #[must_use]
    pub fn path(&self) -> PathBuf {
        Path::new("/run/netns").join(&self.name)
    }

    /// Writes what containerd and `ctr` are to have as their CNI configuration into `dir`.
    pub(crate) fn configure(place: &Place, dir: &Path) {
        std::fs::create_dir_all(dir).unwrap();
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": place.token(),
            "plugins": [
                {
                    "type": "bridge", "bridge": "cni0", "isGateway": true, "hairpinMode": true,
                    "ipam": { "type": "host-local", "subnet": "10.231.0.0/24",
                              "dataDir": place.dir().join("ipam"), "routes": [{ "dst": "0.0.0.0/0" }] },
                },
                { "type": "portmap", "capabilities": { "portMappings": true } },
            ],
        });
        std::fs::write(dir.join("10-test.conflist"), network.to_string()).unwrap();
    }
}

impl Drop for World {
    fn drop(&mut self) {
        // A test that failed may have left processes that use it: the name goes all the same.
        let removed = std::process::Command::new("/usr/sbin/ip")
            .args(["netns", "del", &self.name])
            .status();
        assert!(
            std::thread::panicking() || removed.is_ok_and(|status| status.success()),
            "the network namespace {} stays",
            self.name
        );
    }
}
