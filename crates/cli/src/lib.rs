//! The `bulkhead` program: OCI verbs, operator verbs, the per-container stub, the guest builder.
//!
//! ```text
//!  argv[0] containerd-shim-bulkhead-v2 ─► shim
//!  supervisor | stub | … (hidden)     ─► those mains, before any option is parsed
//!  everything else                     ─► invocation ─► verbs ─► supervisor's socket
//! ```
//! Owns: dispatch, and turning failures into messages and exit statuses. Never: decides anything about
//! devices or VMs. Called by `main`.

#![forbid(unsafe_code)]

mod bring_up;
mod config_verb;
mod console;
mod context;
mod doctor;
mod exec_process;
mod exit_status;
mod foreground;
mod fsd;
mod go_duration;
mod go_style;
mod guest;
mod interrupt;
mod invocation;
mod pid_file;
mod report;
mod signal;
mod stopwatch;
mod timeline;
mod tool;
mod verbs;

use bulkhead_model::failure::chain;
use bulkhead_model::{Failure, FailureKind};
use bulkhead_sandbox::Layout;
use bulkhead_shim::{containerd, stub};
use clap::error::ErrorKind;
use clap::{CommandFactory, FromArgMatches};
use context::Context;
use invocation::{Global, Invocation, Verb};
use report::{LogFormat, Report};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

/// Name under which containerd calls this program.
const SHIM_NAME: &str = "containerd-shim-bulkhead-v2";

/// Runs the program with the words of the command line, the program's name first.
#[must_use]
pub fn main(words: impl IntoIterator<Item = OsString>) -> ExitCode {
    let mut words = words.into_iter();
    let name = words.next().unwrap_or_default();
    if Path::new(&name).file_name().is_some_and(|name| name == SHIM_NAME) {
        return containerd::main(words);
    }
    let words: Vec<OsString> = words.collect();
    let hidden = words.first().and_then(|word| word.to_str()).unwrap_or_default();
    let rest = words.get(1..).unwrap_or_default().iter().cloned();
    match hidden {
        "supervisor" => bulkhead_shim::supervisor::main(rest),
        "stub" => match rest.into_iter().next().and_then(|fd| fd.to_str()?.parse().ok()) {
            Some(fd) => stub::main(fd),
            None => ExitCode::from(stub::LOST),
        },
        "pause" => containerd::pause_main(),
        "fsd" => fsd_main(rest),
        "template-maker" => bulkhead_shim::template_maker::main(),
        _ => command_line(words),
    }
}

fn fsd_main(words: impl Iterator<Item = OsString>) -> ExitCode {
    #[derive(clap::Parser)]
    struct Fsd {
        #[command(flatten)]
        args: fsd::FsdArgs,
    }
    let words = std::iter::once(OsString::from("bulkhead fsd")).chain(words);
    match fsd::run(&<Fsd as clap::Parser>::parse_from(words).args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("bulkhead fsd: {}", chain(&error));
            ExitCode::FAILURE
        }
    }
}

fn command_line(words: Vec<OsString>) -> ExitCode {
    let command = Invocation::command();
    let words = go_style::normalise(&command, words);
    let with_name = std::iter::once(OsString::from("bulkhead")).chain(words.iter().cloned());
    let parsed = command
        .try_get_matches_from(with_name)
        .and_then(|matches| Invocation::from_arg_matches(&matches));
    match parsed {
        Ok(invocation) => run(invocation),
        Err(error) => refused(&error, &words),
    }
}

/// Help and version go to standard output; a line that cannot be understood is reported like any failure.
fn refused(error: &clap::Error, words: &[OsString]) -> ExitCode {
    match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            // A reader that went away is no failure.
            let _ = verbs::print_text(&error.render().to_string());
            ExitCode::SUCCESS
        }
        kind => {
            early_report(words).failure(&usage_message(error), &[]);
            ExitCode::from(exit_status::of_usage(kind))
        }
    }
}

/// The first paragraph of what clap says, in one line, and where to read more.
fn usage_message(error: &clap::Error) -> String {
    let text = error.render().to_string();
    let first = text.split("\n\n").next().unwrap_or_default();
    let line = first.split_whitespace().collect::<Vec<_>>().join(" ");
    let line = line.strip_prefix("error: ").unwrap_or(&line);
    format!("{line}: see `bulkhead --help` and `bulkhead VERB --help`")
}

