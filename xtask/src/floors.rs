//! The direction of dependencies: an arrow only ever points down.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::Value;
use std::time::Duration;

/// Crate and floor. Crates of one floor do not know each other.
const FLOORS: &[(&str, u8)] = &[
    ("xtask", 7),
    ("bulkhead-containerd", 7),
    ("bulkhead-e2e", 6),
    ("bulkhead-cli", 5),
    ("bulkhead-shim", 4),
    ("bulkhead-sandbox", 3),
    ("bulkhead-agent", 3),
    ("bulkhead-vmm", 2),
    ("bulkhead-protocol", 2),
    ("bulkhead-config", 2),
    ("bulkhead-host", 1),
    ("bulkhead-model", 1),
];

/// Crates that may only use some of the floors below them.
const ONLY: &[(&str, &[&str])] = &[(
    "bulkhead-agent",
    &["bulkhead-protocol", "bulkhead-model", "bulkhead-host"],
)];

/// Everything that breaks the rule, one line each.
pub(crate) fn broken(workspace: &Workspace) -> Result<Vec<String>, TaskError> {
    let text = Tool::cargo(workspace.root())
        .args(["metadata", "--format-version", "1", "--no-deps", "--locked"])
        .deadline(Duration::from_secs(300))
        .output()?;
    let metadata = serde_json::from_str(&text).map_err(|e| TaskError::Metadata(e.to_string()))?;
    check(&metadata)
}

fn check(metadata: &Value) -> Result<Vec<String>, TaskError> {
    let packages = metadata["packages"]
        .as_array()
        .ok_or_else(|| TaskError::Metadata("no packages".to_owned()))?;
    let mut broken = Vec::new();
    for package in packages {
        let name = package["name"].as_str().unwrap_or_default();
        let Some(floor) = floor(name) else {
            broken.push(format!("{name} has no floor: expected it in xtask/src/floors.rs"));
            continue;
        };
        let dependencies = package["dependencies"].as_array().into_iter().flatten();
        for dependency in dependencies.filter_map(|d| d["name"].as_str()) {
            if let Some(line) = violation(name, floor, dependency) {
                broken.push(line);
            }
        }
    }
    Ok(broken)
}

fn violation(name: &str, floor_of_name: u8, dependency: &str) -> Option<String> {
    let below = floor(dependency)?;
    if below >= floor_of_name {
        return Some(format!(
            "{name} (floor {floor_of_name}) depends on {dependency} (floor {below}): expected a lower floor"
        ));
    }
    let only = ONLY.iter().find(|(n, _)| *n == name)?.1;
    (!only.contains(&dependency)).then(|| {
        format!(
            "{name} depends on {dependency}: expected only {}",
            only.join(", ")
        )
    })
}

fn floor(name: &str) -> Option<u8> {
    FLOORS.iter().find(|(n, _)| *n == name).map(|(_, floor)| *floor)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn lines(name: &str, dependency: &str) -> Vec<String> {
        let metadata = json!({"packages": [{"name": name, "dependencies": [{"name": dependency}]}]});
        check(&metadata).unwrap()
    }

    #[test]
    fn only_downwards() {
        assert!(lines("bulkhead-cli", "bulkhead-model").is_empty());
        assert!(lines("bulkhead-sandbox", "serde").is_empty());
        assert_eq!(lines("bulkhead-host", "bulkhead-model").len(), 1);
        assert_eq!(lines("bulkhead-vmm", "bulkhead-config").len(), 1);
        assert_eq!(lines("bulkhead-agent", "bulkhead-vmm").len(), 1);
        assert!(lines("bulkhead-agent", "bulkhead-host").is_empty());
        assert_eq!(lines("bulkhead-new", "serde").len(), 1);
    }
}
