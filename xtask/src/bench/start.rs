//! `bench start`: a start from a template and a cold one against their floor and their rivals.

use super::bare::Bare;
use super::chart::{Bar, draw_bars};
use super::figures::{Series, table};
use super::floor;
use super::subject::{Subject, guest_memory_kib, pss_kib};
use crate::build::{self, Profile};
use crate::bundle;
use crate::error::TaskError;
use crate::setup;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::Value;
use std::path::Path;
use std::time::{Duration, Instant};

const RUN_DEADLINE: Duration = Duration::from_secs(180);

/// Measures and prints.
pub(super) fn run(
    workspace: &Workspace,
    rounds: usize,
    svg: Option<&Path>,
    profile: Profile,
) -> Result<(), TaskError> {
    setup::run()?;
    let made = build::all(workspace, profile)?;
    let subject = Subject::new(workspace, made.bulkhead.clone());
    let work = subject.work().to_owned();
    let quick = bundle::make(&work.join("quick"), &["true"])?;
    let idle = bundle::make(&work.join("idle"), &["sleep", "600"])?;

    // The bare kernel's command line is that of a VM that boots.
    let cold = subject.call_cold(&["run", "--detach", "--bundle"])?;
    cold.arg(&idle).arg("bench-cold").run()?;
    let tree = inspect(&subject, "bench-cold")?;
    let vmm = pid_of(&tree, "vmm").unwrap_or_default();
    let bare = Bare::like(vmm, &workspace.guest(), &work);
    let _ = subject.call(&["delete", "--force", "bench-cold"]).outcome()?;
    let bare = bare?;
    subject.call(&["template", "create"]).run()?;
    let (tree, memory) = look_inside(&subject, &idle)?;
    let _ = subject.call(&["delete", "--force", "bench-idle"]).outcome()?;

    let mut ours = Series::default();
    let mut warm = Series::default();
    let mut pool = Series::default();
    let mut stopped = Series::default();
    let mut stopped_guest = Series::default();
    let mut waits = subject.waiting(None)?;
    let mut bare_boot = Series::default();
    let mut least = Series::default();
    let mut runc = Series::default();
    let mut crun = Series::default();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        let id = format!("bench-{round}");
        let cold = subject.call_cold(&["run", "--bundle"])?;
        measure(cold.arg(&quick).arg(&id), &mut ours)?;
        let mine = subject.call(&["run", "--bundle"]).arg(&quick).arg(&id);
        measure(mine, &mut warm)?;
        let timeline = subject.call(&["timeline", "--format", "json", &id]).output()?;
        match serde_json::from_str(&timeline).ok().as_ref().and_then(floor::of) {
            Some(took) => least.add(took),
            None => {
                return Err(TaskError::Metadata(format!(
                    "the timeline of {id} lacks a step of the floor"
                )));
            }
        }
        let id = format!("bench-pool-{round}");
        let taker = subject.call_pool(&["run", "--bundle"])?;
        measure(taker.arg(&quick).arg(&id), &mut pool)?;
        // Another one waits: that one was taken. What follows is not measured beside its making.
        waits = subject.waiting(Some(waits))?;
        let (took, guest) = stop(&subject, &idle, &format!("bench-stop-{round}"))?;
        stopped.add(took);
        stopped_guest.add(guest);
        bare_boot.add(bare.boot()?);
        for (program, series) in [("runc", &mut runc), ("crun", &mut crun)] {
            let root = work.join(program);
            let rival = Tool::new(program)
                .arg("--root")
                .arg(&root)
                .args(["run", "--bundle"]);
            measure(rival.arg(&quick).arg(&id).deadline(RUN_DEADLINE), series)?;
        }
    }
    subject.call_pool(&["template", "drain"])?.output()?;
    let text = report(
        &made.agent,
        &subject,
        rounds,
        [
            &ours,
            &warm,
            &pool,
            &least,
            &bare_boot,
            &runc,
            &crun,
            &stopped,
            &stopped_guest,
        ],
        &tree,
        &memory,
    )?;
    let file = work.join("start.md");
    std::fs::write(&file, &text).map_err(|e| TaskError::io(&file, e))?;
    println!("{text}");
    let competitors = [
        ("bulkhead run true, template", &warm),
        ("bulkhead run true, pool", &pool),
        ("restore and one clone", &least),
        ("bulkhead run true, cold", &ours),
        ("bare kernel in QEMU", &bare_boot),
        ("runc run true", &runc),
        ("crun run true", &crun),
    ];
    svg.map_or(Ok(()), |path| compare(path, rounds, &competitors))
}

