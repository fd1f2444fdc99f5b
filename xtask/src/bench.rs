//! `bench`: what a start costs, measured side by side in one run.
//!
//! Times vary with the machine and its load, so the competitors take turns and only medians of one run are compared.
//! Counts (round trips, calls, processes) do not vary: they are what to watch.

mod bare;
mod chart;
mod compare;
mod containerd;
mod density;
mod figures;
mod floor;
mod monitor;
mod output;
mod start;
mod subject;
mod variant;

use crate::build::Profile;
use crate::error::TaskError;
use crate::workspace::Workspace;
use std::path::PathBuf;

/// What to measure.
#[derive(Debug, Clone, clap::Subcommand)]
pub(crate) enum Bench {
    /// `run` of `true`, cold and from a template, against their floors, runc and crun
    Start {
        /// Rounds; the medians of this many are printed
        #[arg(long, default_value_t = 10)]
        rounds: usize,
        /// Draw the comparison into this file too
        #[arg(long, value_name = "FILE")]
        svg: Option<PathBuf>,
    },
    /// Containers and pods under containerd, beside runc's shim
    Containerd {
        /// Rounds; the medians of this many are printed
        #[arg(long, default_value_t = 5)]
        rounds: usize,
    },
    /// Bytes from and to an exec, in MiB/s, beside runc
    Output {
        /// Rounds; the medians of this many are printed
        #[arg(long, default_value_t = 5)]
        rounds: usize,
        /// MiB each way
        #[arg(long, default_value_t = 64)]
        mib: u64,
    },
    /// Kernels, initial RAM disks, memory modes and other options of the VM, side by side
    Compare(compare::CompareArguments),
    /// Idle sandboxes until half of the memory is used, then many starts and stops
    Density(density::DensityArguments),
}

/// Runs a bench and prints its table.
pub(crate) fn run(workspace: &Workspace, bench: &Bench, dist: bool) -> Result<(), TaskError> {
    let profile = if dist { Profile::Dist } else { Profile::Release };
    if !nix::unistd::geteuid().is_root() {
        return Err(TaskError::NeedsRoot("the bench"));
    }
    match bench {
        Bench::Start { rounds, svg } => start::run(workspace, (*rounds).max(1), svg.as_deref(), profile),
        Bench::Containerd { rounds } => containerd::run(workspace, (*rounds).max(1), profile),
        Bench::Output { rounds, mib } => output::run(workspace, (*rounds).max(1), (*mib).max(1), profile),
        Bench::Compare(arguments) => compare::run(workspace, arguments, profile),
        Bench::Density(arguments) => density::run(workspace, arguments, profile),
    }
}
