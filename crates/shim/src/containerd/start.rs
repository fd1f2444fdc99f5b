//! `start`: brings up the supervisor of a new sandbox, or finds that of the pod a container belongs to.
//!
//! ```text
//!  config.json ─► plan ─┬─ makes a sandbox ─► launch (its VM begins to boot) ─► its address
//!              │        └─ joins one ───────────────────────────────────────► that one's address
//!              └─ there is none: a supervisor that waits for its sandbox to be ordered ─► its address
//! ```
//! The address goes to standard output, and into the file `address` of the bundle, where a restarted containerd looks.
//!
//! Owns: that order. Never: a container (its create comes over the socket).

use super::Settings;
use super::invocation::Invocation;
use super::options;
use crate::{host_facts, launch};
use bulkhead_config::{Config, PlanKind, Plans, Source};
use bulkhead_host::clock::{boottime_ns, process_began_ns};
use bulkhead_model::timeline::{Lane, Span, Told};
use bulkhead_model::{ContainerId, Failure, FailureKind, SandboxId};
use bulkhead_sandbox::SandboxPaths;
use std::os::unix::net::UnixStream;
use std::path::Path;

/// Version of the protocol from which on the answer is a JSON document.
const JSON_SINCE: u32 = 3;

pub(super) fn run(invocation: &Invocation) -> Result<Vec<u8>, Failure> {
    let bundle = std::env::current_dir()
        .map_err(|e| Failure::new(FailureKind::InvalidArgument, format!("the bundle directory: {e}")))?;
    let id = ContainerId::new(invocation.id.as_str())
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let stdin = options::read_stdin()
        .map_err(|e| Failure::new(FailureKind::Internal, format!("reading runtime options: {e}")))?;
    let options = options::parse(&stdin)?;
    let mut settings = Settings {
        namespace: invocation.namespace.clone(),
        events_address: std::env::var("TTRPC_ADDRESS").unwrap_or_default(),
        bundle: bundle.clone(),
        config: options
            .config
            .or_else(|| std::env::var_os("BULKHEAD_CONFIG").map(Into::into)),
        systemd_cgroup: options.systemd_cgroup,
        pod: false,
        ordered: false,
    };
    let layout = Settings::layout(&invocation.namespace);
    if !bundle.join("config.json").exists() {
        // containerd's Sandbox service: what the sandbox is to be comes with its create.
        settings.pod = true;
        settings.ordered = true;
        let sandbox = SandboxId::from(&id);
        launch::awaiting(&layout, &sandbox, &settings)?;
        return found(&bundle, &layout.sandbox(&sandbox));
    }
    let paths = match plan(&bundle, &id, settings.config.as_deref())?.kind {
        PlanKind::Container { sandbox, .. } => {
            let paths = layout.sandbox(&sandbox);
            UnixStream::connect(paths.task_socket()).map_err(|e| {
                Failure::new(
                    FailureKind::NotFound,
                    format!("sandbox {sandbox} of container {id} has no shim: {e}: create the sandbox first"),
                )
            })?;
            paths
        }
        PlanKind::Sandbox { mut sandbox, .. } => {
            settings.pod = sandbox.pod;
            sandbox.kept = sandbox.pod;
            sandbox.systemd_cgroup = settings.systemd_cgroup;
            sandbox.debug |= invocation.debug;
            let mut client = launch::shim(&layout, &sandbox, &settings)?;
            // A pod's own container is no operation of its sandbox.
            if !settings.pod {
                client.tell(starting(&id), false);
            }
            layout.sandbox(&sandbox.id)
        }
    };
    found(&bundle, &paths)
}

/// Tells containerd where the sandbox's services are.
fn found(bundle: &Path, paths: &SandboxPaths) -> Result<Vec<u8>, Failure> {
    let address = address(paths);
    std::fs::write(bundle.join("address"), &address).map_err(|e| {
        Failure::new(
            FailureKind::Internal,
            format!("writing {}/address: {e}", bundle.display()),
        )
    })?;
    Ok(answer(&address))
}

/// What this process measured, for the timeline of the create that follows.
fn starting(id: &ContainerId) -> Told {
    let now = boottime_ns();
    let began = process_began_ns().unwrap_or(now);
    Told {
        operation: "create".to_owned(),
        container: id.clone(),
        exec: None,
        spans: vec![Span::new(Lane::Cli, "start the shim", began, now)],
    }
}

fn address(paths: &SandboxPaths) -> String {
    format!("unix://{}", paths.task_socket().display())
}

/// As the newest version that containerd says it understands wants it.
fn answer(address: &str) -> Vec<u8> {
    let version = std::env::var("MAX_SHIM_VERSION")
        .ok()
        .and_then(|text| text.parse::<u32>().ok());
    match version {
        Some(version) if version >= JSON_SINCE => {
            serde_json::json!({ "version": JSON_SINCE, "address": address, "protocol": "ttrpc" })
                .to_string()
                .into_bytes()
        }
        _ => address.as_bytes().to_owned(),
    }
}

/// The plans for the container `id` in `bundle`.
///
/// # Errors
/// What is wrong with configuration, config.json or annotations.
pub(super) fn plan(bundle: &Path, id: &ContainerId, config: Option<&Path>) -> Result<Plans, Failure> {
    let config = Config::load(&Source::named(config))
        .map_err(|e| Failure::from_chain(FailureKind::InvalidArgument, &e))?;
    let path = bundle.join("config.json");
    let text = std::fs::read(&path).map_err(|e| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("reading {}: {e}", path.display()),
        )
    })?;
    bulkhead_config::plan(bundle, &text, id, &config, &host_facts::read())
        .map_err(|e| Failure::from_chain(e.kind(), &e))
}
