//! One virtual machine with one disk: the root file system of containers.

use bulkhead_model::{ContainerId, ExecId, ProcessKey};
use bulkhead_protocol::host_end::{Attachment, Client, StreamStore};
use bulkhead_protocol::{
    Guest, GuestContainer, GuestError, GuestExit, GuestIdentity, GuestPids, GuestStdio, GuestStorage,
};
use serde_json::{Value, json};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

/// Where the disk with the root file system is mounted.
pub(crate) const ROOTFS: &str = "/run/bulkhead/share/disk/rootfs";

/// A booted guest; QEMU ends with it.
pub(crate) struct Machine {
    pub(crate) guest: Client,
    qemu: Child,
    directory: tempfile::TempDir,
    streams: AtomicU32,
}

fn asset(variable: &str, name: &str) -> PathBuf {
    std::env::var_os(variable).map_or_else(|| Path::new("/var/lib/bulkhead/guest").join(name), PathBuf::from)
}

fn run(command: &mut Command) {
    let output = command.output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// An ext4 image with busybox under all its names.
fn make_disk(directory: &Path) -> PathBuf {
    let root = directory.join("root");
    let rootfs = root.join("rootfs");
    for name in ["bin", "etc", "proc", "sys", "dev", "tmp", "root"] {
        std::fs::create_dir_all(rootfs.join(name)).unwrap();
    }
    std::fs::copy("/bin/busybox", rootfs.join("bin/busybox")).unwrap();
    let list = Command::new("/bin/busybox").arg("--list").output().unwrap();
    for name in String::from_utf8(list.stdout)
        .unwrap()
        .lines()
        .filter(|name| *name != "busybox")
    {
        std::os::unix::fs::symlink("busybox", rootfs.join("bin").join(name)).unwrap();
    }
    std::fs::write(
        rootfs.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nalice:x:1000:1000::/home/alice:/bin/sh\n",
    )
    .unwrap();
    std::fs::write(rootfs.join("etc/plain"), "not a program\n").unwrap();
    let image = directory.join("disk.img");
    run(Command::new("mke2fs")
        .args(["-q", "-t", "ext4", "-d"])
        .arg(&root)
        .arg(&image)
        .arg("64M"));
    image
}

impl Machine {
    /// Boots one and mounts its disk.
    pub(crate) async fn boot() -> Self {
        let machine = Self::bare().await;
        machine.ok(machine.guest.configure(identity()).await);
        machine
    }

    /// Boots one that was told nothing yet.
    pub(crate) async fn bare() -> Self {
        let directory = tempfile::tempdir().unwrap();
        let image = make_disk(directory.path());
        let (control, their_control) = UnixStream::pair().unwrap();
        let (data, their_data) = UnixStream::pair().unwrap();
        let console = directory.path().join("console");
        // Dies with this process, however that ends.
        let qemu = Command::new("setpriv")
            .args(["--pdeathsig", "KILL", "qemu-system-x86_64"])
            .args([
                "-M",
                "q35",
                "-accel",
                "tcg,thread=multi",
                "-m",
                "384",
                "-smp",
                "2",
                "-no-reboot",
            ])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-monitor",
                "none",
            ])
            .arg("-kernel")
            .arg(asset("BULKHEAD_TEST_KERNEL", "vmlinux"))
            .arg("-initrd")
            .arg(asset("BULKHEAD_TEST_INITRD", "initrd"))
            .args([
                "-append",
                // One CPU while it boots, as in a sandbox: a kernel that patches itself beside another translated CPU may
                // trip over it.
                "console=ttyS0 quiet panic=-1 tsc=reliable no_timer_check cryptomgr.notests maxcpus=1",
            ])
            .arg("-serial")
            .arg(format!("file:{}", console.display()))
            .args(["-device", "virtio-serial-pci"])
            .args([
                "-chardev",
                "socket,id=control,fd=0",
                "-chardev",
                "socket,id=data,fd=1",
            ])
            .args([
                "-device",
                "virtserialport,chardev=control,name=org.bulkhead.control",
            ])
            .args(["-device", "virtserialport,chardev=data,name=org.bulkhead.data"])
            .args([
                "-device",
                "pcie-root-port,id=slot8,bus=pcie.0,addr=0x08,chassis=1",
            ])
            .arg("-drive")
            .arg(format!("if=none,id=disk,format=raw,file={}", image.display()))
            .args(["-device", "virtio-blk-pci,drive=disk,bus=slot8,addr=0x0"])
            .stdin(Stdio::from(OwnedFd::from(their_control)))
            .stdout(Stdio::from(OwnedFd::from(their_data)))
            .spawn()
            .unwrap();
        let attachment = Attachment {
            control: control.into(),
            data: data.into(),
            store: Arc::new(StreamStore::memory()),
            reattach: false,
            deadline: Duration::from_secs(180),
        };
        let guest = match Client::connect(attachment).await {
            Ok(guest) => guest,
            Err(error) => panic!(
                "{error}; console: {}",
                std::fs::read_to_string(&console).unwrap_or_default()
            ),
        };
        Self {
            guest,
            qemu,
            directory,
            streams: AtomicU32::new(1),
        }
    }

    /// What the guest wrote to its console.
    pub(crate) fn console(&self) -> String {
        std::fs::read_to_string(self.directory.path().join("console")).unwrap_or_default()
    }

    pub(crate) fn ok<T>(&self, result: Result<T, GuestError>) -> T {
        match result {
            Ok(value) => value,
            Err(error) => panic!("{error}; console: {}", self.console()),
        }
    }

    /// The end of a process; two minutes are more than any of these takes.
    pub(crate) async fn end(&self, key: &ProcessKey) -> GuestExit {
        match tokio::time::timeout(Duration::from_secs(120), self.guest.wait(key)).await {
            Ok(exit) => self.ok(exit),
            Err(_) => panic!("{key} does not end; console: {}", self.console()),
        }
    }

    pub(crate) fn stream(&self) -> u32 {
        self.streams.fetch_add(1, Ordering::Relaxed)
    }

    /// Streams whose output is collected. Without input the process sees an end of file at once.
    pub(crate) fn collect(&self) -> (GuestStdio, Output) {
        let stdio = GuestStdio {
            stdout: self.stream(),
            stderr: self.stream(),
            ..GuestStdio::default()
        };
        let collect = |stream| {
            let (mut reader, writer) = std::io::pipe().unwrap();
            self.guest.connect_output(stream, writer.into()).unwrap();
            std::thread::spawn(move || {
                let mut text = Vec::new();
                reader.read_to_end(&mut text).unwrap();
                String::from_utf8_lossy(&text).into_owned()
            })
        };
        let output = Output {
            stdout: collect(stdio.stdout),
            stderr: collect(stdio.stderr),
        };
        (stdio, output)
    }

    /// Makes container `id` with `spec`.
    pub(crate) async fn create(&self, id: &str, spec: &Value, stdio: GuestStdio) -> Result<i32, GuestError> {
        self.guest.create_container(described(id, spec, stdio)).await
    }

    /// The same, started by the same call.
    pub(crate) async fn create_started(
        &self,
        id: &str,
        spec: &Value,
        stdio: GuestStdio,
    ) -> Result<i32, GuestError> {
        let container = GuestContainer {
            start: true,
            ..described(id, spec, stdio)
        };
        self.guest.create_container(container).await
    }

    /// Runs a container to its end and removes it: its exit, standard output and error.
    pub(crate) async fn run(&self, id: &str, spec: &Value) -> (GuestExit, String, String) {
        let (stdio, output) = self.collect();
        self.ok(self.create(id, spec, stdio).await);
        self.ok(self.guest.start_container(&container(id)).await);
        let exit = self.end(&key(id, None)).await;
        self.ok(self.guest.remove_container(&container(id)).await);
        (exit, output.stdout.join().unwrap(), output.stderr.join().unwrap())
    }

    /// Runs a further process to its end.
    pub(crate) async fn exec(&self, id: &str, exec: &str, process: &Value) -> (GuestExit, String, String) {
        let (stdio, output) = self.collect();
        let key = key(id, Some(exec));
        self.ok(self
            .guest
            .exec(&key, serde_json::to_vec(process).unwrap(), stdio)
            .await);
        let exit = self.end(&key).await;
        self.ok(self.guest.forget(&key).await);
        (exit, output.stdout.join().unwrap(), output.stderr.join().unwrap())
    }

    /// A container that sleeps.
    pub(crate) async fn sleeper(&self, id: &str) -> i32 {
        let pid = self
            .create(id, &spec(&["sleep", "1000"]), GuestStdio::default())
            .await;
        let pid = self.ok(pid);
        self.ok(self.guest.start_container(&container(id)).await);
        pid
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Threads that collect what a process writes.
pub(crate) struct Output {
    pub(crate) stdout: std::thread::JoinHandle<String>,
    pub(crate) stderr: std::thread::JoinHandle<String>,
}

fn described(id: &str, spec: &Value, stdio: GuestStdio) -> GuestContainer {
    GuestContainer {
        id: container(id),
        spec: serde_json::to_vec(spec).unwrap(),
        bundle: "/the/bundle".to_owned(),
        rootfs: ROOTFS.to_owned(),
        storages: Vec::new(),
        stdio,
        no_pivot: false,
        no_new_keyring: false,
        seccomp: true,
        pipe_bytes: 0,
        whole_dev: false,
        pids: GuestPids::Own,
        start: false,
    }
}

/// Who a machine is.
pub(crate) fn identity() -> GuestIdentity {
    GuestIdentity {
        hostname: "guesthost".to_owned(),
        storages: vec![disk("/run/bulkhead/share/disk")],
        shm_bytes: 8 << 20,
        entropy: vec![7; 32],
        ..GuestIdentity::default()
    }
}

/// The machine's disk as a storage.
pub(crate) fn disk(mount_point: &str) -> GuestStorage {
    GuestStorage {
        driver: "blk".to_owned(),
        source: "08/00".to_owned(),
        fstype: "ext4".to_owned(),
        options: Vec::new(),
        mount_point: mount_point.to_owned(),
    }
}

pub(crate) fn container(id: &str) -> ContainerId {
    ContainerId::new(id).unwrap()
}

pub(crate) fn key(id: &str, exec: Option<&str>) -> ProcessKey {
    ProcessKey {
        container: container(id),
        exec: exec.map(|exec| ExecId::new(exec).unwrap()),
    }
}

/// A process as container managers describe it.
pub(crate) fn process(args: &[&str]) -> Value {
    let caps = json!([
        "CAP_CHOWN",
        "CAP_KILL",
        "CAP_MKNOD",
        "CAP_NET_BIND_SERVICE",
        "CAP_SETUID",
        "CAP_SETGID",
        "CAP_DAC_OVERRIDE"
    ]);
    json!({
        "user": {"uid": 0, "gid": 0}, "cwd": "/", "args": args,
        "env": ["PATH=/usr/bin:/bin", "TERM=xterm"],
        "capabilities": {"bounding": caps, "effective": caps, "permitted": caps}
    })
}

/// A spec like runc's default.
pub(crate) fn spec(args: &[&str]) -> Value {
    json!({
        "ociVersion": "1.0.2", "root": {"path": "rootfs"}, "hostname": "box", "process": process(args),
        "mounts": [
            {"destination": "/proc", "type": "proc", "source": "proc"},
            {"destination": "/dev", "type": "tmpfs", "source": "tmpfs", "options": ["nosuid", "strictatime", "mode=755", "size=65536k"]},
            {"destination": "/dev/pts", "type": "devpts", "source": "devpts", "options": ["nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"]},
            {"destination": "/dev/shm", "type": "tmpfs", "source": "shm", "options": ["nosuid", "noexec", "nodev", "mode=1777", "size=65536k"]},
            {"destination": "/dev/mqueue", "type": "mqueue", "source": "mqueue", "options": ["nosuid", "noexec", "nodev"]},
            {"destination": "/sys", "type": "sysfs", "source": "sysfs", "options": ["nosuid", "noexec", "nodev", "ro"]},
            {"destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup", "options": ["nosuid", "noexec", "nodev", "relatime", "ro"]}
        ],
        "linux": {
            "resources": {"devices": [{"allow": false, "access": "rwm"}]},
            "namespaces": [{"type": "pid"}, {"type": "network"}, {"type": "ipc"}, {"type": "uts"}, {"type": "mount"}, {"type": "cgroup"}],
            "maskedPaths": ["/proc/kcore", "/proc/keys"], "readonlyPaths": ["/proc/sys", "/proc/bus"]
        }
    })
}
