//! `bench density`: how many idle sandboxes fit, and whether anything grows over many starts and stops.
//!
//! ```text
//!  one by one ─► half of the memory is used ─► all gone ─► together ─► all gone ─► start/stop cycles
//!       PSS and start time by count                                              what the host holds, by cycle
//! ```
//! Owns: the counting. Never: the numbers' meaning. Called by `bench`.

use super::chart::{Caption, Curve, draw};
use super::figures::{Series, table};
use super::subject::Subject;
use crate::build::{self, Profile};
use crate::bundle;
use crate::error::TaskError;
use crate::setup;
use crate::workspace::Workspace;
use std::path::{Path, PathBuf};
use std::time::Instant;

/// Points of the curves of a part that fills the machine, at least.
const FILL_POINTS: usize = 20;
/// The memory of all sandboxes is added up at least after so many starts.
const WEIGH_EVERY: usize = 5;
/// Points of the curve of the cycles.
const CYCLE_POINTS: usize = 20;

/// What to measure.
#[derive(Debug, Clone, clap::Args)]
pub(crate) struct DensityArguments {
    /// At most this many sandboxes at once
    #[arg(long, default_value_t = 100)]
    most: usize,
    /// Sandboxes started together in the second part
    #[arg(long, default_value_t = 10)]
    together: usize,
    /// Starts and stops in the third part
    #[arg(long, default_value_t = 1000)]
    cycles: usize,
    /// Directory of the pictures; by default beside the table
    #[arg(long, value_name = "DIR")]
    svg: Option<PathBuf>,
}

/// Measures, prints and draws.
pub(super) fn run(
    workspace: &Workspace,
    arguments: &DensityArguments,
    profile: Profile,
) -> Result<(), TaskError> {
    setup::run()?;
    let made = build::all(workspace, profile)?;
    let subject = Subject::new(workspace, made.bulkhead);
    let pictures = arguments.svg.clone().unwrap_or_else(|| subject.work().to_owned());
    std::fs::create_dir_all(&pictures).map_err(|e| TaskError::io(&pictures, e))?;
    let idle = bundle::make(&subject.work().join("idle"), &["sleep", "86400"])?;
    let quick = bundle::make(&subject.work().join("quick"), &["true"])?;
    // Beforehand: else the first starts would be cold, and beside a VM that is being saved.
    subject.call(&["template", "create"]).run()?;
    subject.run(&quick, "density-first")?;

    let single = fill(&subject, &idle, arguments.most, 1)?;
    let grouped = fill(&subject, &idle, arguments.most, arguments.together.max(1))?;
    let cycles = cycle(&subject, &quick, arguments.cycles)?;

    let mut rows = Vec::new();
    for (name, filled) in [("one by one", &single), ("together", &grouped)] {
        rows.extend(filled.rows(name));
    }
    rows.extend(cycles.rows());
    let text = format!(
        "Idle sandboxes in at most half of the machine's memory ({:.0} MiB), at most {}; {} together in the second part.\n\n{}",
        half_of_memory_kib()? as f64 / 1024.0,
        arguments.most,
        arguments.together,
        table(["what", "value"], &rows)
    );
    let file = subject.work().join("density.md");
    std::fs::write(&file, &text).map_err(|e| TaskError::io(&file, e))?;
    println!("{text}");
    draw_all(&pictures, &single, &grouped, &cycles)
}

fn draw_all(dir: &Path, single: &Filled, grouped: &Filled, cycles: &Cycles) -> Result<(), TaskError> {
    draw(
        &dir.join("density-memory.svg"),
        Caption {
            title: "Memory of idle sandboxes",
            x: "sandboxes",
            y: "PSS of all processes, MiB",
        },
        &[single.memory("one by one"), grouped.memory("together")],
    )?;
    draw(
        &dir.join("density-start.svg"),
        Caption {
            title: "Time of a start beside idle sandboxes",
            x: "sandboxes",
            y: "s per sandbox",
        },
        &[single.starts("one by one"), grouped.starts("together")],
    )?;
    draw(
        &dir.join("density-cycles.svg"),
        Caption {
            title: "What the host holds over starts and stops",
            x: "starts and stops",
            y: "change since the first, number or MiB",
        },
        &cycles.curves(),
    )
}

