//! A containerd of the test's own.

use crate::cri::Cri;
use crate::image::{self, BUSYBOX, PAUSE};
use crate::place::{Engine, Place};
use bulkhead_e2e::{Call, Lab, QUICK, Running, until};
use std::cell::{Cell, RefCell};
use std::path::PathBuf;
use std::time::Duration;

/// Namespace of everything made over CRI.
pub(crate) const CRI_NAMESPACE: &str = "k8s.io";

/// containerd with its own configuration, root, state and socket. It goes with the test.
#[derive(Debug)]
pub struct Daemon {
    // Ends before the place is audited.
    running: RefCell<Option<Running>>,
    engine: Engine,
    ids: Cell<usize>,
    /// Where it lives.
    pub place: Place,
}

impl Daemon {
    /// Starts one whose default runtime is `engine`, with the busybox image in the test's namespace.
    #[must_use]
    pub fn start(engine: Engine) -> Self {
        let daemon = Self {
            running: RefCell::new(None),
            engine,
            ids: Cell::new(0),
            place: Place::new(),
        };
        daemon.configure();
        daemon.launch();
        let archive = daemon.place.dir().join("busybox.tar");
        image::busybox(&archive);
        let archive = archive.to_str().unwrap();
        let _ = daemon.ctr(&["image", "import", archive]).run().ok();
        daemon
    }

    /// One with images for pods as well.
    #[must_use]
    pub fn start_for_pods(engine: Engine) -> Self {
        let daemon = Self::start(engine);
        let pause = daemon.place.dir().join("pause.tar");
        image::pause(&pause);
        let busybox = daemon.place.dir().join("busybox.tar");
        for archive in [pause, busybox] {
            let args = ["-n", CRI_NAMESPACE, "image", "import", archive.to_str().unwrap()];
            let _ = daemon.ctr_plain(&args).run().ok();
        }
        daemon
    }

