//! One invocation of a runtime: streams, deadline, outcome.

use bulkhead_host::process::{Child, Exit, Spawn};
use serde_json::Value;
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// An invocation being prepared.
#[derive(Debug)]
pub struct Call {
    spawn: Spawn,
    line: String,
    out: PathBuf,
    err: PathBuf,
    stdin: Option<OwnedFd>,
    stdout: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    deadline: Duration,
}

/// An invocation under way. Dropping it kills the program.
#[derive(Debug)]
pub struct Running {
    child: Child,
    line: String,
    out: PathBuf,
    err: PathBuf,
    started: Instant,
    deadline: Duration,
}

/// How an invocation ended.
#[derive(Debug)]
pub struct Outcome {
    /// Exit status; 128 + n when signal n ended the program.
    pub status: i32,
    /// Standard output, unless it was given elsewhere.
    pub stdout: Vec<u8>,
    /// Standard error, unless it was given elsewhere.
    pub stderr: Vec<u8>,
    /// How long it took.
    pub elapsed: Duration,
    line: String,
}

impl Call {
    /// Of a program, shown as `line`; output goes to files `<dir>/<number>.out` and `.err`: a pipe would be kept open by a
    /// container that outlives the verb.
    #[must_use]
    pub fn new(spawn: Spawn, line: String, dir: &Path, number: usize, deadline: Duration) -> Self {
        Self {
            spawn,
            line,
            out: dir.join(format!("{number}.out")),
            err: dir.join(format!("{number}.err")),
            stdin: None,
            stdout: None,
            stderr: None,
            deadline,
        }
    }

    /// Standard input; `/dev/null` unless given.
    #[must_use]
    pub fn stdin(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdin = Some(fd.into());
        self
    }

    /// Standard output.
    #[must_use]
    pub fn stdout(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stdout = Some(fd.into());
        self
    }

    /// Standard error.
    #[must_use]
    pub fn stderr(mut self, fd: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(fd.into());
        self
    }

    /// All three on a terminal, as session leader.
    #[must_use]
    pub fn terminal(mut self, slave: &OwnedFd) -> Self {
        self.spawn = self.spawn.new_session();
        self.stdin(slave.try_clone().unwrap())
            .stdout(slave.try_clone().unwrap())
            .stderr(slave.try_clone().unwrap())
    }

    /// Sets an environment variable.
    #[must_use]
    pub fn env(mut self, key: &str, value: &str) -> Self {
        self.spawn = self.spawn.env(key, value);
        self
    }

    /// Sets a resource limit.
    #[must_use]
    pub fn limit(mut self, resource: u32, soft: u64, hard: u64) -> Self {
        self.spawn = self.spawn.limit(resource, soft, hard);
        self
    }

    /// Works in this directory.
    #[must_use]
    pub fn directory(mut self, dir: &Path) -> Self {
        self.spawn = self.spawn.directory(dir);
        self
    }

    /// Another deadline than [`crate::VERB`].
    #[must_use]
    pub fn within(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Starts it.
    #[must_use]
    pub fn start(self) -> Running {
        let file = |path: &Path| OwnedFd::from(File::create(path).unwrap());
        let stdin = self
            .stdin
            .unwrap_or_else(|| File::open("/dev/null").unwrap().into());
        let stdout = self.stdout.unwrap_or_else(|| file(&self.out));
        let stderr = self.stderr.unwrap_or_else(|| file(&self.err));
        let started = Instant::now();
        let child = self
            .spawn
            .fd(stdin, 0)
            .fd(stdout, 1)
            .fd(stderr, 2)
            .spawn()
            .unwrap_or_else(|e| panic!("{}: {e}", self.line))
            .child;
        Running {
            child,
            line: self.line,
            out: self.out,
            err: self.err,
            started,
            deadline: self.deadline,
        }
    }

    /// Runs it to its end.
    #[must_use]
    pub fn run(self) -> Outcome {
        self.start().wait()
    }
}

impl Running {
    /// Its process id.
    #[must_use]
    pub fn pid(&self) -> i32 {
        self.child.pid()
    }

    /// Sends a signal.
    pub fn signal(&self, signal: nix::sys::signal::Signal) {
        self.child.signal(signal as i32).unwrap();
    }

    /// Whether it still runs.
    #[must_use]
    pub fn is_running(&self) -> bool {
        self.child.try_wait().unwrap().is_none()
    }

    /// What it wrote to its standard output file so far.
    #[must_use]
    pub fn stdout_so_far(&self) -> String {
        read_text(&self.out)
    }

    /// Waits for its end at most this long, then kills it; never panics.
    pub fn end(self, within: Duration) {
        let _ = self.child.wait(within);
    }

    /// Waits for its end; panics when the deadline passes.
    #[must_use]
    pub fn wait(self) -> Outcome {
        let left = self.deadline.saturating_sub(self.started.elapsed());
        let Some(exit) = self.child.wait(left).unwrap() else {
            panic!(
                "{}: did not end within {:?}\nstdout: {}\nstderr: {}",
                self.line,
                self.deadline,
                read_text(&self.out),
                read_text(&self.err)
            );
        };
        Outcome {
            status: match exit {
                Exit::Code(code) => code,
                Exit::Signal(signal) => 128 + signal,
            },
            stdout: std::fs::read(&self.out).unwrap_or_default(),
            stderr: std::fs::read(&self.err).unwrap_or_default(),
            elapsed: self.started.elapsed(),
            line: self.line.clone(),
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        // Ended already: nothing happens.
        let _ = self.child.kill_and_wait(Duration::from_secs(10));
    }
}

impl Outcome {
    /// Asserts status 0.
    #[track_caller]
    #[must_use = "or use `ok();` with let _"]
    pub fn ok(self) -> Self {
        self.exits(0)
    }

    /// Asserts this status.
    #[track_caller]
    #[must_use = "or bind it to _"]
    pub fn exits(self, status: i32) -> Self {
        assert_eq!(
            self.status,
            status,
            "{}\nstdout: {}\nstderr: {}",
            self.line,
            self.text(),
            self.errors()
        );
        self
    }

    /// Asserts failure with a one-line error that contains each of `words`.
    #[track_caller]
    pub fn fails(self, words: &[&str]) -> Self {
        let errors = self.errors();
        assert_ne!(self.status, 0, "{}\nstdout: {}", self.line, self.text());
        for word in words {
            assert!(
                errors.contains(word),
                "{}\nexpected {word:?} in: {errors}",
                self.line
            );
        }
        assert!(
            !errors.contains("panicked") && !errors.contains("stack backtrace"),
            "{}\n{errors}",
            self.line
        );
        self
    }

    /// Standard output as text.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Standard error as text.
    #[must_use]
    pub fn errors(&self) -> String {
        String::from_utf8_lossy(&self.stderr).into_owned()
    }

    /// Standard output as JSON.
    #[track_caller]
    #[must_use]
    pub fn json(&self) -> Value {
        serde_json::from_slice(&self.stdout).unwrap_or_else(|e| panic!("{}: {e}: {}", self.line, self.text()))
    }
}

fn read_text(path: &Path) -> String {
    String::from_utf8_lossy(&std::fs::read(path).unwrap_or_default()).into_owned()
}
