//! `test`: every test, in two tiers.
//!
//! | tier | which | needs |
//! | --- | --- | --- |
//! | unit | everything not `#[ignore]`d | nothing |
//! | real VM | `#[ignore = "needs a VM"]`, `#[ignore = "needs root"]` | root, QEMU, the guest |
//!
//! The last lines say how many of each ran, the very last how many passed and failed.

use crate::build::{self, Profile};
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use std::time::Duration;

/// VMs that run at the same time.
const VM_THREADS: &str = "--test-threads=2";

/// Limit of a tier.
const TIER_DEADLINE: Duration = Duration::from_secs(3000);

/// Which tests to run.
#[derive(Debug, Clone, Default, clap::Args)]
pub(crate) struct TestArguments {
    /// Only tests that need no VM and no root
    #[arg(long)]
    unit: bool,
    /// Only tests that need a VM or root
    #[arg(long, conflicts_with = "unit")]
    vm: bool,
    /// Only this package's
    #[arg(long, short, value_name = "CRATE")]
    package: Option<String>,
    /// Only tests whose name contains this
    filter: Option<String>,
}

/// What the test programs reported, added up.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
struct Count {
    passed: u64,
    failed: u64,
}

impl Count {
    /// Adds a line like `test result: ok. 3 passed; 0 failed; 1 ignored; …`.
    fn add(&mut self, line: &str) {
        let Some(result) = line.strip_prefix("test result:") else {
            return;
        };
        let number = |word: &str| {
            let before = result.split(word).next()?;
            before.split_whitespace().next_back()?.parse::<u64>().ok()
        };
        self.passed += number(" passed").unwrap_or(0);
        self.failed += number(" failed").unwrap_or(0);
    }

    fn ran(self) -> u64 {
        self.passed + self.failed
    }
}

/// Runs the tests and prints the sums.
pub(crate) fn run(workspace: &Workspace, arguments: &TestArguments) -> Result<(), TaskError> {
    setup::run()?;
    let mut sum = Count::default();
    let mut report = Vec::new();
    if !arguments.vm {
        let count = tier(unit(workspace, arguments))?;
        report.push(format!("unit tests: {} ran", count.ran()));
        add(&mut sum, count);
    }
    if !arguments.unit {
        if !nix::unistd::geteuid().is_root() {
            return Err(TaskError::NeedsRoot(
                "the real-VM tier (run `cargo xtask test --unit` without)",
            ));
        }
        let made = build::all(workspace, Profile::Dev)?;
        let guest = workspace.guest();
        let tool = vm(workspace, arguments)
            .env("BULKHEAD_BIN", &made.bulkhead)
            .env("BULKHEAD_TEST_CONFIG", workspace.config())
            .env("BULKHEAD_TEST_KERNEL", guest.join("vmlinux"))
            .env("BULKHEAD_TEST_INITRD", guest.join("initrd"));
        let count = tier(tool)?;
        report.push(format!("real-VM and root tests: {} ran", count.ran()));
        add(&mut sum, count);
    }
    println!();
    for line in report {
        println!("{line}");
    }
    println!("{} passed, {} failed", sum.passed, sum.failed);
    if sum.failed == 0 {
        Ok(())
    } else {
        Err(TaskError::Tests(sum.failed))
    }
}

fn add(sum: &mut Count, count: Count) {
    sum.passed += count.passed;
    sum.failed += count.failed;
}

fn unit(workspace: &Workspace, arguments: &TestArguments) -> Tool {
    packages(workspace, arguments).arg("--").args(&arguments.filter)
}

fn vm(workspace: &Workspace, arguments: &TestArguments) -> Tool {
    packages(workspace, arguments)
        .args(["--tests", "--", "--ignored", VM_THREADS])
        .args(&arguments.filter)
}

fn packages(workspace: &Workspace, arguments: &TestArguments) -> Tool {
    let tool = Tool::cargo(workspace.root())
        .args(["test", "--locked", "--no-fail-fast"])
        .deadline(TIER_DEADLINE);
    match &arguments.package {
        Some(package) => tool.arg("--package").arg(package),
        None => tool.arg("--workspace"),
    }
}

/// Runs one tier. A test program that died, or did not compile, reports nothing: that is one failure.
fn tier(tool: Tool) -> Result<Count, TaskError> {
    let mut count = Count::default();
    let status = tool.lines(|line| count.add(line))?;
    if !status.success() && count.failed == 0 {
        eprintln!("cargo test ended with {status} and no test reported a failure");
        count.failed = 1;
    }
    Ok(count)
}

#[cfg(test)]
mod counting {
    use super::*;

    #[test]
    fn results_add_up() {
        let mut count = Count::default();
        for line in [
            "running 3 tests",
            "test a::b ... ok",
            "test result: ok. 3 passed; 0 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.10s",
            "test result: FAILED. 1 passed; 2 failed; 0 ignored; 0 measured; 0 filtered out; finished in 0.10s",
        ] {
            count.add(line);
        }
        assert_eq!(count, Count { passed: 4, failed: 2 });
        assert_eq!(count.ran(), 6);
    }

    #[test]
    fn a_program_that_dies_is_a_failure() {
        let silent = Tool::new("sh").args(["-c", "exit 101"]);
        assert_eq!(tier(silent).unwrap().failed, 1);
    }
}
