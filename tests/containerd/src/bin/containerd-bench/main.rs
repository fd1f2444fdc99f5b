//! What containers cost under containerd, beside runc's shim, in one run. Called by `cargo xtask bench containerd`.
//!
//! The two take turns, and medians of one run are compared. Prints Markdown tables.
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod network;
mod share;

use bulkhead_containerd::{Daemon, Engine, Pod};
use network::Network;
use std::process::ExitCode;
use std::time::{Duration, Instant};

/// Written by the exec whose output is timed.
const OUTPUT_MIB: u64 = 16;

/// Written by another one: the difference of both tells the rate.
const MORE_OUTPUT_MIB: u64 = 144;

/// Pods started at the same time.
const AT_ONCE: usize = 10;

/// What is timed, in the order of the table.
const ROWS: [&str; 7] = [
    "`ctr run --rm` true",
    "create to started",
    "`ctr task exec` true",
    "16 MiB from an exec",
    "kill and delete",
    "pod: sandbox",
    "pod: further container",
];

/// Whether the timeline tells the guest's share of a row.
const SHARED: [bool; ROWS.len()] = [true, true, true, false, false, false, true];

/// One engine's figures.
#[derive(Default)]
struct Figures {
    /// Seconds by row.
    took: [Vec<f64>; ROWS.len()],
    /// Seconds of it that went by waiting for the guest.
    guest: [Vec<f64>; ROWS.len()],
    /// MiB/s of an exec's output, once it flows.
    output: Vec<f64>,
    network: Vec<Network>,
}

fn main() -> ExitCode {
    let rounds = std::env::args()
        .nth(1)
        .and_then(|text| text.parse().ok())
        .unwrap_or(5_usize);
    let engines = [Engine::Runc, Engine::Bulkhead];
    let daemons = engines.map(Daemon::start_for_pods);
    let mut figures: [Figures; 2] = Default::default();
    for round in 1..=rounds {
        eprintln!("round {round} of {rounds}");
        for (daemon, figures) in daemons.iter().zip(&mut figures) {
            single(daemon, figures);
            pod(daemon, &format!("pod{round}"), figures);
        }
    }
    times(&figures);
    rates(&figures, &daemons);
    ExitCode::SUCCESS
}

/// The table of what takes time.
fn times([runc, ours]: &[Figures; 2]) {
    println!(
        "| what | runc | bulkhead | ratio | in the guest | outside it |\n| --- | --- | --- | --- | --- | --- |"
    );
    for (row, name) in ROWS.iter().enumerate() {
        let (theirs, own, guest) = (
            median(&runc.took[row]),
            median(&ours.took[row]),
            median(&ours.guest[row]),
        );
        let share = if SHARED[row] {
            format!("{guest:.3} s | {:.3} s", own - guest)
        } else {
            "– | –".to_owned()
        };
        println!(
            "| {name} | {theirs:.3} s | {own:.3} s | {:.1} | {share} |",
            own / theirs
        );
    }
}

/// The table of the other figures.
fn rates([runc, ours]: &[Figures; 2], daemons: &[Daemon; 2]) {
    println!("\n| what | runc | bulkhead | ratio |\n| --- | --- | --- | --- |");
    let line = |name: &str, unit: &str, theirs: f64, own: f64| {
        println!(
            "| {name} | {theirs:.1} {unit} | {own:.1} {unit} | {:.2} |",
            own / theirs
        );
    };
    line(
        "output of an exec",
        "MiB/s",
        median(&runc.output),
        median(&ours.output),
    );
    let network = |figures: &Figures, of: fn(&Network) -> f64| {
        median(&figures.network.iter().map(of).collect::<Vec<_>>())
    };
    let both = |of: fn(&Network) -> f64| (network(runc, of), network(ours, of));
    let (theirs, own) = both(|one| one.in_mib_s);
    line("TCP into the pod", "MiB/s", theirs, own);
    let (theirs, own) = both(|one| one.out_mib_s);
    line("TCP out of the pod", "MiB/s", theirs, own);
    let (theirs, own) = both(|one| one.ping_ms);
    println!("| ping | {theirs:.3} ms | {own:.3} ms | {:.0} |", own / theirs);
    let [theirs, own] = [0, 1].map(|engine: usize| at_once(&daemons[engine]));
    line(&format!("{AT_ONCE} containers at once"), "s", theirs, own);
    println!("\nMemory of one idle container (PSS): {}.", memory(&daemons[1]));
}

