//! `fuzz`: runs every fuzz target for a while.
//!
//! ```text
//!  fuzz/Cargo.toml ─names─► build all (nightly) ─► each: seeds + what earlier runs found ─► findings
//! ```
//! Owns: the compiler's flags for coverage, where corpus and findings lie (target/fuzz). Never: fuzzes in
//! parallel, changes the seeds. It needs a nightly compiler and g++, nothing else.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::time::Duration;

/// Target-independent flags that make the compiler count which edges run, as libFuzzer wants them.
const COVERAGE: &str = "--cfg fuzzing -Cpasses=sancov-module -Cllvm-args=-sanitizer-coverage-level=4 \
    -Cllvm-args=-sanitizer-coverage-inline-8bit-counters -Cllvm-args=-sanitizer-coverage-pc-table \
    -Ccodegen-units=1";

/// Flags apply to the targets only, not to build scripts, when the target is named.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Longest that one input may take in seconds.
const INPUT_SECONDS: u32 = 20;

/// Beyond the time a target is given: starting, and reading the corpus.
const GRACE: Duration = Duration::from_secs(300);

/// How long, and which.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct FuzzArguments {
    /// Seconds for each target
    #[arg(default_value_t = 120, value_parser = clap::value_parser!(u32).range(1..=86_400))]
    seconds: u32,
    /// Only this target
    #[arg(long, value_name = "NAME")]
    target: Option<String>,
}

/// Builds the targets and runs them one after the other.
pub(crate) fn run(workspace: &Workspace, arguments: &FuzzArguments) -> Result<(), TaskError> {
    let package = workspace.root().join("fuzz");
    let manifest = package.join("Cargo.toml");
    let text = std::fs::read_to_string(&manifest).map_err(|e| TaskError::io(&manifest, e))?;
    let mut targets = targets(&text);
    if let Some(only) = &arguments.target {
        let known = targets.join(", ");
        targets.retain(|target| target == only);
        if targets.is_empty() {
            return Err(TaskError::FuzzTarget {
                name: only.clone(),
                known,
            });
        }
    }
    let place = workspace.target().join("fuzz");
    build(&package, &place)?;
    for target in &targets {
        fuzz(&package, &place, target, arguments.seconds)?;
    }
    eprintln!(
        "{} targets, {} s each: nothing found",
        targets.len(),
        arguments.seconds
    );
    Ok(())
}

fn build(package: &Path, place: &Path) -> Result<(), TaskError> {
    // The cargo that runs this program is not the nightly one, and says so in these.
    Tool::new("rustup")
        .args(["run", "nightly", "cargo", "build", "--release", "--bins"])
        .args(["--target", TARGET, "--manifest-path"])
        .arg(package.join("Cargo.toml"))
        .without_env(&["CARGO", "RUSTC", "RUSTUP_TOOLCHAIN", "CARGO_MANIFEST_DIR"])
        .env("RUSTFLAGS", COVERAGE)
        .env("CARGO_TARGET_DIR", place)
        .run()
}

fn fuzz(package: &Path, place: &Path, target: &str, seconds: u32) -> Result<(), TaskError> {
    let corpus = place.join("corpus").join(target);
    let findings = place.join("findings").join(target);
    for dir in [&corpus, &findings] {
        std::fs::create_dir_all(dir).map_err(|e| TaskError::io(dir, e))?;
    }
    let seeds = package.join("seeds").join(target);
    let program: PathBuf = [TARGET, "release", target].iter().collect();
    let tool = Tool::new(place.join(program))
        .arg(format!("-max_total_time={seconds}"))
        .arg(format!("-timeout={INPUT_SECONDS}"))
        .arg(format!("-artifact_prefix={}/", findings.display()))
        .args(["-rss_limit_mb=2048", "-print_final_stats=1", "-verbosity=0"])
        .arg(&corpus)
        .args(seeds.is_dir().then_some(&seeds));
    tool.deadline(GRACE + Duration::from_secs(seconds.into())).run()
}

/// Names of the programs in a manifest, in its order.
fn targets(manifest: &str) -> Vec<String> {
    let mut names = Vec::new();
    let mut in_program = false;
    for line in manifest.lines() {
        if line.starts_with('[') {
            in_program = line == "[[bin]]";
        } else if let (true, Some(name)) = (in_program, line.strip_prefix("name = ")) {
            names.push(name.trim_matches('"').to_owned());
        }
    }
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn programs_of_a_manifest() {
        let text = "[package]\nname = \"p\"\n\n[[bin]]\nname = \"a\"\npath = \"a.rs\"\n\n[[bin]]\nname = \"b\"\n[x]\nname = \"c\"\n";
        assert_eq!(targets(text), ["a", "b"]);
    }

    #[test]
    fn every_target_file_is_a_program() {
        let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
        let named = targets(&std::fs::read_to_string(package.join("Cargo.toml")).unwrap());
        let mut files: Vec<_> = std::fs::read_dir(package.join("fuzz_targets"))
            .unwrap()
            .map(|file| {
                file.unwrap()
                    .path()
                    .file_stem()
                    .unwrap()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect();
        files.sort();
        let mut sorted = named;
        sorted.sort();
        assert_eq!(sorted, files);
    }
}
