//! `lint`: format, clippy, dependency direction, house rules, the tests that promises name.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use crate::{floors, promises, rules};

/// Runs all checks; the cheap ones first.
pub(crate) fn run(workspace: &Workspace) -> Result<(), TaskError> {
    let mut broken = floors::broken(workspace)?;
    broken.extend(rules::broken(workspace)?);
    broken.extend(promises::broken(workspace)?);
    for line in &broken {
        eprintln!("{line}");
    }
    if !broken.is_empty() {
        return Err(TaskError::Rules(broken.len()));
    }
    eprintln!("dependency direction, house rules and promises: ok");
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
