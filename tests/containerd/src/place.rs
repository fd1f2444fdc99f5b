//! One test's place in the world: a directory, names nobody else uses, and the audit at its end.

use bulkhead_e2e::{Audit, Call, until};
use bulkhead_host::process::{MARKER, Spawn, marked, signal_exact, wait_gone};
use bulkhead_model::SandboxId;
use bulkhead_sandbox::Layout;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// A containerd runtime: conformance tests prove themselves on runc's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Engine {
    /// The one under test.
    Bulkhead,
    /// The reference.
    Runc,
}

impl Engine {
    /// Name for containerd.
    #[must_use]
    pub const fn runtime(self) -> &'static str {
        match self {
            Self::Bulkhead => "io.containerd.bulkhead.v2",
            Self::Runc => "io.containerd.runc.v2",
        }
    }

    /// Name of the shim's program.
    #[must_use]
    pub const fn shim(self) -> &'static str {
        match self {
            Self::Bulkhead => "containerd-shim-bulkhead-v2",
            Self::Runc => "containerd-shim-runc-v2",
        }
    }
}

/// Where a test lives. When it goes, everything that carries its token or belongs to one of its sandboxes must be gone.
#[derive(Debug)]
pub struct Place {
    token: String,
    dir: PathBuf,
    before: Audit,
    calls: Cell<usize>,
    sandboxes: RefCell<Vec<(String, String)>>,
}

impl Place {
    /// A new one, with the shim's link in `bin`.
    #[must_use]
    pub fn new() -> Self {
        let token = bulkhead_e2e::token("bhctr");
        let dir = std::env::temp_dir().join(&token);
        std::fs::create_dir_all(dir.join("bin")).unwrap();
        let program = bulkhead_e2e::Runtime::Bulkhead.program();
        std::os::unix::fs::symlink(program, dir.join("bin").join(Engine::Bulkhead.shim())).unwrap();
        Self {
            token,
            dir,
            before: Audit::before(),
            calls: Cell::new(0),
            sandboxes: RefCell::default(),
        }
    }

    /// The test's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// A word that is in the name of everything this test makes; containerd's namespace, too.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The search path with the shim under test in it.
    #[must_use]
    pub fn path(&self) -> String {
        let path = std::env::var("PATH").unwrap_or_default();
        format!("{}:{path}", self.dir.join("bin").display())
    }

    /// An invocation of a program in the surroundings of the test.
    #[must_use]
    pub fn program(&self, program: &str, args: &[&str]) -> Call {
        let number = self.calls.replace(self.calls.get() + 1);
        let ours = self.dir.join("bin").join(program);
        let found = if ours.exists() {
            ours
        } else {
            PathBuf::from(program)
        };
        let spawn = Spawn::new(found)
            .args(args)
            .env("PATH", self.path())
            .env("BULKHEAD_E2E", &self.token);
        let line = format!("{program} {}", args.join(" "));
        Call::new(spawn, line, &self.dir, number, bulkhead_e2e::VERB)
    }

    /// Notes a sandbox of a containerd namespace, for the audit and the clean-up.
    pub fn note(&self, namespace: &str, id: &str) {
        self.sandboxes
            .borrow_mut()
            .push((namespace.to_owned(), id.to_owned()));
    }

    /// State root of bulkhead's sandboxes in a containerd namespace.
    #[must_use]
    pub fn root(namespace: &str) -> PathBuf {
        Path::new("/run/bulkhead/containerd").join(namespace)
    }

    /// What stands in the environment of a sandbox's processes, before the role.
    #[must_use]
    pub fn marker(namespace: &str, id: &str) -> String {
        let id = SandboxId::new(id.to_owned()).unwrap();
        Layout::new(Self::root(namespace)).sandbox(&id).marker
    }

