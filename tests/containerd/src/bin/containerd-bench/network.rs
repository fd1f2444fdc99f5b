//! The pod's network: how much goes in and out in a second, and how long an answer takes.

use bulkhead_containerd::{Cri, Daemon, GATEWAY, Pod};
use std::time::Instant;

/// Size of the file that is fetched.
const FILE_MIB: u64 = 48;

/// How often it is fetched, one time after the other.
const FETCHES: u64 = 4;

/// Answers waited for, one after the other.
const PINGS: usize = 50;

/// Where the world serves the file.
const PORT: u16 = 8081;

/// What was measured.
pub(crate) struct Network {
    pub(crate) in_mib_s: f64,
    pub(crate) out_mib_s: f64,
    pub(crate) ping_ms: f64,
}

/// Measures a pod: files are fetched over HTTP from the world outside it, and by the world from it.
pub(crate) fn measure(daemon: &Daemon, cri: &Cri<'_>, pod: &Pod) -> Network {
    let file = |dir: &str| format!("dd if=/dev/zero of={dir}/bulk bs=1048576 count={FILE_MIB} 2>/dev/null");
    let serve = format!("{}; httpd -f -p 8080 -h /dev/shm", file("/dev/shm"));
    let server = cri.run(pod, "server", &["sh", "-c", &serve]).unwrap();
    let address = cri.address(pod).unwrap();
    let world = |script: &str| daemon.world.run(&daemon.place, script).ok().text();

    let dir = daemon.place.dir().join("served");
    std::fs::create_dir_all(&dir).unwrap();
    let dir = dir.display().to_string();
    // It goes with the namespace's last user, which is killed below.
    let pid = world(&format!(
        "{}; busybox httpd -f -p {GATEWAY}:{PORT} -h {dir} >/dev/null 2>&1 & echo $!",
        file(&dir)
    ));
    let fetch = |wget: &str, url: &str| {
        format!("for i in $(seq {FETCHES}); do {wget} -q -O /dev/null http://{url}/bulk || exit 1; done")
    };
    let ready =
        |wget: &str, url: &str| format!("until {wget} -q -O /dev/null http://{url}/bulk; do sleep 0.1; done");
    let inside = |script: &str| {
        let start = Instant::now();
        let done = cri.exec(&server, &["sh", "-c", script]).unwrap();
        assert_eq!(
            done.exit_code,
            0,
            "{script}: {}",
            String::from_utf8_lossy(&done.stderr)
        );
        start.elapsed().as_secs_f64()
    };
    let outer = format!("{GATEWAY}:{PORT}");
    inside(&ready("wget", &outer));
    let nothing = inside("true");
    let in_s = inside(&fetch("wget", &outer)) - nothing;
    let inner = format!("{address}:8080");
    let _ = world(&ready("busybox wget", &inner));
    let start = Instant::now();
    let _ = world(&fetch("busybox wget", &inner));
    let out_s = start.elapsed().as_secs_f64();
    let ping_ms = median_ms(&world(&format!("busybox ping -c {PINGS} -A {address}")));
    let _ = world(&format!("kill {pid}"));
    cri.remove(&server).unwrap();
    let mib = (FILE_MIB * FETCHES) as f64;
    Network {
        in_mib_s: mib / in_s,
        out_mib_s: mib / out_s,
        ping_ms,
    }
}

/// Of the round-trip times that ping(8) prints.
fn median_ms(text: &str) -> f64 {
    let times = text
        .split_whitespace()
        .filter_map(|word| word.strip_prefix("time="));
    let mut times: Vec<f64> = times.filter_map(|time| time.parse().ok()).collect();
    times.sort_by(f64::total_cmp);
    times.get(times.len() / 2).copied().unwrap_or(f64::NAN)
}
