//! The promises of SPEC.md, and whether what they name is there.
//!
//! ```text
//!  e2e `run.rs: a`, `b`          functions of tests/e2e/tests/e2e/run.rs
//!  `host: c`, `d`                functions, or modules, of crates/host
//!  `sandbox/tests/x.rs: e`       a function of that file of crates
//! ```
//! Owns: how a promise names its tests. Never: whether they hold it. Called by `lint`.

use crate::error::TaskError;
use crate::rules;
use crate::workspace::Workspace;
use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

/// The document, below the workspace.
const DOCUMENT: &str = "SPEC.md";

/// Words before a name that say which tests are meant, and where those are.
const SUITES: &[(&str, &str)] = &[
    ("e2e", "tests/e2e/tests/e2e"),
    ("ctr", "tests/containerd/tests/containerd"),
];

/// Everything that a promise names and that is not there, one line each.
pub(crate) fn broken(workspace: &Workspace) -> Result<Vec<String>, TaskError> {
    let path = workspace.root().join(DOCUMENT);
    let text = std::fs::read_to_string(&path).map_err(|e| TaskError::io(&path, e))?;
    let sources = rules::sources(workspace, &["crates", "tests", "xtask"])?;
    Ok(check(&text, &sources))
}

fn check(text: &str, sources: &[(PathBuf, String)]) -> Vec<String> {
    let mut broken = Vec::new();
    let mut numbers = BTreeSet::new();
    for line in text.lines() {
        let Some((number, promise)) = line.split_once(". ") else {
            continue;
        };
        let Ok(number) = number.parse::<u32>() else {
            continue;
        };
        if !numbers.insert(number) {
            broken.push(format!("{DOCUMENT}: there are two promises {number}"));
        }
        let names = promise.split_once(" — ").map_or("", |(_, names)| names);
        if !names.contains('`') && !names.contains("*pending*") {
            broken.push(format!(
                "{DOCUMENT}: promise {number} names no test: expected one, or *pending*"
            ));
        }
        let missing = missing(names, sources);
        broken.extend(missing.map(|name| format!("{DOCUMENT}: promise {number}: there is no {name}")));
    }
    broken
}

/// What is named and not there.
fn missing<'a>(names: &'a str, sources: &'a [(PathBuf, String)]) -> impl Iterator<Item = String> + use<'a> {
    let mut suite = None;
    let mut place = PathBuf::new();
    let parts: Vec<&str> = names.split('`').collect();
    let (before, quoted) = (parts.iter().step_by(2), parts.iter().skip(1).step_by(2));
    let mut missing = Vec::new();
    for (words, quoted) in before.zip(quoted) {
        if quoted.starts_with("cargo ") {
            continue;
        }
        let last = words.split_whitespace().next_back();
        if let Some((_, dir)) = SUITES.iter().find(|(word, _)| Some(*word) == last) {
            suite = Some(*dir);
        }
        let (named, name) = match quoted.split_once(": ") {
            Some((named, name)) => (Some(named), Some(name)),
            None if quoted.contains(['/', '.']) || is_crate(quoted, sources) => (Some(*quoted), None),
            None => (None, Some(*quoted)),
        };
        if let Some(named) = named {
            place = place_of(named, suite);
            if !sources.iter().any(|(file, _)| file.starts_with(&place)) {
                missing.push(place.display().to_string());
                continue;
            }
        }
        // A test may be named with the module it is in.
        let name = name.and_then(|name| name.rsplit("::").next());
        if let Some(name) = name
            && !sources.iter().any(|source| has(source, &place, name))
        {
            missing.push(format!("{name} in {}", place.display()));
        }
    }
    missing.into_iter()
}

fn is_crate(name: &str, sources: &[(PathBuf, String)]) -> bool {
    let dir = Path::new("crates").join(name);
    sources.iter().any(|(file, _)| file.starts_with(&dir))
}

/// Where the sources are that a name stands for.
fn place_of(named: &str, suite: Option<&str>) -> PathBuf {
    if named == "xtask" || named.starts_with("tests/") {
        PathBuf::from(named)
    } else if named.ends_with(".rs") && !named.contains('/') {
        Path::new(suite.unwrap_or("tests")).join(named)
    } else {
        Path::new("crates").join(named)
    }
}

fn has((file, text): &(PathBuf, String), place: &Path, name: &str) -> bool {
    let module = || file.file_stem().is_some_and(|stem| stem == name);
    file.starts_with(place) && (module() || text.contains(&format!("fn {name}(")))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sources() -> Vec<(PathBuf, String)> {
        [
            ("crates/host/src/a.rs", "fn one() {}\n"),
            ("crates/host/tests/b.rs", "fn two() {}\n"),
            ("tests/e2e/tests/e2e/run.rs", "async fn three() {}\n"),
            ("tests/containerd/tests/containerd/run.rs", "fn four(engine) {}\n"),
        ]
        .map(|(file, text)| (PathBuf::from(file), text.to_owned()))
        .to_vec()
    }

    #[test]
    fn what_is_there_is_found() {
        let text = "# 1. Title\n1. **A.** — `host: one`, `two`, `a`; e2e `run.rs: three`\n\
            2. **B.** — `host/tests/b.rs: two`; ctr `run.rs: m::four`; `cargo xtask bench`\n\
            3. C — *pending*\n4. D — the audit in `tests/e2e/tests`\n5. E — e2e `run.rs`; `host` by row\n";
        assert_eq!(check(text, &sources()), Vec::<String>::new());
    }

    #[test]
    fn what_is_not_there_is_named() {
        for (promise, word) in [
            ("1. A — `host: three`", "three in crates/host"),
            ("1. A — `host: one`, `four`", "four in crates/host"),
            ("1. A — e2e `run.rs: four`", "four in tests/e2e/tests/e2e/run.rs"),
            (
                "1. A — ctr `stop.rs`",
                "tests/containerd/tests/containerd/stop.rs",
            ),
            ("1. A — `nobody: one`", "crates/nobody"),
            ("1. A — said", "names no test"),
            ("1. A", "names no test"),
            ("1. A — *pending*\n1. B — *pending*", "two promises 1"),
        ] {
            let broken = check(promise, &sources());
            assert!(
                broken.len() == 1 && broken[0].contains(word),
                "{promise}: {broken:?}"
            );
        }
    }
}
