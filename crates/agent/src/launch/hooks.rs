//! startContainer hooks (K-06): programs of the bundle's author that run in the container, right before its own.
//!
//! ```text
//!  start ─► hook ─► hook ─► program        each: state on standard input, environment as given, time-out
//!             └── a failure ends the start
//! ```
//!
//! Owns: running them. Runs in the container's own process, as its user. Called by `birth`.

use super::plan::HookPlan;
use crate::sys::pidfd;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::memfd::{MFdFlags, memfd_create};
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

/// A hook without a time-out may take this long, in seconds: every wait has an end.
pub(super) const LONGEST: u64 = 600;

/// How much of a hook's output goes into its error, in bytes.
const QUOTED_BYTES: u64 = 2048;

/// Why a hook failed.
#[derive(Debug, thiserror::Error)]
pub(super) enum HookError {
    /// It could not be started.
    #[error("hook hooks.startContainer[{index}] {path}: starting it")]
    Start {
        /// Its position.
        index: usize,
        /// Its file.
        path: String,
        /// Why not.
        #[source]
        source: io::Error,
    },
    /// It did not end.
    #[error("hook hooks.startContainer[{index}] {path}: it did not end within {seconds} s and was killed")]
    Late {
        /// Its position.
        index: usize,
        /// Its file.
        path: String,
        /// Its time-out.
        seconds: u64,
    },
    /// It ended with an error.
    #[error("hook hooks.startContainer[{index}] {path}: {status}{output}")]
    Ended {
        /// Its position.
        index: usize,
        /// Its file.
        path: String,
        /// How.
        status: String,
        /// What it had to say.
        output: String,
    },
}

/// Runs all of them, in order.
pub(super) fn run(hooks: &[HookPlan], state: &str) -> Result<(), HookError> {
    hooks
        .iter()
        .enumerate()
        .try_for_each(|(index, hook)| one(index, hook, state))
}

fn one(index: usize, hook: &HookPlan, state: &str) -> Result<(), HookError> {
    let path = hook.path.display().to_string();
    let refused = |source| HookError::Start {
        index,
        path: path.clone(),
        source,
    };
    // Files, not pipes: neither a hook that does not read nor a child of it that lives on can hold this up.
    let stdin = file(state).map_err(refused)?;
    let mut output = file("").map_err(refused)?;
    let streams = [output.try_clone(), output.try_clone()];
    let [Ok(stdout), Ok(stderr)] = streams else {
        return Err(refused(io::Error::last_os_error()));
    };
    let mut command = Command::new(&hook.path);
    if let Some((name, rest)) = hook.arguments.split_first() {
        command.arg0(name).args(rest);
    }
    let variables = hook.environment.iter().filter_map(|line| line.split_once('='));
    let mut child = command
        .env_clear()
        .envs(variables)
        .stdin(stdin)
        .stdout(Stdio::from(OwnedFd::from(stdout)))
        .stderr(Stdio::from(OwnedFd::from(stderr)))
        .spawn()
        .map_err(refused)?;
    let seconds = hook.seconds.unwrap_or(LONGEST);
    if !ended(&child, Duration::from_secs(seconds)).map_err(refused)? {
        // Not reaped yet: the pid is the hook's.
        let _ = child.kill();
        let _ = child.wait();
        return Err(HookError::Late { index, path, seconds });
    }
    let status = child.wait().map_err(refused)?;
    if status.success() {
        return Ok(());
    }
    let mut text = Vec::new();
    let _ = output
        .rewind()
        .and_then(|()| output.take(QUOTED_BYTES).read_to_end(&mut text));
    let text = String::from_utf8_lossy(&text);
    Err(HookError::Ended {
        index,
        path,
        status: status.to_string(),
        output: match text.trim() {
            "" => String::new(),
            text => format!(", output: {}", text.replace('\n', " ")),
        },
    })
}

fn file(text: &str) -> io::Result<File> {
    let mut file = File::from(memfd_create(c"hook", MFdFlags::MFD_CLOEXEC)?);
    file.write_all(text.as_bytes())?;
    file.rewind()?;
    Ok(file)
}

/// Waits for its end, at most so long.
fn ended(child: &Child, limit: Duration) -> io::Result<bool> {
    let process = pidfd::open(i32::try_from(child.id()).unwrap_or(i32::MAX))?;
    let end = Instant::now() + limit;
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let timeout = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        match poll(&mut [PollFd::new(process.as_fd(), PollFlags::POLLIN)], timeout) {
            Err(nix::errno::Errno::EINTR) => {}
            other if other? > 0 => return Ok(true),
            _ if left.is_zero() => return Ok(false),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hook(script: &str, seconds: Option<u64>) -> HookPlan {
        HookPlan {
            path: "/bin/sh".into(),
            arguments: ["sh", "-c", script].map(String::from).to_vec(),
            environment: vec!["WORD=given".to_owned()],
            seconds,
        }
    }

    #[test]
    fn k06_a_hook_gets_state_and_environment_and_its_failure_is_told() {
        let good = hook(
            "read line; [ \"$line\" = state ] && [ $WORD = given ] && [ -z \"$HOME\" ]",
            None,
        );
        run(std::slice::from_ref(&good), "state\n").unwrap();
        let error = run(&[good, hook("echo why >&2; exit 3", None)], "state\n").unwrap_err();
        let text = error.to_string();
        assert!(
            text.contains("startContainer[1] /bin/sh: exit status: 3, output: why"),
            "{text}"
        );
        let mut missing = hook("", None);
        missing.path = "/no/such".into();
        assert!(matches!(run(&[missing], ""), Err(HookError::Start { .. })));
    }

    #[test]
    fn k06_a_hook_that_does_not_end_is_killed() {
        let late = run(&[hook("exec sleep 1000", Some(1))], "").unwrap_err();
        assert!(matches!(late, HookError::Late { seconds: 1, .. }), "{late}");
    }

    #[test]
    fn k06_a_child_a_hook_leaves_behind_holds_nothing_up() {
        let begin = Instant::now();
        run(&[hook("sleep 30 & exit 0", Some(600))], "").unwrap();
        assert!(begin.elapsed() < Duration::from_secs(25));
    }
}
