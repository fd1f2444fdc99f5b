//! `cargo xtask`: set-up, build, demo, test, lint and bench of the workspace.
//!
//! ```text
//! setup ─► build (host binary, static agent, guest) ─┬─► demo
//!                                                    ├─► test
//!                                                    └─► bench
//! ```
//! Owns: what a developer or a CI machine runs. Never: linked into the product. It builds without any of the
//! product's system libraries, since it is what installs them.

mod bench;
mod build;
mod bundle;
mod contract;
mod demo;
mod error;
mod floors;
mod fuzz;
mod kernel;
mod lint;
mod promises;
mod rules;
mod setup;
mod tests;
mod tool;
mod workspace;

use clap::{Parser, Subcommand};
use error::TaskError;
use std::process::ExitCode;
use workspace::Workspace;

/// Tasks of the bulkhead workspace
#[derive(Debug, Parser)]
#[command(name = "cargo xtask", bin_name = "cargo xtask")]
struct Arguments {
    #[command(subcommand)]
    task: Task,
}

#[derive(Debug, Subcommand)]
enum Task {
    /// Install the Debian packages that are missing
    Setup,
    /// Build the host binary, the guest agent and the guest
    Build {
        /// Optimised host binary
        #[arg(long)]
        release: bool,
        /// Host binary and agent as they are shipped: optimised as a whole, which takes minutes
        #[arg(long, conflicts_with = "release")]
        dist: bool,
    },
    /// Build the lean guest kernel; takes a quarter of an hour, once
    Kernel(kernel::KernelArguments),
    /// Run a busybox bundle in a VM and show what happened
    Demo,
    /// Run every test, unit and real-VM
    Test(tests::TestArguments),
    /// Check format, clippy, dependency direction, house rules and the tests that promises name
    Lint,
    /// List the rows of the contract and their tests; fails for a row without one
    Contract,
    /// Run every fuzz target for a while; needs a nightly compiler
    Fuzz(fuzz::FuzzArguments),
    /// Measure
    Bench {
        /// The binaries as they are shipped, which take minutes to build
        #[arg(long, global = true)]
        dist: bool,
        #[command(subcommand)]
        what: bench::Bench,
    },
    /// What CI runs: lint, then every test
    Ci,
}

fn main() -> ExitCode {
    match run(&Arguments::parse().task) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run(task: &Task) -> Result<(), TaskError> {
    let workspace = Workspace::find()?;
    match task {
        Task::Setup => setup::run(),
        Task::Build { release, dist } => {
            setup::run()?;
            let profile = match (release, dist) {
                (_, true) => build::Profile::Dist,
                (true, false) => build::Profile::Release,
                (false, false) => build::Profile::Dev,
            };
            build::all(&workspace, profile).map(drop)
        }
        Task::Kernel(arguments) => kernel::run(&workspace, arguments),
        Task::Demo => demo::run(&workspace),
        Task::Test(arguments) => tests::run(&workspace, arguments),
        Task::Lint => {
            setup::run()?;
            lint::run(&workspace)
        }
        Task::Contract => contract::run(&workspace),
        Task::Fuzz(arguments) => fuzz::run(&workspace, arguments),
        Task::Bench { what, dist } => bench::run(&workspace, what, *dist),
        Task::Ci => {
            setup::run()?;
            lint::run(&workspace)?;
            tests::run(&workspace, &tests::TestArguments::default())
        }
    }
}
