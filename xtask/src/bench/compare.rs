//! `bench compare`: what a configuration costs against others: starts, exec, system calls, idleness, memory.
//!
//! ```text
//!  for each variant: its template ─► rounds, variants taking turns ─► four of each at once ─► one table, a column for each
//!                                    cold, template, exec, calls, idle
//! ```
//! Kernels, initial RAM disks, memory modes: whatever options of `hypervisor` can name.
//!
//! Owns: what is measured of each. Never: judges. Called by `bench`.

use super::figures::{Series, columns};
use super::monitor::Monitor;
use super::subject::{guest_memory_kib, processor_seconds, pss_kib};
use super::variant::Variant;
use crate::build::{self, Profile};
use crate::bundle;
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::Value;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// For a verb, on a busy machine.
const VERB: Duration = Duration::from_secs(300);
/// A start has settled after so long: what it caused is done, nothing periodic has begun.
const SETTLED: Duration = Duration::from_secs(3);
/// Sandboxes at once when memory they share is to show.
const TOGETHER: usize = 4;
/// Bytes that are copied one by one, each by two system calls.
const COPIED: usize = 100_000;
/// The same through a pipe, each by four.
const PIPED: usize = 50_000;
/// Programs that are started.
const STARTED: usize = 100;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct CompareArguments {
    /// NAME, or NAME:option=value,option=value with options of the table `hypervisor`
    #[arg(required = true, value_name = "VARIANT")]
    variants: Vec<Variant>,
    /// Rounds; the medians of this many are printed
    #[arg(long, default_value_t = 5)]
    rounds: usize,
    /// Seconds for which a sandbox is watched doing nothing, in each round
    #[arg(long, default_value_t = 10)]
    idle: u64,
}

/// Measures and prints.
pub(super) fn run(
    workspace: &Workspace,
    arguments: &CompareArguments,
    profile: Profile,
) -> Result<(), TaskError> {
    setup::run()?;
    let made = build::all(workspace, profile)?;
    let work = workspace.target().join("bench");
    let bundles = Bundles {
        quick: bundle::make(&work.join("quick"), &["true"])?,
        idle: bundle::make(&work.join("idle"), &["sleep", "600"])?,
    };
    let monitor = Monitor::new(&work)?;
    let base = workspace.config();
    let base = std::fs::read_to_string(&base).map_err(|e| TaskError::io(&base, e))?;
    let mut columns = Vec::new();
    for variant in &arguments.variants {
        columns.push(Column::new(
            variant,
            &made.bulkhead,
            &work,
            &base,
            &monitor,
            workspace,
        )?);
    }
    for column in &mut columns {
        column.template()?;
    }
    let rounds = arguments.rounds.max(1);
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for column in &mut columns {
            column.weigh_cold(&bundles)?;
            column.round(&bundles, &monitor, Duration::from_secs(arguments.idle.max(1)))?;
        }
    }
    for column in &mut columns {
        column.weigh_together(&bundles)?;
    }
    monitor.clear();
    let text = report(&columns, rounds);
    let file = work.join("compare.md");
    std::fs::write(&file, &text).map_err(|e| TaskError::io(&file, e))?;
    println!("{text}");
    Ok(())
}

struct Bundles {
    quick: PathBuf,
    idle: PathBuf,
}

/// A variant and what was measured of it.
struct Column {
    variant: Variant,
    bulkhead: PathBuf,
    root: PathBuf,
    config: PathBuf,
    config_cold: PathBuf,
    kernel_bytes: u64,
    initrd_bytes: u64,
    template_kib: Option<u64>,
    cold: Series,
    warm: Series,
    exec: Series,
    copied: Series,
    piped: Series,
    started: Series,
    blocks: Vec<u64>,
    /// Processor time per second of doing nothing.
    idle: Vec<f64>,
    alone: Vec<Weight>,
    after_boot: Vec<Weight>,
    free_after_boot_kib: Option<u64>,
    together_kib: u64,
}

