//! Running a program: echoed, with a deadline, its failure named.

use crate::error::TaskError;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::path::Path;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc;
use std::thread::JoinHandle;
use std::time::Duration;

/// Long enough for a clean build on a slow machine.
pub(crate) const BUILD_DEADLINE: Duration = Duration::from_secs(3600);

/// A program to run.
#[derive(Debug)]
pub(crate) struct Tool {
    command: Command,
    line: String,
    deadline: Duration,
    quiet: bool,
}

/// What a program wrote and how it ended.
#[derive(Debug)]
pub(crate) struct Outcome {
    /// Standard output.
    pub(crate) stdout: String,
    /// Standard error, when asked for.
    pub(crate) stderr: String,
    /// How it ended.
    pub(crate) status: ExitStatus,
}

impl Tool {
    /// A program of the host.
    pub(crate) fn new(program: impl AsRef<OsStr>) -> Self {
        let name = program.as_ref().to_string_lossy().into_owned();
        Self {
            command: Command::new(program),
            line: name,
            deadline: BUILD_DEADLINE,
            quiet: true,
        }
    }

    /// The cargo that runs this task, in the workspace.
    pub(crate) fn cargo(root: &Path) -> Self {
        let mut tool = Self::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
        "cargo".clone_into(&mut tool.line);
        tool.command.current_dir(root);
        // Set by the cargo that runs this program, for this program.
        tool.command.env_remove("CARGO_MANIFEST_DIR");
        tool
    }

    /// Adds an argument.
    pub(crate) fn arg(mut self, argument: impl AsRef<OsStr>) -> Self {
        self.line.push(' ');
        self.line.push_str(&argument.as_ref().to_string_lossy());
        self.command.arg(argument);
        self
    }

    /// Adds arguments.
    pub(crate) fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(self, arguments: I) -> Self {
        arguments
            .into_iter()
            .fold(self, |tool, argument| tool.arg(argument))
    }

    /// Runs it there.
    pub(crate) fn directory(mut self, directory: &Path) -> Self {
        self.command.current_dir(directory);
        self
    }

    /// Sets an environment variable.
    pub(crate) fn env(mut self, key: &str, value: impl AsRef<OsStr>) -> Self {
        self.command.env(key, value);
        self
    }

    /// Takes environment variables away.
    pub(crate) fn without_env(mut self, keys: &[&str]) -> Self {
        for key in keys {
            self.command.env_remove(key);
        }
        self
    }

    /// Ends it after this long.
    pub(crate) fn deadline(mut self, deadline: Duration) -> Self {
        self.deadline = deadline;
        self
    }

    /// Runs it with the streams of this program; an error status is a failure.
    pub(crate) fn run(mut self) -> Result<(), TaskError> {
        eprintln!("$ {}", self.line);
        let child = self.spawn()?;
        let status = self.wait(child)?;
        self.check(status)
    }

    /// Runs it quietly and returns what it wrote, whatever its status; standard error goes nowhere
    /// unless asked for.
    pub(crate) fn outcome(mut self) -> Result<Outcome, TaskError> {
        if self.quiet {
            self.command.stderr(Stdio::null());
        }
        self.gather()
    }

    /// The same, with standard error in the outcome.
    pub(crate) fn outcome_with_errors(mut self) -> Result<Outcome, TaskError> {
        self.command.stderr(Stdio::piped());
        self.gather()
    }

    fn gather(mut self) -> Result<Outcome, TaskError> {
        self.command.stdout(Stdio::piped());
        let mut child = self.spawn()?;
        let stdout = child.stdout.take().map(in_background);
        let stderr = child.stderr.take().map(in_background);
        let status = self.wait(child)?;
        let text =
            |reader: Option<JoinHandle<String>>| reader.and_then(|r| r.join().ok()).unwrap_or_default();
        Ok(Outcome {
            stdout: text(stdout),
            stderr: text(stderr),
            status,
        })
    }

