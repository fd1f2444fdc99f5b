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
    /// Let a container end by itself for a while, then kill it
    Stop(verbs::stop::Stop),
    /// Print the live state of a sandbox, as JSON
    Inspect(verbs::inspect::Inspect),
    /// Print the log of a sandbox: supervisor, VMM, agent and guest console in one order
    Logs(verbs::logs::Logs),
    /// Show where the time of a sandbox's start and stop went
    Timeline(verbs::timeline::Timeline),
    /// Remove everything of sandboxes whose supervisor is gone
    Gc(verbs::gc::Gc),
    /// Make, list or remove saved machines that sandboxes start from
    #[command(subcommand)]
    Template(verbs::template::TemplateCommand),
    /// Say whether this host can run containers, with what, and what is missing
    Doctor(crate::doctor::Doctor),
    /// Make or show the guest kernel and initial RAM disk
    #[command(subcommand)]
    Guest(crate::guest::GuestCommand),
    /// List, explain and check the options of the configuration
    Config(crate::config_verb::ConfigArgs),
    /// Print the version
    #[command(hide = true)]
    Version,
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::go_style;
    use clap::CommandFactory;
    use std::ffi::OsString;

    /// Options of runc 1.1.5 by verb, from `runc --help` and `runc <verb> --help`; a value stands after those
    /// that take one.
    const RUNC: &[(&str, &str, &[&str])] = &[
        ("create", "", BUNDLE),
        ("start", "", &[]),
        ("state", "", &[]),
        ("kill", "", &["--all", "-a"]),
        ("delete", "", &["--force", "-f"]),
        ("run", "", BUNDLE),
        ("run", "", &["--detach", "-d", "--keep", "--no-subreaper"]),
        (
            "exec",
            "true",
            &[
                "--console-socket s",
                "--cwd /",
                "--env A=b",
                "-e A=b",
                "--tty",
                "-t",
                "--user 1:2",
                "-u 1",
                "--additional-gids 1",
                "-g 1",
                "--process p",
                "-p p",
                "--detach",
                "-d",
                "--pid-file p",
                "--process-label l",
                "--apparmor a",
                "--no-new-privs",
                "--cap CAP_KILL",
                "-c CAP_KILL",
                "--preserve-fds 0",
                "--cgroup /",
                "--ignore-paused",
                "--console c",
            ],
        ),
        ("ps", "", &["--format json", "-f json"]),
        ("pause", "", &[]),
        ("resume", "", &[]),
        (
            "update",
            "",
            &[
                "--resources r",
                "-r -",
                "--blkio-weight 10",
                "--cpu-period 1",
                "--cpu-quota -1",
                "--cpu-share 1",
                "--cpu-rt-period 1",
                "--cpu-rt-runtime 1",
                "--cpuset-cpus 0",
                "--cpuset-mems 0",
                "--memory 1",
                "--memory-reservation 1",
                "--memory-swap -1",
                "--pids-limit -1",
                "--l3-cache-schema s",
                "--mem-bw-schema s",
            ],
        ),
        ("events", "", &["--interval 5s", "--stats"]),
    ];

    const BUNDLE: &[&str] = &[
        "--bundle b",
        "-b b",
        "--console-socket s",
        "--pid-file p",
        "--no-pivot",
        "--no-new-keyring",
        "--preserve-fds 0",
        "--console c",
    ];

    /// Verbs without an id.
    const RUNC_BARE: &[(&str, &[&str])] = &[
        ("list", &["--format json", "-f table", "--quiet", "-q"]),
        ("spec", &["--bundle b", "-b b", "--rootless"]),
        ("features", &[]),
    ];

    const RUNC_GLOBAL: &[&str] = &[
        "--debug",
        "--log l",
        "--log-format json",
        "--root r",
        "--criu c",
        "--systemd-cgroup",
        "--rootless auto",
        "--rootless true",
        "--config c",
    ];

    fn parse(line: &str) -> Invocation {
        let words = go_style::normalise(
            &Invocation::command(),
            line.split_whitespace().map(OsString::from),
        );
        let words = std::iter::once(OsString::from("bulkhead")).chain(words);
        Invocation::try_parse_from(words).unwrap_or_else(|e| panic!("{line}: {e}"))
    }

    #[test]
    fn the_definition_is_sound() {
        Invocation::command().debug_assert();
    }

    #[test]
    fn every_option_of_runc_is_accepted_before_and_after_the_id() {
        for (verb, tail, options) in RUNC {
            parse(&format!("{verb} id {tail}"));
            for option in *options {
                parse(&format!("{verb} {option} id {tail}"));
                parse(&format!("{verb} id {option} {tail}"));
                if let Some((name, value)) = option.split_once(' ') {
                    parse(&format!("{verb} {name}={value} id {tail}"));
                }
                if let Some(name) = option.strip_prefix("--") {
                    parse(&format!("{verb} -{name} id {tail}"));
                }
            }
        }
    }

    #[test]
    fn verbs_without_an_id_and_global_options() {
        for (verb, options) in RUNC_BARE {
            parse(verb);
            for option in *options {
                parse(&format!("{verb} {option}"));
            }
        }
        for option in RUNC_GLOBAL {
            parse(&format!("{option} state id"));
            parse(&format!("{option} list"));
        }
        for option in RUNC_GLOBAL
            .iter()
            .filter(|option| !option.starts_with("--rootless"))
        {
            parse(&format!("state id {option}"));
        }
    }

    #[test]
    fn values_arrive_where_they_belong() {
        let Some(Verb::Kill(kill)) = parse("kill id -a 9").verb else {
            panic!("no kill")
        };
        assert_eq!(
            (kill.all, kill.id.as_str(), kill.signal.as_str()),
            (true, "id", "9")
        );
        let Some(Verb::Exec(exec)) = parse("exec --tty id -e A=b -- ls -l").verb else {
            panic!("no exec")
        };
        assert_eq!(
            (exec.id.as_str(), exec.command.join(" ")),
            ("id", "ls -l".to_owned())
        );
        let Some(Verb::Exec(exec)) = parse("exec id sh -c exit -t").verb else {
            panic!("no exec")
        };
        assert_eq!(
            (exec.process.tty, exec.command.join(" ")),
            (false, "sh -c exit -t".to_owned())
        );
        let Some(Verb::Update(update)) = parse("update id --memory-swap -1").verb else {
            panic!("no update")
        };
        assert_eq!(update.memory_swap.as_deref(), Some("-1"));
        let Some(Verb::Ps(ps)) = parse("ps id -o pid,comm").verb else {
            panic!("no ps")
        };
        assert_eq!(ps.options.join(" "), "-o pid,comm");
        assert!(parse("--root /r state id").verb.is_some());
    }
}