/// Memory of a sandbox in KiB, and what its VM has done.
#[derive(Debug, Clone, Copy)]
struct Weight {
    pss: u64,
    /// File of the guest's memory that is its own; 0 if it has none.
    guest: u64,
    /// Processor time of the VMM so far, in seconds.
    spent: f64,
}

impl Column {
    fn new(
        variant: &Variant,
        bulkhead: &Path,
        work: &Path,
        base: &str,
        monitor: &Monitor,
        workspace: &Workspace,
    ) -> Result<Self, TaskError> {
        let name = &variant.name;
        let vmm = monitor.script().display().to_string();
        let write = |file: String, more: &str| {
            let path = work.join(file);
            let text = variant.configuration(base, &vmm, more);
            std::fs::write(&path, text)
                .map(|()| path.clone())
                .map_err(|e| TaskError::io(&path, e))
        };
        let bytes = |option: &str, ours: &str| {
            let path = match variant.value(option) {
                Some(path) => PathBuf::from(path),
                None => workspace.guest().join(ours),
            };
            let found = std::fs::metadata(&path).map_err(|e| TaskError::io(&path, e))?;
            Ok::<_, TaskError>(found.len())
        };
        Ok(Self {
            config: write(format!("compare-{name}.toml"), "")?,
            config_cold: write(format!("compare-{name}-cold.toml"), "template = \"off\"\n")?,
            kernel_bytes: bytes("kernel", "vmlinux")?,
            initrd_bytes: bytes("initrd", "initrd")?,
            variant: variant.clone(),
            bulkhead: bulkhead.to_owned(),
            root: work.join("state"),
            template_kib: None,
            cold: Series::default(),
            warm: Series::default(),
            exec: Series::default(),
            copied: Series::default(),
            piped: Series::default(),
            started: Series::default(),
            blocks: Vec::new(),
            idle: Vec::new(),
            alone: Vec::new(),
            after_boot: Vec::new(),
            free_after_boot_kib: None,
            together_kib: 0,
        })
    }

    fn id(&self, what: &str) -> String {
        format!("compare-{}-{what}", self.variant.name)
    }

    fn call_of(&self, config: &Path, arguments: &[&str]) -> Tool {
        Tool::new(&self.bulkhead)
            .arg("--config")
            .arg(config)
            .arg("--root")
            .arg(&self.root)
            .args(arguments)
            .deadline(VERB)
    }

    fn call(&self, arguments: &[&str]) -> Tool {
        self.call_of(&self.config, arguments)
    }

    fn template(&mut self) -> Result<(), TaskError> {
        let made = self.call(&["template", "create"]).output()?;
        let key = made.split_whitespace().next().unwrap_or_default().to_owned();
        let list = self.call(&["template", "list", "--format", "json"]).output()?;
        let list = json(&list)?;
        let all = list.as_array().into_iter().flatten();
        let memory = all
            .filter(|one| one["key"] == key.as_str())
            .find_map(|one| one["manifest"]["memory"]["path"].as_str());
        let found = memory.and_then(|path| std::fs::metadata(path).ok());
        self.template_kib = found.map(|found| std::os::unix::fs::MetadataExt::blocks(&found) / 2);
        Ok(())
    }

    /// A sandbox that sleeps, from a template unless `config` says otherwise, and its processes.
    fn sleeper(&self, config: &Path, bundles: &Bundles, id: &str) -> Result<Vec<(String, i64)>, TaskError> {
        // What a bench that was stopped half-way left.
        let _ = self.call(&["delete", "--force", id]).outcome()?;
        self.call_of(config, &["run", "--detach", "--bundle"])
            .arg(&bundles.idle)
            .arg(id)
            .run()?;
        let tree = json(&self.call(&["inspect", id]).output()?)?;
        let started = &tree["provenance"];
        if config == self.config && !started["template"].is_string() {
            return Err(TaskError::Metadata(format!(
                "{id} did not start from a template: {started}"
            )));
        }
        let processes = tree["processes"].as_array().into_iter().flatten();
        Ok(processes
            .filter_map(|one| Some((one["role"].as_str()?.to_owned(), one["pid"].as_i64()?)))
            .collect())
    }

