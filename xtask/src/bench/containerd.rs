//! `bench containerd`: containers and pods under containerd, beside runc's shim.
//!
//! Owns: building what is measured. Never: the measuring, which is the program `containerd-bench` beside the tests it
//! shares its harness with.

use crate::build::{self, Profile};
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use std::time::Duration;

/// Longest a run may take.
const DEADLINE: Duration = Duration::from_secs(3600);

/// Measures; the program prints the table.
pub(super) fn run(workspace: &Workspace, rounds: usize, profile: Profile) -> Result<(), TaskError> {
    setup::run()?;
    let made = build::all(workspace, profile)?;
    // What a start goes on from is there before the first is timed.
    Tool::new(&made.bulkhead)
        .args(["template", "create"])
        .env("BULKHEAD_CONFIG", workspace.config())
        .deadline(DEADLINE)
        .run()?;
    Tool::cargo(workspace.root())
        .args(["run", "--locked", "--quiet", "--package", "bulkhead-containerd"])
        .args(["--bin", "containerd-bench", "--"])
        .arg(rounds.to_string())
        .env("BULKHEAD_BIN", &made.bulkhead)
        .env("BULKHEAD_TEST_CONFIG", workspace.config())
        .deadline(DEADLINE)
        .run()
}