/// What filling the machine showed.
struct Filled {
    /// Sandboxes there were, seconds the last start took for each of its sandboxes.
    starts: Vec<(usize, f64)>,
    /// Sandboxes there were, PSS of all their processes in KiB.
    weights: Vec<(usize, u64)>,
    series: Series,
}

impl Filled {
    fn memory(&self, name: &'static str) -> Curve {
        Curve {
            name,
            points: self
                .weights
                .iter()
                .map(|(count, kib)| (*count as f64, *kib as f64 / 1024.0))
                .collect(),
        }
    }

    fn starts(&self, name: &'static str) -> Curve {
        Curve {
            name,
            points: self
                .starts
                .iter()
                .map(|(count, seconds)| (*count as f64, *seconds))
                .collect(),
        }
    }

    fn rows(&self, name: &str) -> Vec<(String, String)> {
        let mut rows = vec![(format!("start beside the others, {name}"), self.series.cell())];
        if let Some((count, kib)) = self.weights.last() {
            rows.push((format!("sandboxes, {name}"), count.to_string()));
            rows.push((
                format!("memory of each (PSS of all processes), {name}"),
                format!("{:.1} MiB", *kib as f64 / 1024.0 / *count as f64),
            ));
        }
        rows
    }
}

fn fill(subject: &Subject<'_>, idle: &Path, most: usize, at_once: usize) -> Result<Filled, TaskError> {
    let limit = half_of_memory_kib()?;
    let mut filled = Filled {
        starts: Vec::new(),
        weights: Vec::new(),
        series: Series::default(),
    };
    let (mut ids, mut markers): (Vec<String>, Vec<String>) = Default::default();
    let mut result = Ok(());
    while ids.len() + at_once <= most {
        let next: Vec<String> = (0..at_once)
            .map(|n| format!("density-{at_once}-{}", ids.len() + n))
            .collect();
        let began = Instant::now();
        let started = std::thread::scope(|scope| {
            let starts: Vec<_> = next
                .iter()
                .map(|id| scope.spawn(|| subject.run_detached(idle, id)))
                .collect();
            starts
                .into_iter()
                .map(|start| start.join().unwrap_or(Err(TaskError::Tests(1))))
                .collect::<Result<Vec<()>, TaskError>>()
        });
        let each = began.elapsed() / u32::try_from(at_once).unwrap_or(u32::MAX);
        ids.extend(next);
        if let Err(error) = started {
            result = Err(error);
            break;
        }
        filled.series.add(each);
        filled.starts.push((ids.len(), each.as_secs_f64()));
        let last = ids.len() + at_once > most;
        let every = (most / FILL_POINTS).clamp(1, WEIGH_EVERY).max(at_once);
        if last || ids.len() == at_once || ids.len().is_multiple_of(every) {
            let fresh = ids[markers.len()..].iter().map(|id| subject.marker(id));
            match fresh.collect::<Result<Vec<_>, _>>() {
                Ok(fresh) => markers.extend(fresh),
                Err(error) => {
                    result = Err(error);
                    break;
                }
            }
            let kib = subject.pss_kib(&markers);
            eprintln!("{} sandboxes: {} MiB", ids.len(), kib / 1024);
            filled.weights.push((ids.len(), kib));
            if kib > limit {
                break;
            }
        }
    }
    for id in &ids {
        subject.delete(id)?;
    }
    result.map(|()| filled)
}

/// What the host holds that a sandbox could leave behind.
#[derive(Debug, Clone, Copy)]
struct Held {
    processes: usize,
    mounts: usize,
    files: usize,
    open_files: u64,
    /// Shmem of meminfo, in KiB: memory of memfds and tmpfs.
    shared_kib: u64,
}

