//! A bundle, a fake supervisor and an engine's way in, for the tests of the stub.

use bulkhead_host::deadline::Deadline;
use bulkhead_host::{fdpass, process};
use bulkhead_model::{ContainerPlan, ExitStatus, ProcessKey};
use bulkhead_sandbox::{Command, Notice, Reply};
use bulkhead_shim::Message;
use bulkhead_shim::stub::{self, Stdio, Stub, StubRequest};
use serde_json::json;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::JoinHandle;
use std::time::Duration;

pub(crate) const LONG: Duration = Duration::from_secs(120);

pub(crate) fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC).unwrap()
}

/// A bundle with a busybox root, a volume beside it, and a secret that nobody may reach.
pub(crate) struct Bundle {
    pub(crate) dir: tempfile::TempDir,
    pub(crate) marker: String,
}

impl Bundle {
    pub(crate) fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        let bundle = Self {
            marker: format!("stub-test-{}", dir.path().file_name().unwrap().to_str().unwrap()),
            dir,
        };
        let root = bundle.path("rootfs");
        for name in ["bin", "proc", "dev", "etc", "vol", "ro", "tmp", "sys"] {
            std::fs::create_dir_all(root.join(name)).unwrap();
        }
        std::fs::copy("/bin/busybox", root.join("bin/busybox")).expect("busybox-static is installed");
        std::fs::write(root.join("etc/name"), "container").unwrap();
        std::fs::create_dir(bundle.path("volume")).unwrap();
        std::fs::write(bundle.path("volume/file"), "volume").unwrap();
        std::fs::write(bundle.path("secret"), "host").unwrap();
        bundle
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.dir.path().canonicalize().unwrap().join(name)
    }

    pub(crate) fn plan(&self, change: impl FnOnce(&mut serde_json::Value)) -> ContainerPlan {
        let mut spec = json!({
            "ociVersion": "1.0.2",
            "root": { "path": "rootfs" },
            "hostname": "inside",
            "mounts": [
                { "destination": "/proc", "type": "proc", "source": "proc" },
                { "destination": "/vol", "type": "bind", "source": "volume", "options": ["rbind"] },
                { "destination": "/ro", "type": "bind", "source": self.path("volume"), "options": ["bind", "ro"] },
                { "destination": "/tmp", "type": "tmpfs", "source": "tmpfs", "options": ["size=1m", "nosuid"] },
                { "destination": "/not/there", "type": "bind", "source": "volume", "options": ["rbind"] },
            ],
            "linux": { "namespaces": [{ "type": "network" }], "maskedPaths": ["/proc/meminfo"] },
        });
        change(&mut spec);
        serde_json::from_value(json!({
            "id": "c",
            "bundle": self.path(""),
            "rootfs": { "path": self.path("rootfs"), "readonly": spec["root"]["readonly"] == json!(true) },
            "spec": spec,
            "creates_sandbox": true,
        }))
        .unwrap()
    }

    pub(crate) fn request(&self, stdio: Stdio) -> StubRequest {
        self.request_of(&self.plan(|_| {}), stdio)
    }

    pub(crate) fn request_of(&self, plan: &ContainerPlan, stdio: Stdio) -> StubRequest {
        let mut request = StubRequest::for_container(plan, self.path("ctl"), &self.marker, stdio);
        request.program = Some(env!("CARGO_BIN_EXE_bulkhead").into());
        request
    }

    pub(crate) fn exec_request(&self, container: &Stub, exec: &str) -> StubRequest {
        let key: ProcessKey = serde_json::from_value(json!({ "container": "c", "exec": exec })).unwrap();
        let (ctl, stdio) = (self.path("ctl"), no_streams());
        let mut request = StubRequest::for_exec(key, container.process(), ctl, &self.marker, stdio);
        request.program = Some(env!("CARGO_BIN_EXE_bulkhead").into());
        request
    }

    /// A socket to connect to, and nobody behind it.
    pub(crate) fn listen(&self) -> UnixListener {
        let path = self.path("ctl");
        let _ = std::fs::remove_file(&path);
        UnixListener::bind(path).unwrap()
    }

    /// Nothing of this test may run any more.
    pub(crate) fn assert_no_processes(&self) {
        let left: Vec<_> = process::marked(None)
            .unwrap()
            .into_iter()
            .filter(|(_, _, mark)| mark.starts_with(&self.marker))
            .collect();
        assert_eq!(left, []);
    }
}