    /// Leaves standard error where it is.
    pub(crate) fn show_errors(mut self) -> Self {
        self.quiet = false;
        self
    }

    /// Runs it quietly; an error status is a failure.
    pub(crate) fn output(self) -> Result<String, TaskError> {
        let line = self.line.clone();
        let outcome = self.outcome()?;
        if outcome.status.success() {
            Ok(outcome.stdout)
        } else {
            Err(TaskError::Failed {
                line,
                status: outcome.status.to_string(),
            })
        }
    }

    /// Runs it, prints each line of its standard output and hands it to `each`.
    pub(crate) fn lines(mut self, mut each: impl FnMut(&str)) -> Result<ExitStatus, TaskError> {
        eprintln!("$ {}", self.line);
        self.command.stdout(Stdio::piped());
        let mut child = self.spawn()?;
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let (late, done) = mpsc::channel::<()>();
        let deadline = self.deadline;
        let watch = std::thread::spawn(move || {
            // The sender is dropped when all output was read.
            if done.recv_timeout(deadline) == Err(mpsc::RecvTimeoutError::Timeout) {
                let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
            }
        });
        if let Some(out) = child.stdout.take() {
            for line in BufReader::new(out).split(b'\n').map_while(Result::ok) {
                let line = String::from_utf8_lossy(&line);
                println!("{line}");
                each(&line);
            }
        }
        let status = child.wait().map_err(|source| self.start_error(source))?;
        drop(late);
        let _ = watch.join();
        Ok(status)
    }

    fn spawn(&mut self) -> Result<Child, TaskError> {
        self.command.stdin(Stdio::null());
        self.command.spawn().map_err(|source| self.start_error(source))
    }

    fn wait(&self, mut child: Child) -> Result<ExitStatus, TaskError> {
        let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
        let (done, result) = mpsc::channel();
        let waiter = std::thread::spawn(move || {
            // Nobody listens after the deadline.
            let _ = done.send(child.wait());
        });
        let outcome = result.recv_timeout(self.deadline);
        if outcome.is_err() {
            // Not reaped yet: the waiter still waits, so the pid is the child's.
            let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
        }
        let _ = waiter.join();
        match outcome {
            Ok(Ok(status)) => Ok(status),
            Ok(Err(source)) => Err(self.start_error(source)),
            Err(_) => Err(TaskError::Deadline {
                line: self.line.clone(),
                deadline: self.deadline,
            }),
        }
    }

    fn check(&self, status: ExitStatus) -> Result<(), TaskError> {
        if status.success() {
            return Ok(());
        }
        Err(TaskError::Failed {
            line: self.line.clone(),
            status: status.to_string(),
        })
    }

    fn start_error(&self, source: std::io::Error) -> TaskError {
        TaskError::Start {
            program: self.line.split(' ').next().unwrap_or_default().to_owned(),
            source,
        }
    }
}

fn in_background(mut stream: impl Read + Send + 'static) -> JoinHandle<String> {
    std::thread::spawn(move || {
        let mut text = Vec::new();
        // What was read before an error is what there is.
        let _ = stream.read_to_end(&mut text);
        String::from_utf8_lossy(&text).into_owned()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_status_and_deadline() {
        let mut seen = Vec::new();
        let status = Tool::new("sh")
            .args(["-c", "echo a; echo b; exit 3"])
            .lines(|line| seen.push(line.to_owned()))
            .unwrap();
        assert_eq!(seen, ["a", "b"]);
        assert_eq!(status.code(), Some(3));
        let late = Tool::new("sleep")
            .arg("600")
            .deadline(Duration::from_millis(20))
            .outcome();
        assert!(matches!(late, Err(TaskError::Deadline { .. })));
        assert!(matches!(
            Tool::new("false").output(),
            Err(TaskError::Failed { .. })
        ));
        assert!(matches!(
            Tool::new("/nonexistent").output(),
            Err(TaskError::Start { .. })
        ));
    }
}