impl Held {
    fn now() -> Result<Self, TaskError> {
        let read = |path: &str| std::fs::read_to_string(path).map_err(|e| TaskError::io(Path::new(path), e));
        let count = |dir: &str| std::fs::read_dir(dir).map_or(0, Iterator::count);
        let open_files = read("/proc/sys/fs/file-nr")?
            .split_whitespace()
            .next()
            .and_then(|number| number.parse().ok())
            .unwrap_or(0);
        Ok(Self {
            processes: std::fs::read_dir("/proc")
                .map_err(|e| TaskError::io(Path::new("/proc"), e))?
                .flatten()
                .filter(|entry| entry.file_name().to_string_lossy().parse::<u32>().is_ok())
                // The kernel's own have none, and come and go as it likes.
                .filter(|entry| {
                    std::fs::read(entry.path().join("cmdline")).is_ok_and(|line| !line.is_empty())
                })
                .count(),
            mounts: read("/proc/self/mountinfo")?.lines().count(),
            files: count("/run/bulkhead") + count("/run/bulkhead/s") + count("/dev/shm"),
            open_files,
            shared_kib: meminfo_kib("Shmem:")?,
        })
    }
}

struct Cycles {
    count: usize,
    series: Series,
    held: Vec<(usize, Held)>,
}

impl Cycles {
    fn curves(&self) -> Vec<Curve> {
        let curve = |name, pick: fn(&Held) -> f64| {
            let first = self.held.first().map_or(0.0, |(_, held)| pick(held));
            Curve {
                name,
                points: self
                    .held
                    .iter()
                    .map(|(cycle, held)| (*cycle as f64, pick(held) - first))
                    .collect(),
            }
        };
        vec![
            curve("processes", |held| held.processes as f64),
            curve("mounts", |held| held.mounts as f64),
            curve("files", |held| held.files as f64),
            curve("open files", |held| held.open_files as f64),
            curve("shared memory, MiB", |held| held.shared_kib as f64 / 1024.0),
        ]
    }

    fn rows(&self) -> Vec<(String, String)> {
        let mut rows = vec![(format!("`run` true, each of {}", self.count), self.series.cell())];
        if let (Some((_, first)), Some((_, last))) = (self.held.first(), self.held.last()) {
            rows.push((
                format!(
                    "held by the host before and after {} starts and stops",
                    self.count
                ),
                format!(
                    "processes {}/{}, mounts {}/{}, files {}/{}, open files {}/{}, shared memory {}/{} KiB",
                    first.processes,
                    last.processes,
                    first.mounts,
                    last.mounts,
                    first.files,
                    last.files,
                    first.open_files,
                    last.open_files,
                    first.shared_kib,
                    last.shared_kib
                ),
            ));
        }
        rows
    }
}

fn cycle(subject: &Subject<'_>, quick: &Path, count: usize) -> Result<Cycles, TaskError> {
    // The first goes before the count: what comes once does not come again.
    subject.run(quick, "cycle-0")?;
    let mut cycles = Cycles {
        count,
        series: Series::default(),
        held: vec![(0, Held::now()?)],
    };
    let step = (count / CYCLE_POINTS).max(1);
    for cycle in 1..=count {
        let began = Instant::now();
        subject.run(quick, &format!("cycle-{cycle}"))?;
        cycles.series.add(began.elapsed());
        if cycle.is_multiple_of(step) {
            eprintln!("{cycle} of {count} starts and stops");
            cycles.held.push((cycle, Held::now()?));
        }
    }
    Ok(cycles)
}

fn half_of_memory_kib() -> Result<u64, TaskError> {
    Ok(meminfo_kib("MemTotal:")? / 2)
}

/// A figure of /proc/meminfo, proc(5).
fn meminfo_kib(name: &str) -> Result<u64, TaskError> {
    let path = Path::new("/proc/meminfo");
    let text = std::fs::read_to_string(path).map_err(|e| TaskError::io(path, e))?;
    Ok(text
        .lines()
        .find_map(|line| line.strip_prefix(name))
        .and_then(|rest| rest.split_whitespace().next())
        .and_then(|number| number.parse().ok())
        .unwrap_or(0))
}
