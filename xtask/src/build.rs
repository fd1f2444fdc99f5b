//! `build`: host binary, static agent, guest.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// The agent's target: static glibc, so it is named even where it is the host's own.
const AGENT_TARGET: &str = "x86_64-unknown-linux-gnu";

/// Where Debian keeps libseccomp.a.
const STATIC_LIBRARIES: &str = "/usr/lib/x86_64-linux-gnu";

/// How the host binary and the agent are built. The agent is always optimised: guest code may be translated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Profile {
    /// For demo and tests.
    Dev,
    /// Optimised crate by crate.
    Release,
    /// As shipped: optimised as a whole. A third smaller, with half as much to relocate, and minutes in the making.
    Dist,
}

impl Profile {
    /// Cargo's name for it, and for the agent's.
    fn names(self) -> (&'static str, &'static str) {
        match self {
            Self::Dev => ("dev", "release"),
            Self::Release => ("release", "release"),
            Self::Dist => ("dist", "dist"),
        }
    }
}

/// What a build made and how long each step took.
#[derive(Debug)]
pub(crate) struct Made {
    /// The host binary.
    pub(crate) bulkhead: PathBuf,
    /// The agent.
    pub(crate) agent: PathBuf,
    /// Step and duration.
    pub(crate) times: Vec<(&'static str, Duration)>,
}

/// Builds everything; what is up to date takes no time.
pub(crate) fn all(workspace: &Workspace, profile: Profile) -> Result<Made, TaskError> {
    let mut times = Vec::new();
    let mut timed = |name, step: &mut dyn FnMut() -> Result<(), TaskError>| {
        let start = Instant::now();
        let result = step();
        times.push((name, start.elapsed()));
        result
    };
    timed("host binary", &mut || host(workspace, profile))?;
    timed("agent", &mut || agent(workspace, profile))?;
    let bulkhead = bulkhead_path(workspace, profile);
    let agent = agent_path(workspace, profile);
    timed("guest", &mut || guest(workspace, profile, &bulkhead, &agent))?;
    Ok(Made {
        bulkhead,
        agent,
        times,
    })
}

/// Path of the host binary.
pub(crate) fn bulkhead_path(workspace: &Workspace, profile: Profile) -> PathBuf {
    let dir = match profile {
        Profile::Dev => "debug",
        Profile::Release => "release",
        Profile::Dist => "dist",
    };
    workspace.target().join(dir).join("bulkhead")
}

/// Path of the static agent.
pub(crate) fn agent_path(workspace: &Workspace, profile: Profile) -> PathBuf {
    let (_, name) = profile.names();
    agent_target(workspace)
        .join(AGENT_TARGET)
        .join(name)
        .join("bulkhead-agent")
}

/// Apart from the rest: other flags would rebuild everything each time.
fn agent_target(workspace: &Workspace) -> PathBuf {
    workspace.target().join("guest")
}

fn host(workspace: &Workspace, profile: Profile) -> Result<(), TaskError> {
    let (name, _) = profile.names();
    Tool::cargo(workspace.root())
        .args([
            "build",
            "--locked",
            "--package",
            "bulkhead-cli",
            "--profile",
            name,
        ])
        .run()
}

fn agent(workspace: &Workspace, profile: Profile) -> Result<(), TaskError> {
    let (_, name) = profile.names();
    Tool::cargo(workspace.root())
        .args([
            "build",
            "--locked",
            "--package",
            "bulkhead-agent",
            "--profile",
            name,
        ])
        .args(["--target", AGENT_TARGET, "--target-dir"])
        .arg(agent_target(workspace))
        .env("RUSTFLAGS", "-C target-feature=+crt-static")
        .env("LIBSECCOMP_LINK_TYPE", "static")
        .env("LIBSECCOMP_LIB_PATH", STATIC_LIBRARIES)
        .run()
}

/// Set to bench on the distribution's kernel though the lean one was built.
const DISTRIBUTION: &str = "BULKHEAD_DISTRIBUTION_KERNEL";

/// Set to run tests and demo on the lean kernel. Some tests want what it does not have: a way to crash it, DMI.
const LEAN: &str = "BULKHEAD_LEAN_KERNEL";

fn guest(workspace: &Workspace, profile: Profile, bulkhead: &Path, agent: &Path) -> Result<(), TaskError> {
    let out = workspace.guest();
    let tool = Tool::new(bulkhead)
        .args(["guest", "build", "--out"])
        .arg(&out)
        .arg("--agent")
        .arg(agent);
    let lean = workspace.kernel();
    let wanted = match profile {
        Profile::Dev => std::env::var_os(LEAN).is_some(),
        Profile::Release | Profile::Dist => std::env::var_os(DISTRIBUTION).is_none(),
    };
    let tool = if !wanted {
        tool.arg("--distribution")
    } else if lean.join("kernel.json").is_file() {
        tool.arg("--kernel")
            .arg(lean.join("vmlinux"))
            .arg("--modules")
            .arg(lean.join("modules"))
    } else {
        tool
    };
    tool.run()?;
    let config = workspace.config();
    let text = format!(
        "# Made by `cargo xtask build`: the guest of this checkout, and its templates.\n[hypervisor]\nkernel = {:?}\n\
         initrd = {:?}\n[factory]\ntemplate_path = {:?}\ntemplate_memory = {:?}\n",
        out.join("vmlinux"),
        out.join("initrd"),
        workspace.target().join("templates"),
        workspace.target().join("templates/memory")
    );
    std::fs::write(&config, text).map_err(|e| TaskError::io(&config, e))
}
