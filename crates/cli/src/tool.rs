//! Running a short-lived tool of the host with a deadline.
//!
//! Owns: output, exit status and time limit of such a child. Never: what is run. Called by `guest` (apt, dpkg) and
//! `doctor` (QEMU).

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

/// Why a tool gave no result.
#[derive(Debug, thiserror::Error)]
pub(crate) enum ToolError {
    /// It cannot be started.
    #[error("{program} cannot be started")]
    Start {
        /// Which.
        program: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It took too long and was ended.
    #[error("{program} took longer than {} s", deadline.as_secs())]
    Deadline {
        /// Which.
        program: String,
        /// Its limit.
        deadline: Duration,
    },
    /// It ended with an error.
    #[error("{program} failed ({status}): {message}")]
    Failed {
        /// Which.
        program: String,
        /// How it ended.
        status: String,
        /// The last line it wrote.
        message: String,
    },
}

/// Runs `program` in `dir` and returns its standard output.
pub(crate) fn run(
    program: &str,
    arguments: &[&str],
    dir: &Path,
    deadline: Duration,
) -> Result<String, ToolError> {
    let child = Command::new(program)
        .args(arguments)
        .current_dir(dir)
        .env("LC_ALL", "C")
        .env("DEBIAN_FRONTEND", "noninteractive")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .map_err(|source| ToolError::Start {
            program: program.to_owned(),
            source,
        })?;
    let pid = i32::try_from(child.id()).unwrap_or(i32::MAX);
    let (done, result) = mpsc::channel();
    let waiter = std::thread::spawn(move || {
        // A receiver that is gone has given up on the tool.
        let _ = done.send(child.wait_with_output());
    });
    let outcome = result.recv_timeout(deadline);
    if outcome.is_err() {
        // The waiter has not reaped it, so the pid is still the tool's.
        let _ = kill(Pid::from_raw(pid), Signal::SIGKILL);
    }
    let _ = waiter.join();
    match outcome {
        Ok(Ok(output)) => check(program, output),
        Ok(Err(source)) => Err(ToolError::Start {
            program: program.to_owned(),
            source,
        }),
        Err(_) => Err(ToolError::Deadline {
            program: program.to_owned(),
            deadline,
        }),
    }
}

fn check(program: &str, output: Output) -> Result<String, ToolError> {
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let errors = String::from_utf8_lossy(&output.stderr);
    Err(ToolError::Failed {
        program: program.to_owned(),
        status: output.status.to_string(),
        message: errors
            .lines()
            .rfind(|line| !line.trim().is_empty())
            .unwrap_or("no message")
            .to_owned(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sh(script: &str, deadline: Duration) -> Result<String, ToolError> {
        run("sh", &["-c", script], Path::new("/"), deadline)
    }

    #[test]
    fn output_error_and_deadline() {
        let long = Duration::from_secs(60);
        assert_eq!(sh("printf out", long).unwrap(), "out");
        let failed = sh("echo first >&2; echo last >&2; exit 3", long)
            .unwrap_err()
            .to_string();
        assert!(failed.contains("last") && failed.contains('3'), "{failed}");
        let late = sh("exec sleep 600", Duration::from_millis(50));
        assert!(matches!(late, Err(ToolError::Deadline { .. })));
        let missing = run("/nonexistent/tool", &[], Path::new("/"), long);
        assert!(matches!(missing, Err(ToolError::Start { .. })));
    }
}