/// The picture: one bar for each that runs here.
fn compare(path: &Path, rounds: usize, competitors: &[(&'static str, &Series)]) -> Result<(), TaskError> {
    let bar = |(name, series): &(&'static str, &Series)| {
        let (least, most) = series.range()?;
        Some(Bar {
            name,
            value: series.median()?,
            least,
            most,
        })
    };
    let bars: Vec<Bar> = competitors.iter().filter_map(bar).collect();
    let title = format!("A start: medians of {rounds} and their range, in one run, in seconds");
    draw_bars(path, &title, &bars)
}

/// Kills and deletes a container that sleeps: how long the two took, and the guest's part of it.
fn stop(subject: &Subject<'_>, idle: &Path, id: &str) -> Result<(Duration, Duration), TaskError> {
    subject.run_detached(idle, id)?;
    let began = Instant::now();
    let killed = subject.call(&["kill", id, "KILL"]).output();
    // Forced: what was killed a moment ago may not have been told yet.
    subject.delete(id)?;
    let took = began.elapsed();
    killed?;
    let timeline = subject.call(&["timeline", "--format", "json", id]).output()?;
    let timeline: Value = serde_json::from_str(&timeline).map_err(|e| TaskError::Metadata(e.to_string()))?;
    Ok((took, guests_end(&timeline)))
}

/// What the guest did in a kill and a delete, by their timeline.
fn guests_end(timeline: &Value) -> Duration {
    let operations = timeline["operations"].as_array().into_iter().flatten();
    let ending = operations.filter(|one| ["kill", "delete"].iter().any(|name| one["name"] == *name));
    let spans = ending.flat_map(|one| one["spans"].as_array().into_iter().flatten());
    let took = |span: &Value| span["end_ns"].as_u64()?.checked_sub(span["begin_ns"].as_u64()?);
    let guest = spans.filter(|span| span["lane"] == "guest").filter_map(took);
    Duration::from_nanos(guest.sum())
}

/// One sample; a program that fails the first time is not asked again.
fn measure(tool: Tool, series: &mut Series) -> Result<(), TaskError> {
    if series.refused.is_some() {
        return Ok(());
    }
    let start = Instant::now();
    let outcome = tool.outcome_with_errors()?;
    if outcome.status.success() {
        series.add(start.elapsed());
    } else {
        let first = outcome.stderr.lines().next().unwrap_or("it failed").trim();
        series.refused = Some(first.to_owned());
    }
    Ok(())
}

/// Memory of a running sandbox, in KiB.
struct Memory {
    /// Proportional set size of each process.
    processes: Vec<(String, u64)>,
    /// The guest's memory, most of which is a copy that nobody has mapped.
    guest: Option<u64>,
}

/// A running sandbox: its tree and its memory.
fn look_inside(subject: &Subject<'_>, idle: &Path) -> Result<(Value, Memory), TaskError> {
    subject.run_detached(idle, "bench-idle")?;
    let tree = inspect(subject, "bench-idle")?;
    let mut processes = Vec::new();
    for process in tree["processes"].as_array().into_iter().flatten() {
        let role = process["role"].as_str().unwrap_or_default().to_owned();
        if let Some(kib) = process["pid"].as_i64().and_then(pss_kib) {
            processes.push((role, kib));
        }
    }
    let guest = pid_of(&tree, "vmm").and_then(guest_memory_kib);
    Ok((tree, Memory { processes, guest }))
}

fn inspect(subject: &Subject<'_>, id: &str) -> Result<Value, TaskError> {
    let text = subject.call(&["inspect", id]).output()?;
    serde_json::from_str(&text).map_err(|e| TaskError::Metadata(e.to_string()))
}

fn pid_of(tree: &Value, role: &str) -> Option<i64> {
    let all = tree["processes"].as_array()?;
    all.iter().find(|process| process["role"] == role)?["pid"].as_i64()
}

fn report(
    agent: &Path,
    subject: &Subject<'_>,
    rounds: usize,
    [
        ours,
        warm,
        pool,
        least,
        bare_boot,
        runc,
        crun,
        stopped,
        stopped_guest,
    ]: [&Series; 9],
    tree: &Value,
    memory: &Memory,
) -> Result<String, TaskError> {
    let mut rows = vec![
        ("`bulkhead run` true, from a template".to_owned(), warm.cell()),
        (
            "`bulkhead run` true, with a VM that waits".to_owned(),
            pool.cell(),
        ),
        (
            "its floor: the VM goes on until its agent answers, and one clone in the guest".to_owned(),
            least.cell(),
        ),
        ("`bulkhead run` true, cold".to_owned(), ours.cell()),
        (
            "bare kernel in QEMU, to its first process".to_owned(),
            bare_boot.cell(),
        ),
        ("`runc run` true".to_owned(), runc.cell()),
        ("`crun run` true".to_owned(), crun.cell()),
    ];
    if let (Some(warm), Some(least)) = (warm.median(), least.median()) {
        let value = format!("{:.2} × (aim: at most 1.25 × and 0.30 s)", warm / least);
        rows.push(("start from a template against its floor".to_owned(), value));
    }
    if let (Some(ours), Some(floor)) = (ours.median(), bare_boot.median()) {
        let aim = 1.15 * floor + 0.2;
        let value = format!("{:.2} × (aim: at most {aim:.2} s = 1.15 × + 0.2 s)", ours / floor);
        rows.push(("cold start against the bare kernel".to_owned(), value));
    }
    rows.push((
        "`kill` and `delete` of the last container (aim: 0.1 s beside the guest's own)".to_owned(),
        stopped.cell(),
    ));
    rows.push(("of that, the guest's own".to_owned(), stopped_guest.cell()));
    let counters = &tree["counters"];
    for (name, key) in [
        ("QMP round trips to the first container", "qmp"),
        ("agent calls to the first container", "agent"),
        ("processes spawned by the supervisor", "spawned"),
    ] {
        rows.push((name.to_owned(), counters[key].to_string()));
    }
    let mib = |kib: u64| format!("{:.1} MiB", kib as f64 / 1024.0);
    let mut sum = 0;
    for (role, kib) in &memory.processes {
        rows.push((format!("memory of an idle sandbox (PSS): {role}"), mib(*kib)));
        sum += kib;
    }
    rows.push(("memory of an idle sandbox (PSS): all".to_owned(), mib(sum)));
    if let Some(kib) = memory.guest {
        rows.push(("memory of its guest, mapped or not".to_owned(), mib(kib)));
    }
    for (name, path) in [
        ("host binary".to_owned(), subject.binary().to_owned()),
        ("agent".to_owned(), agent.to_owned()),
    ] {
        let bytes = std::fs::metadata(&path)
            .map_err(|e| TaskError::io(&path, e))?
            .len();
        rows.push((
            format!("size of the {name}"),
            format!("{:.1} MB", bytes as f64 / 1e6),
        ));
    }
    let title = format!("Medians of {rounds}, in one run, taking turns (range in brackets).\n\n");
    Ok(title + &table(["what", "value"], &rows))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_guests_part_of_an_end_is_its_own_spans() {
        let span = |lane: &str, begin: u64, end: u64| json!({"lane": lane, "name": "x", "begin_ns": begin, "end_ns": end});
        let timeline = json!({"operations": [
            {"name": "boot", "spans": [span("guest", 0, 1000)]},
            {"name": "kill", "spans": [span("guest", 10, 15)]},
            {"name": "delete", "spans": [span("guest", 20, 27), span("vmm", 27, 90), {"lane": "guest", "begin_ns": 5, "end_ns": null}]},
        ]});
        assert_eq!(guests_end(&timeline), Duration::from_nanos(12));
    }
}
