//! What containers cost under containerd, beside runc's shim, in one run. Called by `cargo xtask bench containerd`.
//!
//! The two take turns, and medians of one run are compared. Prints a Markdown table.
#![allow(clippy::unwrap_used, clippy::expect_used)]

use bulkhead_containerd::{Daemon, Engine, Pod};
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Written by the exec whose output is timed.
const OUTPUT_BYTES: u64 = 16 << 20;

/// Pods started at the same time.
const AT_ONCE: usize = 10;

/// What is measured, in the order of the table.
const ROWS: [&str; 7] = [
    "`ctr run --rm` true",
    "create to started",
    "`ctr task exec` true",
    "16 MiB from an exec",
    "kill and delete",
    "pod: sandbox",
    "pod: further container",
];

/// Seconds by row.
type Samples = [Vec<f64>; ROWS.len()];

fn main() -> ExitCode {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_usize);
    let engines = [Engine::Runc, Engine::Bulkhead];
    let daemons = engines.map(Daemon::start_for_pods);
    let mut samples: [Samples; 2] = Default::default();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (daemon, samples) in daemons.iter().zip(&mut samples) {
            single(daemon, samples);
            pod(daemon, &format!("pod{round}"), samples);
        }
    }
    println!("| what | runc | bulkhead | ratio |\n| --- | --- | --- | --- |");
    for (row, name) in ROWS.iter().enumerate() {
        let [runc, ours] = [0, 1].map(|engine: usize| median(&samples[engine][row]));
        println!("| {name} | {runc:.3} s | {ours:.3} s | {:.1} |", ours / runc);
    }
    for (name, daemon) in [("runc", &daemons[0]), ("bulkhead", &daemons[1])] {
        println!(
            "| {AT_ONCE} pods at once, {name} | {:.1} s | | |",
            at_once(daemon)
        );
    }
    println!(
        "| memory of one idle container (PSS), bulkhead | {} | | |",
        memory(&daemons[1])
    );
    ExitCode::SUCCESS
}

fn timed(samples: &mut Vec<f64>, work: impl FnOnce()) {
    let start = Instant::now();
    work();
    samples.push(start.elapsed().as_secs_f64());
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn single(daemon: &Daemon, samples: &mut Samples) {
    timed(&mut samples[0], || {
        let _ = daemon.run(&["--rm"], &daemon.id(), &["true"]).run().ok();
    });
    let mut id = String::new();
    timed(&mut samples[1], || id = daemon.sleeper());
    // The first pays for what the others find done.
    let _ = daemon.exec(&id, "warm", &["true"]).run().ok();
    timed(&mut samples[2], || {
        let _ = daemon.exec(&id, "true", &["true"]).run().ok();
    });
    let count = (OUTPUT_BYTES >> 16).to_string();
    let command = ["dd", "if=/dev/zero", "bs=65536", &format!("count={count}")];
    timed(&mut samples[3], || {
        let outcome = daemon.exec(&id, "out", &command).run().ok();
        assert_eq!(outcome.stdout.len() as u64, OUTPUT_BYTES);
    });
    timed(&mut samples[4], || daemon.remove(&id));
}

fn pod(daemon: &Daemon, name: &str, samples: &mut Samples) {
    let cri = daemon.cri();
    let mut made: Option<Pod> = None;
    timed(&mut samples[5], || made = Some(cri.run_pod(name).unwrap()));
    let pod = made.unwrap();
    let _ = cri.run(&pod, "first", &["sleep", "1000"]).unwrap();
    timed(&mut samples[6], || {
        let _ = cri.run(&pod, "second", &["sleep", "1000"]).unwrap();
    });
    cri.stop_pod(&pod).unwrap();
    cri.remove_pod(&pod).unwrap();
}

fn at_once(daemon: &Daemon) -> f64 {
    let start = Instant::now();
    let ids: Vec<String> = (0..AT_ONCE).map(|_| daemon.id()).collect();
    let running: Vec<_> = ids
        .iter()
        .map(|id| {
            daemon
                .run(&["-d"], id, &["sleep", "1000"])
                .within(Duration::from_secs(600))
                .start()
        })
        .collect();
    for one in running {
        let _ = one.wait().ok();
    }
    let elapsed = start.elapsed().as_secs_f64();
    for id in &ids {
        daemon.remove(id);
    }
    elapsed
}

/// Proportional set size by role.
fn memory(daemon: &Daemon) -> String {
    let id = daemon.sleeper();
    let namespace = daemon.place.token().to_owned();
    let cells: Vec<String> = ["supervisor", "vmm", "fsd", "stub"]
        .iter()
        .map(|role| {
            let pids = daemon.place.marked(&namespace, &id, role);
            let kib: u64 = pids.iter().filter_map(|(pid, _)| pss_kib(*pid)).sum();
            format!("{role} {:.1} MB", kib as f64 / 1024.0)
        })
        .collect();
    daemon.remove(&id);
    cells.join(", ")
}

/// proc_pid_smaps_rollup(5).
fn pss_kib(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}