    fn delete(&self, id: &str) -> Result<(), TaskError> {
        self.call(&["delete", "--force", id]).output().map(drop)
    }

    fn weigh_cold(&mut self, bundles: &Bundles) -> Result<(), TaskError> {
        let id = self.id("cold");
        let processes = self.sleeper(&self.config_cold, bundles, &id)?;
        std::thread::sleep(SETTLED);
        self.after_boot.push(weigh(&processes));
        let text = self.call(&["exec", &id, "cat", "/proc/meminfo"]).output()?;
        let line = text.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
        self.free_after_boot_kib = line.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
        self.delete(&id)
    }

    fn round(&mut self, bundles: &Bundles, monitor: &Monitor, idle: Duration) -> Result<(), TaskError> {
        let id = self.id("quick");
        for (config, warm) in [(&self.config_cold, false), (&self.config, true)] {
            let run = self
                .call_of(config, &["run", "--bundle"])
                .arg(&bundles.quick)
                .arg(&id);
            let took = timed(|| run.output().map(drop))?;
            if warm {
                self.warm.add(took)
            } else {
                self.cold.add(took)
            }
        }
        let id = self.id("idle");
        let processes = self.sleeper(&self.config, bundles, &id)?;
        let vmm = processes
            .iter()
            .find(|(role, _)| role == "vmm")
            .map_or(0, |(_, pid)| *pid);
        std::thread::sleep(SETTLED);
        self.blocks.extend(monitor.blocks(vmm)?);
        self.alone.push(weigh(&processes));
        let (before, began) = (processor_seconds(vmm), Instant::now());
        std::thread::sleep(idle);
        self.idle
            .push((processor_seconds(vmm) - before) / began.elapsed().as_secs_f64());
        let exec = |arguments: &[&str]| {
            let call = self.call(&["exec", &id]).args(arguments);
            timed(|| call.output().map(drop))
        };
        // The first one translates what the others find.
        exec(&["true"])?;
        let nothing = exec(&["true"])?;
        let copy = format!("busybox dd if=/dev/zero of=/dev/null bs=1 count={COPIED} 2> /dev/null");
        let pipe = format!(
            "busybox dd if=/dev/zero bs=1 count={PIPED} 2> /dev/null | busybox dd of=/dev/null bs=1 2> /dev/null"
        );
        let start = format!("i=0; while [ $i -lt {STARTED} ]; do /bin/true; i=$((i + 1)); done");
        let mut took = Vec::new();
        for script in [copy, pipe, start] {
            took.push(exec(&["sh", "-c", &script])?.saturating_sub(nothing));
        }
        self.exec.add(nothing);
        self.copied.add(took[0] / 2);
        self.piped.add(took[1]);
        self.started.add(took[2]);
        self.delete(&id)
    }

    fn weigh_together(&mut self, bundles: &Bundles) -> Result<(), TaskError> {
        let ids: Vec<String> = (0..TOGETHER).map(|n| self.id(&n.to_string())).collect();
        let mut processes = Vec::new();
        for id in &ids {
            processes.extend(self.sleeper(&self.config, bundles, id)?);
        }
        std::thread::sleep(SETTLED);
        self.together_kib = weigh(&processes).pss / TOGETHER as u64;
        ids.iter().try_for_each(|id| self.delete(id))
    }
}

fn json(text: &str) -> Result<Value, TaskError> {
    serde_json::from_str(text).map_err(|e| TaskError::Metadata(e.to_string()))
}

