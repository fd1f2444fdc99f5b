//! `bulkhead-agent`: PID 1 of the guest.
//!
//! ```text
//!  kernel ─► boot (mounts, tmpfs root) ─► ports ─► fork server ─► reaper ─► hello ─► calls until the VM ends
//!              any failure: one line on the console, power off
//! ```
//!
//! Owns: the order of the start. Never: returns; a guest without its agent is of no use.

mod boot;
mod calls;
mod cgroup;
mod container;
mod devices;
mod elf;
mod engine;
mod events;
mod flush;
mod guest;
mod hotplug;
mod launch;
mod limits;
mod listing;
mod modules;
mod network;
mod oom;
mod passwd;
mod paths;
mod pause;
mod pci;
mod ports;
mod process;
mod program;
mod programs;
mod reaper;
mod reclaim;
mod rehearsal;
mod service;
mod spec;
mod stats;
mod stdio;
mod steps;
mod storage;
mod sys;
mod uevent;

use bulkhead_protocol::PROTOCOL_VERSION;
use bulkhead_protocol::api::agent::Hello;
use bulkhead_protocol::guest_end::Endpoint;
use nix::sys::reboot::{RebootMode, reboot};
use std::convert::Infallible;
use std::error::Error;
use std::fs;
use std::path::Path;
use std::sync::{Arc, Mutex};
use std::time::Duration;

/// A thread that has made a call is kept for the next one: starting one costs as much as many a call. Also what a template
/// was saved with, whose clones go on where its clock stood.
const IDLE: Duration = Duration::from_secs(600);

/// Optional abilities, by name.
const CAPABILITIES: [&str; 7] = [
    "exec", "pause", "update", "hotplug", "events", "storage", "network",
];

/// Says why on the console and ends the VM.
pub(crate) fn power_off(reason: &str) -> ! {
    eprintln!("bulkhead-agent: {reason}");
    nix::unistd::sync();
    let _ = reboot(RebootMode::RB_POWER_OFF);
    // Not allowed to: then the end of PID 1 is a kernel panic, which ends the VM too.
    std::process::exit(1);
}

fn main() {
    if std::process::id() != 1 {
        eprintln!(
            "bulkhead-agent: expected to be process 1 of a virtual machine, not {}",
            std::process::id()
        );
        std::process::exit(1);
    }
    let error = match run() {
        Ok(never) => match never {},
        Err(error) => error,
    };
    power_off(&bulkhead_model::failure::chain(error.as_ref()));
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    sys::heap::share();
    let init_ns = steps::boottime_ns();
    boot::prepare()?;
    // One thread until here: the server must be forked before any other exists.
    let launcher = launch::Launcher::fork()?;
    let _ = fs::write("/proc/self/oom_score_adj", "-1000");
    let control = ports::open(ports::CONTROL)?;
    let data = ports::open(ports::DATA)?;
    let reaper = reaper::Reaper::start()?;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(64)
        .thread_keep_alive(IDLE)
        .thread_stack_size(512 << 10)
        .build()?;
    runtime.block_on(async move {
        let endpoint = Endpoint::new(control, data, hello(init_ns)?)?;
        let modules = Arc::new(modules::Modules::of(Path::new(boot::MODULES)));
        let events = Arc::new(events::Events::default());
        let guest = guest::Guest::new(guest::Services {
            engine: Box::new(engine::Forks::new(launcher)),
            endpoint: endpoint.clone(),
            reaper,
            storages: storage::Storages::new(modules.clone()),
            modules,
            oom: oom::OomWatch::start(events.clone())?,
            events,
            programs: programs::Programs::default(),
            spare: Mutex::default(),
            port_major: ports::major(),
        });
        let service = Arc::new(service::Service::new(Arc::new(guest)));
        endpoint.serve(service).await?;
        // The port thread serves from here on, whatever hosts come and go.
        std::future::pending::<Result<Infallible, Box<dyn Error>>>().await
    })
}

fn hello(init_ns: u64) -> Result<Hello, Box<dyn Error>> {
    let release = fs::read_to_string("/proc/sys/kernel/osrelease")?;
    let mut nonce = [0_u8; 16];
    sys::entropy::early(&mut nonce)?;
    Ok(Hello {
        protocol_version: PROTOCOL_VERSION,
        agent_version: env!("CARGO_PKG_VERSION").to_owned(),
        kernel_release: release.trim().to_owned(),
        capabilities: CAPABILITIES.map(String::from).to_vec(),
        ready_boottime_ns: steps::boottime_ns(),
        init_boottime_ns: init_ns,
        boot_nonce: nonce.iter().map(|byte| format!("{byte:02x}")).collect(),
        ..Hello::default()
    })
}
