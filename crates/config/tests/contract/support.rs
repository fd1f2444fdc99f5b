//! A host and a bundle that exist only here.

use bulkhead_config::{Annotations, Config, HostFacts, HostFiles, PlanError, PlanKind, Plans, plan_with};
use bulkhead_model::vm::Accelerator;
use bulkhead_model::{ContainerId, ContainerPlan, SandboxPlan};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};

/// Host files: the bundle's rootfs and what a test adds.
#[derive(Debug, Clone)]
pub(crate) struct Files {
    pub(crate) directories: BTreeSet<PathBuf>,
    pub(crate) regular: BTreeSet<PathBuf>,
    pub(crate) file_systems: BTreeMap<PathBuf, u64>,
}

impl Default for Files {
    fn default() -> Self {
        Self {
            directories: [PathBuf::from("/bundle/rootfs")].into(),
            regular: BTreeSet::new(),
            file_systems: BTreeMap::new(),
        }
    }
}

impl Files {
    pub(crate) fn with(paths: &[&str]) -> Self {
        Self {
            regular: paths.iter().map(PathBuf::from).collect(),
            ..Self::default()
        }
    }
}

impl HostFiles for Files {
    fn exists(&self, path: &Path) -> bool {
        self.directories.contains(path) || self.regular.contains(path)
    }
    fn is_directory(&self, path: &Path) -> bool {
        self.directories.contains(path)
    }
    fn file_system_bytes(&self, path: &Path) -> std::io::Result<u64> {
        self.file_systems
            .get(path)
            .copied()
            .ok_or_else(|| std::io::Error::from(std::io::ErrorKind::NotFound))
    }
}

pub(crate) fn host() -> HostFacts {
    HostFacts {
        cpus: 8,
        memory_mib: 16_384,
        free_hugepages_mib: 0,
        accelerator: Accelerator::Tcg,
        hypervisor: None,
        builtin_fs_daemon: true,
    }
}

/// The least config.json that is one.
pub(crate) fn spec() -> Value {
    json!({
        "ociVersion": "1.0.2",
        "process": { "args": ["true"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "rootfs" },
        "linux": {}
    })
}

/// The same with annotations.
pub(crate) fn annotated(annotations: &[(&str, &str)]) -> Value {
    let mut spec = spec();
    spec["annotations"] = annotations
        .iter()
        .map(|(k, v)| ((*k).to_owned(), Value::from(*v)))
        .collect::<serde_json::Map<_, _>>()
        .into();
    spec
}

pub(crate) fn config(toml: &str) -> Config {
    Config::parse(Path::new("test.toml"), toml).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// All of it, with a host and files of the test's choice.
pub(crate) fn plans_on(
    files: &Files,
    host: &HostFacts,
    config: &Config,
    spec: &Value,
) -> Result<Plans, PlanError> {
    let id = ContainerId::new("c1").unwrap();
    let text = serde_json::to_vec(spec).unwrap();
    plan_with(files, Path::new("/bundle"), &text, &id, config, host)
}

pub(crate) fn plans(config: &Config, spec: &Value) -> Result<Plans, PlanError> {
    plans_on(&Files::default(), &host(), config, spec)
}

/// A spec that makes a sandbox, planned with `toml`.
pub(crate) fn sandbox(toml: &str, spec: &Value) -> SandboxPlan {
    both(&config(toml), spec).0
}

pub(crate) fn container(spec: &Value) -> ContainerPlan {
    both(&Config::default(), spec).1
}

pub(crate) fn both(config: &Config, spec: &Value) -> (SandboxPlan, ContainerPlan) {
    match plans(config, spec).unwrap_or_else(|error| panic!("{error}")).kind {
        PlanKind::Sandbox { sandbox, container } => (*sandbox, *container),
        PlanKind::Container { sandbox, .. } => panic!("joins {sandbox}"),
    }
}

/// The error's line for a spec; panics if there is none or it has several lines.
pub(crate) fn refusal(config: &Config, spec: &Value) -> String {
    let error = plans(config, spec).expect_err("it was accepted");
    let text = bulkhead_model::failure::chain(&error);
    assert!(!text.contains('\n'), "{text}");
    text
}

#[track_caller]
pub(crate) fn says(text: &str, parts: &[&str]) {
    for part in parts {
        assert!(text.contains(part), "{part:?} is not in: {text}");
    }
}

pub(crate) fn map(pairs: &[(&str, &str)]) -> Annotations {
    pairs
        .iter()
        .map(|(k, v)| ((*k).to_owned(), (*v).to_owned()))
        .collect()
}

pub(crate) const HV: &str = "io.katacontainers.config.hypervisor.";
pub(crate) const RT: &str = "io.katacontainers.config.runtime.";
pub(crate) const AG: &str = "io.katacontainers.config.agent.";
pub(crate) const RES: &str = "io.katacontainers.container.resource.";

/// Every hypervisor annotation allowed.
pub(crate) const ALL: &str = "[hypervisor]\nenable_annotations = [\".*\"]\n";
