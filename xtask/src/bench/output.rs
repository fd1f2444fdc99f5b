//! `bench output`: MiB/s of the standard streams of an exec, beside runc's.
//!
//! Both take turns with the same command in the same bundle; the time of an exec that does nothing is taken off. The
//! processor time beside it is that of QEMU's threads and of the supervisor: it does not depend on who else runs.

use super::figures::{Series, table};
use super::subject::{Subject, processor_seconds};
use crate::build::{self, Profile};
use crate::bundle;
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::Value;
use std::fs::File;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

const ID: &str = "bench-output";

/// What is timed, in the order of the samples.
const NOTHING: usize = 0;
const OUT: usize = 1;
const IN: usize = 2;

/// Measures and prints.
pub(super) fn run(workspace: &Workspace, rounds: usize, mib: u64, profile: Profile) -> Result<(), TaskError> {
    setup::run()?;
    let made = build::all(workspace, profile)?;
    let subject = Subject::new(workspace, made.bulkhead);
    let bundle = bundle::make(&subject.work().join("output"), &["sleep", "6000"])?;
    let ours = Runtime {
        program: subject.binary().to_owned(),
        options: vec![
            "--config".into(),
            workspace.config().into_os_string(),
            "--root".into(),
            subject.root().into_os_string(),
        ],
    };
    let runc = Runtime {
        program: "runc".into(),
        options: vec!["--root".into(), subject.work().join("runc").into_os_string()],
    };
    for runtime in [&ours, &runc] {
        runtime.start(&bundle)?;
    }
    let result = measure(&subject, [&ours, &runc], rounds, mib);
    for runtime in [&ours, &runc] {
        runtime.tool(&["delete", "--force", ID]).output().map(drop)?;
    }
    let file = subject.work().join("output.md");
    let text = result?;
    std::fs::write(&file, &text).map_err(|e| TaskError::io(&file, e))?;
    println!("{text}");
    Ok(())
}

struct Runtime {
    program: std::path::PathBuf,
    options: Vec<std::ffi::OsString>,
}

impl Runtime {
    fn tool(&self, arguments: &[&str]) -> Tool {
        Tool::new(&self.program)
            .args(&self.options)
            .args(arguments)
            .deadline(Duration::from_secs(180))
    }

    fn start(&self, bundle: &Path) -> Result<(), TaskError> {
        // What a run that was stopped half-way left.
        let _ = self.tool(&["delete", "--force", ID]).outcome()?;
        self.tool(&["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(ID)
            .run()?;
        self.exec(&["true"], None).map(drop)
    }

    /// Runs a command; its output is counted, `input` bytes of zeroes are given to it.
    fn exec(&self, command: &[&str], input: Option<u64>) -> Result<(Duration, u64), TaskError> {
        let failed = |e| TaskError::io(&self.program, e);
        let start = Instant::now();
        let mut child = Command::new(&self.program)
            .args(&self.options)
            .args(["exec", ID])
            .args(command)
            .stdin(input.map_or_else(Stdio::null, |_| Stdio::piped()))
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .map_err(failed)?;
        let feeder = child.stdin.take().zip(input).map(|(mut stdin, bytes)| {
            std::thread::spawn(move || {
                let zeroes = File::open("/dev/zero")?;
                std::io::copy(&mut std::io::Read::take(zeroes, bytes), &mut stdin)
            })
        });
        let mut count = 0;
        if let Some(mut stdout) = child.stdout.take() {
            count = std::io::copy(&mut stdout, &mut std::io::sink()).map_err(failed)?;
        }
        let status = child.wait().map_err(failed)?;
        let took = start.elapsed();
        let fed = feeder.is_none_or(|feeder| matches!(feeder.join(), Ok(Ok(fed)) if Some(fed) == input));
        if !status.success() || !fed {
            return Err(TaskError::Metadata(format!(
                "{command:?} in {ID}: {status}, input taken: {fed}"
            )));
        }
        Ok((took, count))
    }
}

fn measure(
    subject: &Subject<'_>,
    runtimes: [&Runtime; 2],
    rounds: usize,
    mib: u64,
) -> Result<String, TaskError> {
    let bytes = mib << 20;
    let count = format!("count={}", mib * 16);
    let mut series: [[Series; 3]; 2] = Default::default();
    let mut spent = [[0.0; 2]; 2];
    let tree: Value = serde_json::from_str(&subject.call(&["inspect", ID]).output()?)
        .map_err(|e| TaskError::Metadata(e.to_string()))?;
    let pids: Vec<i64> = ["vmm", "supervisor"]
        .iter()
        .filter_map(|role| pid_of(&tree, role))
        .collect();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (which, runtime) in runtimes.iter().enumerate() {
            series[which][NOTHING].add(runtime.exec(&["true"], None)?.0);
            let commands: [(usize, &[&str], Option<u64>, u64); 2] = [
                (
                    OUT,
                    &["busybox", "dd", "if=/dev/zero", "bs=65536", &count],
                    None,
                    bytes,
                ),
                (IN, &["busybox", "dd", "of=/dev/null", "bs=65536"], Some(bytes), 0),
            ];
            for (kind, command, input, expected) in commands {
                let before: Vec<f64> = pids.iter().map(|pid| processor_seconds(*pid)).collect();
                let (took, came) = runtime.exec(command, input)?;
                if came != expected {
                    return Err(TaskError::Metadata(format!("{came} bytes came of {expected}")));
                }
                series[which][kind].add(took);
                if which == 0 {
                    for (process, pid) in pids.iter().enumerate() {
                        spent[kind - OUT][process] += processor_seconds(*pid) - before[process];
                    }
                }
            }
        }
    }
    Ok(report(&series, spent, rounds, mib))
}

fn report(series: &[[Series; 3]; 2], spent: [[f64; 2]; 2], rounds: usize, mib: u64) -> String {
    let rate = |of: &[Series; 3], kind: usize| match (of[kind].median(), of[NOTHING].median()) {
        (Some(all), Some(nothing)) => mib as f64 / (all - nothing).max(0.001),
        _ => f64::NAN,
    };
    let mut rows = Vec::new();
    for (kind, name) in [(OUT, "from an exec"), (IN, "to an exec")] {
        for (of, who) in series.iter().zip(["bulkhead", "runc"]) {
            rows.push((
                format!("{name}, {who}"),
                format!("{:.0} MiB/s; {mib} MiB: {}", rate(of, kind), of[kind].cell()),
            ));
        }
        let [vmm, supervisor] = spent[kind - OUT].map(|s| s * 1000.0 / (rounds as f64 * mib as f64));
        rows.push((
            format!("{name}: processor time per MiB"),
            format!("QEMU {vmm:.1} ms, supervisor {supervisor:.1} ms"),
        ));
    }
    let title = format!("Medians of {rounds}, in one run, taking turns (range in brackets).\n\n");
    title + &table(["what", "value"], &rows)
}

fn pid_of(tree: &Value, role: &str) -> Option<i64> {
    let all = tree["processes"].as_array()?;
    all.iter().find(|process| process["role"] == role)?["pid"].as_i64()
}
