//! One test's place in the world: a directory, a state root, names nobody else uses.

use crate::audit::{Audit, processes};
use crate::bundle::Bundle;
use crate::call::{Call, Outcome};
use crate::runtime::Runtime;
use crate::{QUICK, VERB};
use bulkhead_host::process::Spawn;
use bulkhead_model::SandboxId;
use bulkhead_sandbox::Layout;
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::path::{Path, PathBuf};

/// A test's surroundings. When it goes, everything the test started must be gone; a failed test is cleaned up after.
#[derive(Debug)]
pub struct Lab {
    runtime: Runtime,
    token: String,
    dir: PathBuf,
    root: PathBuf,
    before: Audit,
    ids: RefCell<Vec<String>>,
    calls: Cell<usize>,
    bundles: Cell<usize>,
}

impl Lab {
    /// A lab for the runtime under test.
    #[must_use]
    pub fn new() -> Self {
        Self::with(Runtime::Bulkhead)
    }

    /// A lab for `runtime`.
    #[must_use]
    pub fn with(runtime: Runtime) -> Self {
        let token = crate::token("bhe2e");
        let dir = std::env::temp_dir().join(&token);
        std::fs::create_dir_all(&dir).unwrap();
        Self {
            runtime,
            root: dir.join("root"),
            dir,
            token,
            before: Audit::before(),
            ids: RefCell::default(),
            calls: Cell::new(0),
            bundles: Cell::new(0),
        }
    }

    /// The configuration that names the guest under test; the guest lies beside it.
    #[must_use]
    pub fn config() -> PathBuf {
        crate::runtime::config()
    }

    /// The same with templates switched off, for tests of a boot.
    #[must_use]
    pub fn cold_config(&self) -> PathBuf {
        let text = std::fs::read_to_string(Self::config()).unwrap();
        let base = text.split("[factory]").next().unwrap_or_default();
        let path = self.dir.join("cold.toml");
        std::fs::write(&path, format!("{base}[factory]\ntemplate = \"off\"\n")).unwrap();
        path
    }

    /// The test's own directory.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// The state root.
    #[must_use]
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Puts the state root elsewhere; it must lie in the lab's directory.
    #[must_use]
    pub fn root_at(mut self, root: PathBuf) -> Self {
        assert!(
            root.starts_with(&self.dir),
            "{root:?} is outside of {:?}",
            self.dir
        );
        self.root = root;
        self
    }

    /// A word that is in the name of everything this test makes.
    #[must_use]
    pub fn token(&self) -> &str {
        &self.token
    }

    /// A new container id.
    #[must_use]
    pub fn id(&self) -> String {
        let mut ids = self.ids.borrow_mut();
        let id = format!("{}-{}", self.token, ids.len());
        ids.push(id.clone());
        id
    }

    /// A new busybox bundle.
    #[must_use]
    pub fn bundle(&self) -> Bundle {
        let number = self.bundles.replace(self.bundles.get() + 1);
        Bundle::make(&self.dir.join(format!("bundle-{number}")))
    }

    /// An invocation of the runtime with its global options.
    #[must_use]
    pub fn call(&self, args: &[&str]) -> Call {
        let options = self.runtime.global_options();
        let options: Vec<&str> = options.iter().map(String::as_str).collect();
        self.call_with(&options, args)
    }

    /// An invocation with these global options beside `--root`.
    #[must_use]
    pub fn call_with(&self, options: &[&str], args: &[&str]) -> Call {
        let root = self.root.to_str().expect("temporary paths are UTF-8");
        let all: Vec<&str> = ["--root", root]
            .into_iter()
            .chain(options.iter().copied())
            .chain(args.iter().copied())
            .collect();
        let program = self.runtime.program();
        let line = format!("{} {}", program.display(), args.join(" "));
        self.raw(Spawn::new(program).args(all), line)
    }

    /// Any program, with the token in its environment.
    #[must_use]
    pub fn program(&self, program: &str, args: &[&str]) -> Call {
        self.raw(
            Spawn::new(program).args(args),
            format!("{program} {}", args.join(" ")),
        )
    }

    fn raw(&self, spawn: Spawn, line: String) -> Call {
        let number = self.calls.replace(self.calls.get() + 1);
        let path = std::env::var("PATH").unwrap_or_default();
        let spawn = spawn.env("PATH", path).env("BULKHEAD_E2E", &self.token);
        Call::new(spawn, line, &self.dir, number, VERB)
    }

    /// Runs a verb that starts nothing.
    #[must_use]
    pub fn quick(&self, args: &[&str]) -> Outcome {
        self.call(args).within(QUICK).run()
    }

    /// Creates a container; its standard streams are `/dev/null` and files.
    #[track_caller]
    pub fn create(&self, bundle: &Bundle, id: &str) {
        let _ = self.call(&["create", "--bundle", bundle.arg(), id]).run().ok();
    }