    /// Processes of a sandbox with this role.
    #[must_use]
    pub fn marked(&self, namespace: &str, id: &str, role: &str) -> Vec<(i32, u64)> {
        let value = format!("{}/{role}", Self::marker(namespace, id));
        let found = marked(Some(&value)).unwrap();
        found.into_iter().map(|(pid, start, _)| (pid, start)).collect()
    }

    fn markers(&self) -> Vec<String> {
        let all = self.sandboxes.borrow();
        all.iter()
            .map(|(namespace, id)| Self::marker(namespace, id))
            .collect()
    }

    /// What is left of the test right now.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        // The root of its own namespace; sandboxes of others are told by their markers.
        let root = Self::root(&self.token);
        let mut leaks = self.before.leaks(&self.token, &self.markers(), &root);
        // Its own directory is there to the end; links come and go with the pods of other tests.
        let own = format!("file {}", self.dir.display());
        leaks.retain(|leak| *leak != own && !leak.starts_with("network link"));
        leaks
    }

    /// Waits until the shim of the test's sandbox `id` has ended, and asserts that nothing is left of it.
    #[track_caller]
    pub fn assert_shim_ends(&self, id: &str, within: Duration) {
        until("the shim has ended", within, || {
            self.marked(&self.token, id, "supervisor").is_empty()
        });
        self.assert_no_sandbox(&self.token, id);
    }

    /// Asserts that nothing is left but what runs in the test's surroundings (a containerd).
    #[track_caller]
    pub fn assert_no_sandbox(&self, namespace: &str, id: &str) {
        let marker = Self::marker(namespace, id);
        let mut leaks = self.before.leaks(&marker, &[], &Self::root(&self.token));
        leaks.retain(|leak| !leak.starts_with("network link"));
        assert!(leaks.is_empty(), "left of {id}:\n{}", leaks.join("\n"));
    }

    /// Ends what a failed test has left.
    fn clean_up(&self) {
        let markers = self.markers();
        for (pid, start, value) in marked(None).unwrap_or_default() {
            let ours = markers.iter().any(|marker| value.starts_with(marker.as_str()))
                || environment(pid).contains(&self.token);
            if ours && signal_exact(pid, start, 9).unwrap_or(false) {
                let _ = wait_gone(pid, start, Duration::from_secs(10));
            }
        }
        for marker in &markers {
            let _ = std::fs::remove_dir_all(Path::new("/run/bulkhead/s").join(marker));
        }
        for (namespace, id) in self.sandboxes.borrow().iter() {
            let root = Self::root(namespace);
            let _ = std::fs::remove_dir_all(root.join("sandboxes").join(id));
            let _ = std::fs::remove_dir_all(root.join("containers").join(id));
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if point.contains(&self.token) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
    }

    fn print_logs(&self) {
        for (namespace, id) in self.sandboxes.borrow().iter() {
            let path = Self::root(namespace).join("sandboxes").join(id).join("log");
            if let Ok(log) = std::fs::read_to_string(&path) {
                eprintln!("--- {}\n{}", path.display(), last_lines(&log, 40));
            }
        }
        if let Ok(log) = std::fs::read_to_string(self.dir.join("containerd.log")) {
            eprintln!("--- containerd.log\n{}", last_lines(&log, 60));
        }
    }
}

fn environment(pid: i32) -> String {
    let bytes = std::fs::read(format!("/proc/{pid}/environ")).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

fn last_lines(text: &str, count: usize) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

impl Default for Place {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        // The audit looks at processes by what is in their environment; a shim has the marker only.
        debug_assert_eq!(MARKER, "BULKHEAD_SANDBOX");
        let failed = std::thread::panicking();
        let leaks = if failed { Vec::new() } else { self.leaks() };
        if failed || !leaks.is_empty() {
            self.print_logs();
            self.clean_up();
        }
        if std::env::var_os("BULKHEAD_E2E_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        let root = Self::root(&self.token);
        let _ = std::fs::remove_dir_all(root);
        assert!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    }
}
