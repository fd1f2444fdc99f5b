//! `demo`: from nothing to a container in a VM.

use crate::build::{self, Profile};
use crate::bundle;
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use std::time::{Duration, Instant};

/// The status that has to come back.
const STATUS: i32 = 42;

/// Generous: the machine may be slow and without KVM.
const RUN_DEADLINE: Duration = Duration::from_secs(300);

/// Builds everything, runs a bundle, shows what happened.
pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    if !nix::unistd::geteuid().is_root() {
        return Err(TaskError::NeedsRoot("the demo"));
    }
    let mut times = Vec::new();
    let start = Instant::now();
    setup::run()?;
    times.push(("packages", start.elapsed()));
    let made = build::all(workspace, Profile::Dev)?;
    times.extend(made.times.iter().copied());

    let work = workspace.target().join("demo");
    let script = format!("echo \"guest kernel: $(uname -r), pid $$, user $(id -u)\"; exit {STATUS}");
    let bundle = bundle::make(&work.join("bundle"), &["sh", "-c", &script])?;
    let id = format!("demo-{}", std::process::id());
    let start = Instant::now();
    let outcome = Tool::new(&made.bulkhead)
        .arg("--config")
        .arg(workspace.config())
        .arg("--root")
        .arg(work.join("state"))
        .args(["run", "--bundle"])
        .arg(&bundle)
        .arg(&id)
        .deadline(RUN_DEADLINE)
        .show_errors()
        .outcome()?;
    times.push(("run in a VM", start.elapsed()));

    let host = nix::sys::utsname::uname()
        .map(|name| name.release().to_string_lossy().into_owned())
        .unwrap_or_default();
    println!("host kernel:  {host}");
    print!("{}", outcome.stdout);
    let found = outcome
        .status
        .code()
        .map_or_else(|| outcome.status.to_string(), |c| c.to_string());
    println!("exit status:  {found} (the container said exit {STATUS})");
    let steps: Vec<String> = times
        .iter()
        .map(|(name, time)| format!("{name} {:.1} s", time.as_secs_f64()))
        .collect();
    println!("times:        {}", steps.join(", "));
    if outcome.status.code() != Some(STATUS) {
        return Err(TaskError::Demo {
            expected: format!("exit status {STATUS}"),
            found,
        });
    }
    if !outcome.stdout.contains("guest kernel: ") {
        return Err(TaskError::Demo {
            expected: "a line with the guest's kernel".to_owned(),
            found: outcome.stdout,
        });
    }
    println!("the binary is {}", made.bulkhead.display());
    Ok(())
}