/// Where to report to when the command line could not be understood: by the options that were.
fn early_report(words: &[OsString]) -> Report {
    let mut report = Report::default();
    let mut words = words.iter().filter_map(|word| word.to_str());
    while let Some(word) = words.next() {
        let (name, value) = match word.split_once('=') {
            Some((name, value)) => (name, Some(value)),
            None => (word, None),
        };
        let value = || value.or_else(|| words.clone().next());
        match name {
            "--log" => report.log = value().map(PathBuf::from),
            "--log-format" if value() == Some("json") => report.format = LogFormat::Json,
            _ => {}
        }
        if name == "--log" || name == "--log-format" {
            let _ = word.contains('=') || words.next().is_some();
        }
    }
    report
}

fn run(invocation: Invocation) -> ExitCode {
    let Invocation { global, verb } = invocation;
    if global.version || matches!(verb, Some(Verb::Version)) {
        println!(
            "bulkhead version {}\nspec: {}",
            env!("CARGO_PKG_VERSION"),
            bulkhead_shim::oci_state::OCI_VERSION
        );
        return ExitCode::SUCCESS;
    }
    let Some(verb) = verb else {
        let _ = verbs::print_text(&Invocation::command().render_help().to_string());
        return ExitCode::SUCCESS;
    };
    let context = match surroundings(global) {
        Ok(context) => context,
        Err(failure) => {
            Report::default().failure(&failure.message, &failure.console);
            return ExitCode::FAILURE;
        }
    };
    let name = exit_status::VerbClass::of(&verb);
    match dispatch(verb, &context) {
        Ok(status) => ExitCode::from(status),
        Err(failure) => {
            let message = format!("{}{}", name.prefix(), failure.message);
            context.report.failure(&message, &failure.console);
            ExitCode::from(name.status(failure.kind))
        }
    }
}

fn surroundings(global: Global) -> Result<Context, Failure> {
    let root = std::path::absolute(&global.root).map_err(|e| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("--root {:?}: {e}: expected a directory", global.root),
        )
    })?;
    Ok(Context {
        layout: Layout::new(root),
        config: global
            .config
            .or_else(|| std::env::var_os("BULKHEAD_CONFIG").map(PathBuf::from)),
        systemd_cgroup: global.systemd_cgroup,
        report: Report {
            log: global.log.filter(|path| !path.as_os_str().is_empty()),
            format: global.log_format,
            debug: global.debug,
        },
        watch: stopwatch::Stopwatch::from_process_start(),
    })
}

fn dispatch(verb: Verb, context: &Context) -> verbs::Outcome {
    match verb {
        Verb::Create(verb) => verb.run(context),
        Verb::Start(verb) => verb.run(context),
        Verb::Run(verb) => verb.run(context),
        Verb::State(verb) => verb.run(context),
        Verb::Kill(verb) => verb.run(context),
        Verb::Delete(verb) => verb.run(context),
        Verb::Exec(verb) => verb.run(context),
        Verb::Ps(verb) => verb.run(context),
        Verb::List(verb) => verb.run(context),
        Verb::Pause(verb) => verb.run(context),
        Verb::Resume(verb) => verb.run(context),
        Verb::Update(verb) => verb.run(context),
        Verb::Events(verb) => verb.run(context),
        Verb::Spec(verb) => verb.run(context),
        Verb::Features(verb) => verb.run(context),
        Verb::Checkpoint(verb) => verb.run("checkpoint", context),
        Verb::Restore(verb) => verb.run("restore", context),
        Verb::Stop(verb) => verb.run(context),
        Verb::Inspect(verb) => verb.run(context),
        Verb::Logs(verb) => verb.run(context),
        Verb::Timeline(verb) => verb.run(context),
        Verb::Gc(verb) => verb.run(context),
        Verb::Template(verb) => verb.run(context),
        Verb::Doctor(verb) => verb.run(context),
        Verb::Guest(verb) => guest::run(&verb, &mut std::io::stdout())
            .map(|()| 0)
            .map_err(|e| Failure::from_chain(FailureKind::Internal, &e)),
        Verb::Config(verb) => {
            config_verb::run(&verb, context.config.as_deref(), &mut std::io::stdout()).map(|()| 0)
        }
        // Answered before there was a context.
        Verb::Version => Ok(0),
    }
}