    /// Runs a detached container.
    #[track_caller]
    pub fn run_detached(&self, bundle: &Bundle, id: &str) {
        let _ = self
            .call(&["run", "--detach", "--bundle", bundle.arg(), id])
            .run()
            .ok();
    }

    /// The state JSON of a container.
    #[track_caller]
    #[must_use]
    pub fn state(&self, id: &str) -> Value {
        self.quick(&["state", id]).ok().json()
    }

    /// The status in the state JSON.
    #[track_caller]
    #[must_use]
    pub fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap_or_default().to_owned()
    }

    /// Removes a container whatever it does.
    #[track_caller]
    pub fn delete(&self, id: &str) {
        let _ = self.quick(&["delete", "--force", id]).ok();
    }

    /// Process id of a role in `inspect`'s tree.
    #[track_caller]
    #[must_use]
    pub fn pid_of(&self, id: &str, role: &str) -> i32 {
        let tree = self.quick(&["inspect", id]).ok().json();
        let found = tree["processes"]
            .as_array()
            .and_then(|all| all.iter().find(|process| process["role"] == role));
        let pid = found.and_then(|process| process["pid"].as_i64());
        let pid = pid.unwrap_or_else(|| panic!("no {role} in {:#}", tree["processes"]));
        i32::try_from(pid).unwrap()
    }

    /// Processes of a role by the marker in their environment: also while the sandbox is still being made.
    /// The supervisor's are two, the one that works and the one that minds it.
    #[must_use]
    pub fn marked(&self, id: &str, role: &str) -> Vec<i32> {
        let id = SandboxId::new(id.to_owned()).unwrap();
        let marker = Layout::new(&self.root).sandbox(&id).marker;
        let found = bulkhead_host::process::marked(Some(&format!("{marker}/{role}"))).unwrap();
        found.into_iter().map(|(pid, ..)| pid).collect()
    }

    /// What is left of the test right now.
    #[must_use]
    pub fn leaks(&self) -> Vec<String> {
        self.before.leaks(&self.token, &self.markers(), &self.root)
    }

    /// Asserts that nothing is left.
    #[track_caller]
    pub fn assert_clean(&self) {
        let leaks = self.leaks();
        assert!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    }

    fn markers(&self) -> Vec<String> {
        let layout = Layout::new(&self.root);
        let ids = self.ids.borrow();
        ids.iter()
            .filter_map(|id| SandboxId::new(id.clone()).ok())
            .map(|id| layout.sandbox(&id).marker)
            .collect()
    }

    /// The sandbox logs, for the reader of a failed test.
    fn print_logs(&self) {
        for entry in std::fs::read_dir(self.root.join("sandboxes"))
            .into_iter()
            .flatten()
            .flatten()
        {
            let log = std::fs::read_to_string(entry.path().join("log")).unwrap_or_default();
            let lines: Vec<&str> = log.lines().collect();
            eprintln!("--- log of {:?}", entry.file_name());
            for line in lines.iter().skip(lines.len().saturating_sub(40)) {
                eprintln!("{line}");
            }
        }
    }

    /// Ends and removes everything of a failed test, without asserting.
    fn clean_up(&self) {
        for id in self.ids.borrow().clone() {
            self.call(&["delete", "--force", &id]).start().end(QUICK);
        }
        let markers = self.markers();
        let names: Vec<&str> = std::iter::once(self.token.as_str())
            .chain(markers.iter().map(String::as_str))
            .collect();
        for line in processes(&names) {
            let pid = line.split([' ', ':']).nth(1).and_then(|pid| pid.parse().ok());
            if let Some(pid) = pid {
                let _ = nix::sys::signal::kill(
                    nix::unistd::Pid::from_raw(pid),
                    nix::sys::signal::Signal::SIGKILL,
                );
            }
        }
        let table = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        for point in table.lines().rev().filter_map(|line| line.split(' ').nth(4)) {
            if names.iter().any(|name| point.contains(name)) {
                let _ = nix::mount::umount2(point, nix::mount::MntFlags::MNT_DETACH);
            }
        }
        for marker in &markers {
            let _ = std::fs::remove_dir_all(Path::new("/run/bulkhead/s").join(marker));
        }
    }
}

impl Default for Lab {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let failed = std::thread::panicking();
        let leaks = if failed { Vec::new() } else { self.leaks() };
        if failed || !leaks.is_empty() {
            self.print_logs();
            self.clean_up();
        }
        if std::env::var_os("BULKHEAD_E2E_KEEP").is_none() {
            let _ = std::fs::remove_dir_all(&self.dir);
        }
        assert!(leaks.is_empty(), "left behind:\n{}", leaks.join("\n"));
    }
}