fn timed(samples: &mut Vec<f64>, work: impl FnOnce()) -> f64 {
    let start = Instant::now();
    work();
    let took = start.elapsed().as_secs_f64();
    samples.push(took);
    took
}

fn median(samples: &[f64]) -> f64 {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    sorted.get(sorted.len() / 2).copied().unwrap_or(f64::NAN)
}

fn single(daemon: &Daemon, figures: &mut Figures) {
    let namespace = daemon.place.token();
    let mut id = daemon.id();
    timed(&mut figures.took[0], || {
        let _ = daemon.run(&["--rm"], &id, &["true"]).run().ok();
    });
    figures.guest[0].extend(share::in_guest(namespace, &id, None, false));
    timed(&mut figures.took[1], || id = daemon.sleeper());
    figures.guest[1].extend(share::in_guest(namespace, &id, None, false));
    // The first pays for what the others find done.
    let _ = daemon.exec(&id, "warm", &["true"]).run().ok();
    timed(&mut figures.took[2], || {
        let _ = daemon.exec(&id, "true", &["true"]).run().ok();
    });
    figures.guest[2].extend(share::in_guest(namespace, &id, Some(&id), true));
    let output = |name: &str, mib: u64| {
        let count = format!("count={}", mib << 4);
        let outcome = daemon
            .exec(&id, name, &["dd", "if=/dev/zero", "bs=65536", &count])
            .run()
            .ok();
        assert_eq!(outcome.stdout.len() as u64, mib << 20);
    };
    let some = timed(&mut figures.took[3], || output("some", OUTPUT_MIB));
    let more = timed(&mut Vec::new(), || output("more", MORE_OUTPUT_MIB));
    figures
        .output
        .push((MORE_OUTPUT_MIB - OUTPUT_MIB) as f64 / (more - some).max(0.001));
    timed(&mut figures.took[4], || daemon.remove(&id));
}

fn pod(daemon: &Daemon, name: &str, figures: &mut Figures) {
    let cri = daemon.cri();
    let mut made: Option<Pod> = None;
    timed(&mut figures.took[5], || made = Some(cri.run_pod(name).unwrap()));
    let pod = made.unwrap();
    let first = cri.run(&pod, "first", &["sleep", "1000"]).unwrap();
    // Its program has come up when an exec in it has: on one CPU the next container would wait for that.
    let _ = cri.exec(&first, &["true"]).unwrap();
    let mut id = String::new();
    timed(&mut figures.took[6], || {
        id = cri.run(&pod, "second", &["sleep", "1000"]).unwrap();
    });
    figures.guest[6].extend(share::in_guest("k8s.io", &pod.id, Some(&id), false));
    figures.network.push(network::measure(daemon, &cri, &pod));
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
    let mut all = 0.0;
    let cells: Vec<String> = ["supervisor", "vmm", "fsd", "stub"]
        .iter()
        .map(|role| {
            let pids = daemon.place.marked(&namespace, &id, role);
            let kib: u64 = pids.iter().filter_map(|(pid, _)| pss_kib(*pid)).sum();
            let mib = kib as f64 / 1024.0;
            all += mib;
            format!("{role} {mib:.1} MiB")
        })
        .collect();
    daemon.remove(&id);
    format!("{}, all {all:.1} MiB", cells.join(", "))
}

/// proc_pid_smaps_rollup(5).
fn pss_kib(pid: i32) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}