    fn configure(&self) {
        let dir = self.place.dir().display().to_string();
        std::fs::create_dir_all(self.place.dir().join("cni")).unwrap();
        let text = format!(
            r#"version = 2
root = "{dir}/root"
state = "{dir}/state"
[grpc]
  address = "{dir}/c.sock"
[plugins."io.containerd.grpc.v1.cri"]
  restrict_oom_score_adj = true
  disable_tcp_service = true
  disable_hugetlb_controller = true
  sandbox_image = "{PAUSE}"
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = "/usr/lib/cni"
    conf_dir = "{dir}/cni"
  [plugins."io.containerd.grpc.v1.cri".containerd]
    snapshotter = "overlayfs"
    default_runtime_name = "tested"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.tested]
      runtime_type = "{runtime}"
"#,
            runtime = self.engine.runtime()
        );
        std::fs::write(self.place.dir().join("config.toml"), text).unwrap();
        let third = std::process::id() % 200;
        let network = serde_json::json!({
            "cniVersion": "0.4.0", "name": self.place.token(),
            "plugins": [{
                "type": "ptp", "ipMasq": false,
                "ipam": { "type": "host-local", "subnet": format!("10.231.{third}.0/24"),
                          "dataDir": format!("{dir}/ipam"), "routes": [{ "dst": "0.0.0.0/0" }] },
            }],
        });
        let path = self.place.dir().join("cni/10-test.conflist");
        std::fs::write(path, network.to_string()).unwrap();
    }

    /// Starts the program, or starts it again.
    pub fn launch(&self) {
        let config = self.place.dir().join("config.toml");
        let log = std::fs::OpenOptions::new()
            .create(true)
            .append(true)
            .open(self.place.dir().join("containerd.log"))
            .unwrap();
        let running = self
            .place
            .program("containerd", &["--config", config.to_str().unwrap()])
            .env("BULKHEAD_CONFIG", Lab::config().to_str().unwrap())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .within(Duration::from_secs(3600))
            .start();
        *self.running.borrow_mut() = Some(running);
        until("containerd answers", QUICK, || {
            self.ctr_plain(&["version"]).run().status == 0
        });
    }

    /// Kills containerd; what it started goes on.
    pub fn kill(&self) {
        drop(self.running.borrow_mut().take());
    }

    /// The runtime its containers use.
    #[must_use]
    pub const fn engine(&self) -> Engine {
        self.engine
    }

    /// Its socket.
    #[must_use]
    pub fn socket(&self) -> PathBuf {
        self.place.dir().join("c.sock")
    }

    /// `ctr` in the test's namespace.
    #[must_use]
    pub fn ctr(&self, args: &[&str]) -> Call {
        let all: Vec<&str> = ["-n", self.place.token()]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.ctr_plain(&all)
    }

    fn ctr_plain(&self, args: &[&str]) -> Call {
        let socket = self.socket().display().to_string();
        let all: Vec<&str> = ["--address", &socket]
            .into_iter()
            .chain(args.iter().copied())
            .collect();
        self.place.program("ctr", &all)
    }

    /// A new container id.
    #[must_use]
    pub fn id(&self) -> String {
        let number = self.ids.replace(self.ids.get() + 1);
        let id = format!("{}-{number}", self.place.token());
        self.place.note(self.place.token(), &id);
        id
    }

    /// `ctr run` of busybox: options, id, command.
    #[must_use]
    pub fn run(&self, options: &[&str], id: &str, command: &[&str]) -> Call {
        let all: Vec<&str> = ["run", "--runtime", self.engine.runtime()]
            .into_iter()
            .chain(options.iter().copied())
            .chain([BUSYBOX, id])
            .chain(command.iter().copied())
            .collect();
        self.ctr(&all)
    }

    /// A detached container that sleeps.
    #[track_caller]
    #[must_use]
    pub fn sleeper(&self) -> String {
        let id = self.id();
        let _ = self.run(&["-d"], &id, &["sleep", "1000"]).run().ok();
        id
    }

    /// `ctr task exec` and its command; `name` is the exec id.
    #[must_use]
    pub fn exec(&self, id: &str, name: &str, command: &[&str]) -> Call {
        let all: Vec<&str> = ["task", "exec", "--exec-id", name, id]
            .into_iter()
            .chain(command.iter().copied())
            .collect();
        self.ctr(&all)
    }

    /// The status `ctr task ls` shows; empty when there is no such task.
    #[must_use]
    pub fn status(&self, id: &str) -> String {
        let list = self.ctr(&["task", "ls"]).run().ok().text();
        let line = list
            .lines()
            .find(|line| line.split_whitespace().next() == Some(id));
        line.and_then(|line| line.split_whitespace().nth(2))
            .unwrap_or_default()
            .to_owned()
    }

    /// Kills a container, waits for its end and removes it.
    #[track_caller]
    pub fn remove(&self, id: &str) {
        let _ = self.ctr(&["task", "kill", "--signal", "9", id]).run();
        until("the container has stopped", bulkhead_e2e::VERB, || {
            matches!(self.status(id).as_str(), "STOPPED" | "")
        });
        let _ = self.ctr(&["task", "delete", id]).run();
        let _ = self.ctr(&["container", "delete", id]).run().ok();
    }

    /// A CRI client.
    #[must_use]
    pub fn cri(&self) -> Cri<'_> {
        Cri::connect(self)
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            return;
        }
        if self.engine == Engine::Runc {
            // runc leaves the directory of the namespace.
            for entry in std::fs::read_dir("/sys/fs/cgroup")
                .into_iter()
                .flatten()
                .flatten()
            {
                let _ = std::fs::remove_dir(entry.path().join(self.place.token()));
            }
        }
        // containerd's own: nothing of a test's.
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let root = self.place.dir().display().to_string();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point.starts_with(&root) && point.contains("/shm") {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }
}