/// The other end of a stub's connection.
pub(crate) struct Supervisor {
    pub(crate) stream: UnixStream,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) attach: Command,
}

impl Supervisor {
    /// Listens, takes one attach and answers it with `answer`.
    pub(crate) fn start(bundle: &Bundle, answer: Message) -> JoinHandle<Self> {
        let listener = bundle.listen();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            Self::take(stream, &answer)
        })
    }

    /// Takes over as a fresh supervisor does: it connects to the stub, which reports for duty.
    pub(crate) fn succeed(socket: &Path) -> Self {
        Self::take(UnixStream::connect(socket).unwrap(), &Message::Ok(Reply::Done))
    }

    fn take(stream: UnixStream, answer: &Message) -> Self {
        stream.set_read_timeout(Some(LONG)).unwrap();
        let mut length = [0; 4];
        let (n, fds) = fdpass::receive(stream.as_fd(), &mut length, 3, Deadline::after(LONG)).unwrap();
        assert_eq!(n, 4);
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        (&stream).read_exact(&mut body).unwrap();
        let mut this = Self {
            stream,
            fds,
            attach: serde_json::from_slice(&body).unwrap(),
        };
        this.tell(answer);
        this
    }

    pub(crate) fn tell(&mut self, message: &Message) {
        let body = serde_json::to_vec(message).unwrap();
        let length = u32::try_from(body.len()).unwrap();
        self.stream.write_all(&length.to_le_bytes()).unwrap();
        self.stream.write_all(&body).unwrap();
    }

    pub(crate) fn notice(&mut self, notice: Notice) {
        self.tell(&Message::Notice(notice));
    }

    /// The next command; `None` at the end of the connection.
    pub(crate) fn hear(&mut self) -> Option<Command> {
        let mut length = [0; 4];
        match self.stream.read_exact(&mut length) {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return None,
            result => result.unwrap(),
        }
        let mut body = vec![0; u32::from_le_bytes(length) as usize];
        self.stream.read_exact(&mut body).unwrap();
        Some(serde_json::from_slice(&body).unwrap())
    }
}

pub(crate) fn start(bundle: &Bundle, request: StubRequest) -> (Stub, Supervisor) {
    let supervisor = Supervisor::start(bundle, Message::Ok(Reply::Done));
    let stub = stub::spawn(request).unwrap_or_else(|error| panic!("{error}: {error:?}"));
    (stub, supervisor.join().unwrap())
}

pub(crate) fn no_streams() -> Stdio {
    Stdio::Streams {
        stdin: None,
        stdout: None,
        stderr: None,
    }
}

pub(crate) fn exited(code: u8) -> Notice {
    Notice::Exited {
        status: ExitStatus::Code(code),
    }
}

/// Runs busybox where the stub lives, as an engine does: by the namespaces of its pid.
pub(crate) fn inside(stub: &Stub, args: &[&str]) -> std::process::Output {
    std::process::Command::new("nsenter")
        .arg(format!("--target={}", stub.process().pid))
        .args([
            "--mount",
            "--pid",
            "--ipc",
            "--uts",
            "--net",
            "--",
            "/bin/busybox",
        ])
        .args(args)
        .output()
        .unwrap()
}

pub(crate) fn says(stub: &Stub, args: &[&str]) -> String {
    let output = inside(stub, args);
    assert!(
        output.status.success(),
        "{args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap().trim().to_owned()
}

pub(crate) fn namespace(pid: i32, name: &str) -> (u64, u64) {
    let meta = std::fs::metadata(format!("/proc/{pid}/ns/{name}")).unwrap();
    (meta.dev(), meta.ino())
}

pub(crate) const ALL: [&str; 5] = ["mnt", "pid", "ipc", "uts", "net"];
