//! The binary under test in a bench, and where it keeps state.
//!
//! Owns: its global options and the verbs a bench calls. Never: what is measured. Called by the benches.

use crate::error::TaskError;
use crate::tool::Tool;
use crate::workspace::Workspace;
use serde_json::Value;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

/// How long a verb may take, also beside many sandboxes.
const VERB_DEADLINE: Duration = Duration::from_secs(300);

/// The runtime being measured.
#[derive(Debug)]
pub(super) struct Subject<'a> {
    workspace: &'a Workspace,
    bulkhead: PathBuf,
    work: PathBuf,
}

impl<'a> Subject<'a> {
    /// `bulkhead` with state below the target directory.
    pub(super) fn new(workspace: &'a Workspace, bulkhead: PathBuf) -> Self {
        Self {
            workspace,
            bulkhead,
            work: workspace.target().join("bench"),
        }
    }

    /// The host binary.
    pub(super) fn binary(&self) -> &Path {
        &self.bulkhead
    }

    /// Where bundles, state and results of the benches are.
    pub(super) fn work(&self) -> &Path {
        &self.work
    }

    /// The state root.
    pub(super) fn root(&self) -> PathBuf {
        self.work.join("state")
    }

    /// A verb with the global options before it.
    pub(super) fn call(&self, arguments: &[&str]) -> Tool {
        Tool::new(&self.bulkhead)
            .arg("--config")
            .arg(self.workspace.config())
            .arg("--root")
            .arg(self.root())
            .args(arguments)
            .deadline(VERB_DEADLINE)
    }

    /// The same for a sandbox that boots, whatever templates there are.
    pub(super) fn call_cold(&self, arguments: &[&str]) -> Result<Tool, TaskError> {
        let config = self.workspace.config();
        let text = std::fs::read_to_string(&config).map_err(|e| TaskError::io(&config, e))?;
        let cold = self.work.join("cold.toml");
        // The file ends with the table of the templates.
        std::fs::create_dir_all(&self.work)
            .and_then(|()| std::fs::write(&cold, format!("{text}template = \"off\"\n")))
            .map_err(|e| TaskError::io(&cold, e))?;
        Ok(Tool::new(&self.bulkhead)
            .arg("--config")
            .arg(cold)
            .arg("--root")
            .arg(self.root())
            .args(arguments)
            .deadline(VERB_DEADLINE))
    }

    /// The same for a sandbox that takes a VM that waits, if one does; one is to.
    pub(super) fn call_pool(&self, arguments: &[&str]) -> Result<Tool, TaskError> {
        let config = self.workspace.config();
        let text = std::fs::read_to_string(&config).map_err(|e| TaskError::io(&config, e))?;
        let pool = self.work.join("pool.toml");
        // The file ends with the table of the templates.
        std::fs::write(&pool, format!("{text}pool = 1\n")).map_err(|e| TaskError::io(&pool, e))?;
        Ok(Tool::new(&self.bulkhead)
            .arg("--config")
            .arg(pool)
            .arg("--root")
            .arg(self.root())
            .args(arguments)
            .deadline(VERB_DEADLINE))
    }

    /// Waits until a VM waits that is not `taken`; its process.
    pub(super) fn waiting(&self, taken: Option<i64>) -> Result<i64, TaskError> {
        let end = Instant::now() + VERB_DEADLINE;
        while Instant::now() < end {
            // Has it made, unless somebody does already.
            self.call_pool(&["template", "create"])?.output()?;
            let list = self
                .call_pool(&["template", "list", "--format", "json"])?
                .output()?;
            let list: Value = serde_json::from_str(&list).map_err(|e| TaskError::Metadata(e.to_string()))?;
            let all = list.as_array().into_iter().flatten();
            let pids = all.flat_map(|one| one["waiting"].as_array().into_iter().flatten());
            let other = |pid: &i64| Some(*pid) != taken;
            if let Some(pid) = pids.filter_map(|one| one["process"]["pid"].as_i64()).find(other) {
                return Ok(pid);
            }
        }
        Err(TaskError::Metadata("no VM waits".into()))
    }

