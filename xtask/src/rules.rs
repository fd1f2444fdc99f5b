//! House rules that can be checked by reading the sources.
//!
//! `unsafe` only where it is argued for; no modules named after nothing; a header in every file; files short
//! enough to read.

use crate::error::TaskError;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};

/// Below these `unsafe` is allowed.
const UNSAFE_PLACES: &[&str] = &["crates/host/src/", "crates/agent/src/sys"];

/// Names that say nothing.
const EMPTY_NAMES: &[&str] = &[
    "util", "utils", "common", "base", "manager", "handler", "inner", "misc",
];

/// Longest file in lines, tests apart.
const MAX_LINES: usize = 600;

/// Everything that breaks a rule, one line each.
pub(crate) fn broken(workspace: &Workspace) -> Result<Vec<String>, TaskError> {
    let mut broken = Vec::new();
    for (name, text) in sources(workspace, &["crates", "xtask", "tests"])? {
        broken.extend(check(&name, &text));
    }
    Ok(broken)
}

/// The Rust files in these directories of the workspace, by name, with their text.
pub(crate) fn sources(workspace: &Workspace, below: &[&str]) -> Result<Vec<(PathBuf, String)>, TaskError> {
    let mut files = Vec::new();
    for dir in below {
        collect(&workspace.root().join(dir), &mut files)?;
    }
    files.sort();
    files
        .into_iter()
        .map(|file| {
            let text = std::fs::read_to_string(&file).map_err(|e| TaskError::io(&file, e))?;
            let name = file.strip_prefix(workspace.root()).unwrap_or(&file).to_owned();
            Ok((name, text))
        })
        .collect()
}

fn check(name: &Path, text: &str) -> Vec<String> {
    let mut broken = Vec::new();
    let shown = name.display().to_string();
    let code: Vec<&str> = text
        .lines()
        .take_while(|line| *line != "#[cfg(test)]")
        .map(without_comment)
        .collect();
    if !UNSAFE_PLACES.iter().any(|place| shown.starts_with(place))
        && let Some(at) = code.iter().position(|line| says_unsafe(line))
    {
        broken.push(format!(
            "{shown}:{}: unsafe: expected only in {}",
            at + 1,
            UNSAFE_PLACES.join(" and ")
        ));
    }
    let stem = name.file_stem().and_then(|s| s.to_str()).unwrap_or_default();
    if EMPTY_NAMES.contains(&stem) {
        broken.push(format!(
            "{shown}: a module named {stem} says nothing of what it owns"
        ));
    }
    if !text.starts_with("//!") {
        broken.push(format!("{shown}: no //! header"));
    }
    if code.len() > MAX_LINES {
        broken.push(format!(
            "{shown}: {} lines before its tests: expected at most {MAX_LINES}",
            code.len()
        ));
    }
    broken
}

fn without_comment(line: &str) -> &str {
    line.split("//").next().unwrap_or(line)
}

/// The keyword as code: not in a string, not part of a name or an attribute's lint.
fn says_unsafe(line: &str) -> bool {
    let line = line.trim_start();
    [
        "unsafe {",
        "unsafe fn",
        "unsafe impl",
        "unsafe extern",
        "#[unsafe(",
    ]
    .iter()
    .any(|form| line.match_indices(form).any(|(at, _)| !line[..at].contains('"')))
}

fn collect(dir: &Path, files: &mut Vec<PathBuf>) -> Result<(), TaskError> {
    let failed = |e| TaskError::io(dir, e);
    for entry in std::fs::read_dir(dir).map_err(failed)? {
        let entry = entry.map_err(failed)?;
        let path = entry.path();
        if entry.file_type().map_err(failed)?.is_dir() {
            if path.file_name().is_none_or(|name| name != "target") {
                collect(&path, files)?;
            }
        } else if path.extension().is_some_and(|e| e == "rs") {
            files.push(path);
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_rule_can_be_broken() {
        let broken = |name: &str, text: &str| check(Path::new(name), text);
        assert!(broken("crates/vmm/src/x.rs", "//! Header.\nfn f() {}\n").is_empty());
        assert_eq!(
            broken("crates/vmm/src/x.rs", "//! H\nlet x = unsafe { f() };\n").len(),
            1
        );
        assert!(broken("crates/host/src/x.rs", "//! H\nunsafe fn f() {}\n").is_empty());
        assert!(
            broken(
                "crates/vmm/src/x.rs",
                "//! H\n// unsafe { no }\n#[cfg(test)]\nunsafe fn f()"
            )
            .is_empty()
        );
        assert_eq!(broken("crates/vmm/src/util.rs", "//! H\n").len(), 1);
        assert_eq!(broken("crates/vmm/src/x.rs", "fn f() {}\n").len(), 1);
        let long = format!("//! H\n{}", "fn f() {}\n".repeat(MAX_LINES));
        assert_eq!(broken("crates/vmm/src/x.rs", &long).len(), 1);
    }
}
