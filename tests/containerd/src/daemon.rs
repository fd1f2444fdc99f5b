//! A containerd of the test's own.

use crate::cri::Cri;
use crate::image::{self, BUSYBOX, PAUSE};
use crate::place::{Engine, Place};
use crate::world::{PLUGINS, World};
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
    /// The network it lives in.
    pub world: World,
    /// Where it lives.
    pub place: Place,
}

impl Daemon {
    /// Starts one whose default runtime is `engine`, with the busybox image in the test's namespace.
    #[must_use]
    pub fn start(engine: Engine) -> Self {
        let place = Place::new();
        let daemon = Self {
            running: RefCell::new(None),
            engine,
            ids: Cell::new(0),
            world: World::new(&place),
            place,
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
        World::configure(&self.place, &self.place.dir().join("cni"));
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
    bin_dir = "{PLUGINS}"
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
            .world
            .program(&self.place, "containerd", &["--config", config.to_str().unwrap()])
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

    /// `ctr run --cni`: network plugins set up the namespace of the task's pid between its create and its start.
    #[must_use]
    pub fn run_with_cni(&self, id: &str, command: &[&str]) -> Call {
        // ctr looks for plugins and their configuration in fixed places: it has a view of its own of those.
        let dir = self.place.dir().display().to_string();
        let script = format!(
            "set -e; for d in etc opt; do mkdir -p {dir}/view/$d {dir}/view/$d.work; \
            mount -t overlay overlay -o lowerdir=/$d,upperdir={dir}/view/$d,workdir={dir}/view/$d.work /$d; done; \
            mkdir -p /etc/cni/net.d /opt/cni; cp {dir}/cni/* /etc/cni/net.d; ln -sfn {PLUGINS} /opt/cni/bin; exec \"$@\""
        );
        let socket = self.socket().display().to_string();
        let words = [
            "--mount",
            "--propagation",
            "private",
            "/bin/sh",
            "-c",
            &script,
            "sh",
            "ctr",
            "--address",
            &socket,
            "-n",
            self.place.token(),
            "run",
            "--rm",
            "--cni",
            "--runtime",
            self.engine.runtime(),
            BUSYBOX,
            id,
        ];
        let words: Vec<&str> = words.into_iter().chain(command.iter().copied()).collect();
        self.world.program(&self.place, "unshare", &words)
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
        // The parent of all of a test's stays empty when it was made for one and used by others: it is the client's.
        for entry in std::fs::read_dir("/sys/fs/cgroup")
            .into_iter()
            .flatten()
            .flatten()
        {
            let _ = std::fs::remove_dir(entry.path().join(self.place.token()));
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