    /// Runs `bundle` to its end.
    pub(super) fn run(&self, bundle: &Path, id: &str) -> Result<(), TaskError> {
        self.call(&["run", "--bundle"])
            .arg(bundle)
            .arg(id)
            .output()
            .map(drop)
    }

    /// Runs `bundle` in the background. Its output is not captured: a stub keeps it for as long as its container
    /// lives.
    pub(super) fn run_detached(&self, bundle: &Path, id: &str) -> Result<(), TaskError> {
        self.call(&["run", "--detach", "--bundle"])
            .arg(bundle)
            .arg(id)
            .run()
    }

    /// Ends a container, however it is.
    pub(super) fn delete(&self, id: &str) -> Result<(), TaskError> {
        self.call(&["delete", "--force", id]).output().map(drop)
    }

    /// What stands in the environment of every process of a sandbox.
    pub(super) fn marker(&self, id: &str) -> Result<String, TaskError> {
        let text = self.call(&["inspect", id]).output()?;
        let tree: Value = serde_json::from_str(&text).map_err(|e| TaskError::Metadata(e.to_string()))?;
        let sockets = tree["paths"]["sockets"].as_str().unwrap_or_default();
        match sockets.rsplit('/').next().filter(|marker| !marker.is_empty()) {
            Some(marker) => Ok(format!("{MARKER}{marker}/")),
            None => Err(TaskError::Metadata(format!("{id} has no socket directory"))),
        }
    }

    /// Proportional set size, in KiB, of all processes with one of these markers.
    pub(super) fn pss_kib(&self, markers: &[String]) -> u64 {
        let mut sum = 0;
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let Some(pid) = entry
                .file_name()
                .to_str()
                .and_then(|name| name.parse::<i64>().ok())
            else {
                continue;
            };
            let environment = std::fs::read(entry.path().join("environ")).unwrap_or_default();
            let mut words = environment.split(|byte| *byte == 0);
            if words.any(|word| markers.iter().any(|marker| word.starts_with(marker.as_bytes()))) {
                sum += pss_kib(pid).unwrap_or(0);
            }
        }
        sum
    }
}

/// In the environment of every process of a sandbox.
const MARKER: &str = "BULKHEAD_SANDBOX=";

/// What the memory of a VM takes, in KiB, mapped by somebody or not: the blocks of the VMM's largest file in memory.
pub(super) fn guest_memory_kib(pid: i64) -> Option<u64> {
    let files = std::fs::read_dir(format!("/proc/{pid}/fd")).ok()?.flatten();
    let in_memory = files.filter(|fd| {
        std::fs::read_link(fd.path()).is_ok_and(|to| to.to_string_lossy().starts_with("/memfd:"))
    });
    let largest = in_memory
        .filter_map(|fd| std::fs::metadata(fd.path()).ok())
        .max_by_key(MetadataExt::size)?;
    Some(largest.blocks() / 2)
}

/// Pss of smaps_rollup, proc_pid_smaps_rollup(5).
pub(super) fn pss_kib(pid: i64) -> Option<u64> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"))?;
    line.split_whitespace().next()?.parse().ok()
}

/// Of proc_pid_stat(5): hundredths of a second, whatever the kernel's tick is.
const TICKS_PER_SECOND: f64 = 100.0;

/// Processor time of a process so far, user and system.
pub(super) fn processor_seconds(pid: i64) -> f64 {
    let text = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    // The name may hold anything, also blanks and brackets; utime and stime are the 12th and 13th field behind it.
    let fields = text.rsplit_once(')').map_or("", |(_, rest)| rest);
    let ticks: f64 = fields
        .split_whitespace()
        .skip(11)
        .take(2)
        .filter_map(|field| field.parse::<f64>().ok())
        .sum();
    ticks / TICKS_PER_SECOND
}
