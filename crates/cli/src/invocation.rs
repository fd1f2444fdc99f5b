//! The command line: global options and verbs, as typed.
//!
//! ```text
//!  words ─► go_style (runc's spelling) ─► clap ─► Invocation ─► verb.run(&Context)
//! ```
//! Owns: names and help of options. Never: what a verb does. Called by `lib`.

use crate::report::LogFormat;
use crate::verbs;
use clap::{Args, Parser, Subcommand, ValueEnum};
use std::path::PathBuf;

/// OCI and containerd container runtime that runs each pod in its own virtual machine
#[derive(Debug, Parser)]
#[command(
    name = "bulkhead",
    disable_version_flag = true,
    disable_help_subcommand = true,
    arg_required_else_help = true
)]
pub(crate) struct Invocation {
    /// Options of every verb.
    #[command(flatten)]
    pub(crate) global: Global,
    /// What to do.
    #[command(subcommand)]
    pub(crate) verb: Option<Verb>,
}

/// Whether cgroup permission errors are ignored; accepted for runc's sake.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Rootless {
    /// Yes.
    True,
    /// No.
    False,
    /// As the user is root or not.
    Auto,
}

/// Options that are accepted before and after every verb (`--rootless` and `--version` before it only: verbs have their own).
#[derive(Debug, Clone, Args)]
pub(crate) struct Global {
    /// Enable debug logging
    #[arg(long, global = true)]
    pub(crate) debug: bool,
    /// File to append log lines to; without it they go to standard error
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) log: Option<PathBuf>,
    /// Form of log lines
    #[arg(long, global = true, value_name = "FORMAT", default_value = "text")]
    pub(crate) log_format: LogFormat,
    /// Root directory of container state; should be on a tmpfs
    #[arg(long, global = true, value_name = "DIR", default_value = bulkhead_sandbox::layout::DEFAULT_ROOT)]
    pub(crate) root: PathBuf,
    /// Configuration file to read in place of /etc/bulkhead; also BULKHEAD_CONFIG in the environment
    #[arg(long, global = true, value_name = "FILE")]
    pub(crate) config: Option<PathBuf>,
    /// Path of criu; accepted, not used
    #[arg(long, global = true, value_name = "PATH")]
    pub(crate) criu: Option<PathBuf>,
    /// The spec's cgroupsPath has the form slice:prefix:name
    #[arg(long, global = true)]
    pub(crate) systemd_cgroup: bool,
    /// Ignore cgroup permission errors; accepted, a refused limit is always only logged
    #[arg(
        id = "global_rootless",
        long = "rootless",
        value_name = "WHEN",
        ignore_case = true,
        default_value = "auto"
    )]
    pub(crate) rootless: Rootless,
    /// Print the version
    #[arg(long, short = 'v')]
    pub(crate) version: bool,
}

/// All verbs.
#[derive(Debug, Subcommand)]
pub(crate) enum Verb {
    /// Create a container
    Create(verbs::create::Create),
    /// Start the process of a created container
    Start(verbs::start::Start),
    /// Create and run a container
    Run(verbs::run::Run),
    /// Print the state of a container
    State(verbs::state::State),
    /// Send a signal to a container's process
    Kill(verbs::kill::Kill),
    /// Remove a container and everything it holds
    Delete(verbs::delete::Delete),
    /// Run a further process in a container
    Exec(verbs::exec::Exec),
    /// List the processes in a container
    Ps(verbs::ps::Ps),
    /// List the containers under the root
    List(verbs::list::List),
    /// Freeze all processes of a container
    Pause(verbs::pause::Pause),
    /// Thaw all processes of a container
    Resume(verbs::resume::Resume),
    /// Change the resource limits of a container
    Update(verbs::update::Update),
    /// Print statistics and out-of-memory events of a container
    Events(verbs::events::Events),
    /// Write a new config.json
    Spec(verbs::spec::Spec),
    /// Print what this runtime can do, as JSON
    Features(verbs::features::Features),
    /// Save a running container (not supported)
    #[command(hide = true)]
    Checkpoint(verbs::checkpoint::Refused),
    /// Restore a saved container (not supported)
    #[command(hide = true)]
    Restore(verbs::checkpoint::Refused),
    /// Print the live state of a sandbox, as JSON
    Inspect(verbs::inspect::Inspect),
    /// Print the log of a sandbox: supervisor, VMM, agent and guest console in one order
    Logs(verbs::logs::Logs),
    /// Remove everything of sandboxes whose supervisor is gone
    Gc(verbs::gc::Gc),
    /// Make or show the guest kernel and initial RAM disk
    #[command(subcommand)]
    Guest(crate::guest::GuestCommand),
    /// List, explain and check the options of the configuration
    Config(crate::config_verb::ConfigArgs),
    /// Print the version
    #[command(hide = true)]
    Version,
}