fn timed(work: impl FnOnce() -> Result<(), TaskError>) -> Result<Duration, TaskError> {
    let began = Instant::now();
    work().map(|()| began.elapsed())
}

fn weigh(processes: &[(String, i64)]) -> Weight {
    let vmm = processes.iter().find(|(role, _)| role == "vmm");
    Weight {
        pss: processes.iter().filter_map(|(_, pid)| pss_kib(*pid)).sum(),
        guest: vmm.and_then(|(_, pid)| guest_memory_kib(*pid)).unwrap_or(0),
        spent: vmm.map_or(0.0, |(_, pid)| processor_seconds(*pid)),
    }
}

fn middle(mut all: Vec<f64>) -> Option<f64> {
    all.sort_by(f64::total_cmp);
    all.get(all.len() / 2).copied()
}

fn report(all: &[Column], rounds: usize) -> String {
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    // Of one of many, in microseconds.
    let each = |series: &Series, count: usize| match series.median() {
        Some(median) => format!("{:.2} µs", median * 1e6 / count as f64),
        None => "–".to_owned(),
    };
    let number = |all: Vec<f64>, unit: &str, digits: usize| match middle(all) {
        Some(value) => format!("{value:.digits$}{unit}"),
        None => "–".to_owned(),
    };
    let row = |name: &str, cell: &dyn Fn(&Column) -> String| {
        let mut row = vec![name.to_owned()];
        row.extend(all.iter().map(cell));
        row
    };
    let weight = |of: &[Weight], pick: fn(&Weight) -> u64| {
        let kib = middle(of.iter().map(|one| pick(one) as f64).collect());
        mib(kib.unwrap_or(0.0) as u64)
    };
    let spent = |of: &[Weight]| number(of.iter().map(|one| one.spent).collect(), " s", 2);
    let rows = [
        row("kernel", &|c| format!("{:.1} MB", c.kernel_bytes as f64 / 1e6)),
        row("initial RAM disk", &|c| {
            format!("{:.1} MB", c.initrd_bytes as f64 / 1e6)
        }),
        row("`run` true, cold", &|c| c.cold.cell()),
        row("`run` true, from a template", &|c| c.warm.cell()),
        row("VMM's processor time of a boot", &|c| spent(&c.after_boot)),
        row("VMM's processor time of a start from a template", &|c| {
            spent(&c.alone)
        }),
        row(
            "blocks translated from a template to a container that sleeps",
            &|c| number(c.blocks.iter().map(|n| *n as f64).collect(), "", 0),
        ),
        row("`exec` true", &|c| c.exec.cell()),
        row("a system call (read, write of a byte)", &|c| {
            each(&c.copied, COPIED)
        }),
        row("a byte through a pipe, between two processes", &|c| {
            each(&c.piped, PIPED)
        }),
        row("a program started and waited for", &|c| each(&c.started, STARTED)),
        row("VMM's processor time while idle", &|c| {
            number(c.idle.iter().map(|share| share * 100.0).collect(), " %", 2)
        }),
        row("PSS of one alone", &|c| weight(&c.alone, |one| one.pss)),
        row("PSS of each of four", &|c| mib(c.together_kib)),
        row("memory file of its own", &|c| weight(&c.alone, |one| one.guest)),
        row("template's memory", &|c| {
            c.template_kib.map_or("–".to_owned(), mib)
        }),
        row("after a boot: PSS", &|c| weight(&c.after_boot, |one| one.pss)),
        row("after a boot: memory file", &|c| {
            weight(&c.after_boot, |one| one.guest)
        }),
        row("after a boot: available in the guest", &|c| {
            c.free_after_boot_kib.map_or("–".to_owned(), mib)
        }),
    ];
    let mut head = vec!["what".to_owned()];
    head.extend(all.iter().map(|column| column.variant.name.clone()));
    let title = format!("Medians of {rounds}, in one run, taking turns (range in brackets).\n\n");
    title + &columns(&head, &rows)
}
