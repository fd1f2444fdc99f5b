//! `lint`: format, clippy, dependency direction, house rules.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use crate::{floors, rules};

/// Runs all checks; the cheap ones first.
pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    let mut broken = floors::broken(workspace)?;
    broken.extend(rules::broken(workspace)?);
    for line in &broken {
        eprintln!("{line}");
    }
    if !broken.is_empty() {
        return Err(TaskError::Rules(broken.len()));
    }
    eprintln!("dependency direction and house rules: ok");
    Tool::cargo(workspace.root())
        .args(["fmt", "--all", "--check"])
        .run()?;
    Tool::cargo(workspace.root())
        .args([
            "clippy",
            "--workspace",
            "--all-targets",
            "--locked",
            "--",
            "-D",
            "warnings",
        ])
        .run()
}
