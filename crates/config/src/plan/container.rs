//! A spec becomes a container (O-02 to O-04, C-08).
//!
//! Owns the translation of process, root, mounts, devices and resources. Called by `plan` only.

use crate::env;
use crate::files::HostFiles;
use crate::mounts;
use crate::overrides::{self, AnnotationError, Annotations};
use crate::plan::PlanError;
use crate::spec::{self, At, SpecError};
use bulkhead_model::plan::{
    BUNDLE_PATH_ANNOTATION, CONTAINER_TYPE_ANNOTATION, CommandPlan, ContainerKind, RootfsPlan, Share,
};
use bulkhead_model::{ContainerId, ContainerPlan, oci};
use std::path::Path;

/// What a container is made from.
pub(super) struct Parts<'a> {
    pub(super) at: At<'a>,
    pub(super) files: &'a dyn HostFiles,
    pub(super) bundle: &'a Path,
    pub(super) id: &'a ContainerId,
    pub(super) kind: ContainerKind,
    pub(super) annotations: &'a Annotations,
}

/// The plan of one container; what was dropped is added to `warnings`.
pub(super) fn container(
    parts: &Parts<'_>,
    spec: oci::Spec,
    warnings: &mut Vec<String>,
) -> Result<ContainerPlan, PlanError> {
    let Parts {
        at,
        files,
        bundle,
        id,
        kind,
        annotations,
    } = *parts;
    let rootfs = rootfs(at, files, bundle, &spec)?;
    let mounts = mounts::mounts(at, &spec)?;
    let devices = mounts::devices(at, &spec)?;
    let command = command(&spec, warnings);
    let resources = resources(&spec, annotations, files)?;
    let cpu = resources.cpu().as_ref();
    let share = Share::of(
        cpu.and_then(oci::LinuxCpu::quota),
        cpu.and_then(oci::LinuxCpu::period),
        resources.memory().as_ref().and_then(oci::LinuxMemory::limit),
    );
    let recorded = Annotations::from([
        (CONTAINER_TYPE_ANNOTATION.to_owned(), kind.as_str().to_owned()),
        (
            BUNDLE_PATH_ANNOTATION.to_owned(),
            bundle.to_string_lossy().into_owned(),
        ),
    ]);
    Ok(ContainerPlan {
        id: id.clone(),
        bundle: bundle.to_owned(),
        rootfs,
        spec,
        creates_sandbox: kind == ContainerKind::PodSandbox,
        no_pivot: false,
        no_new_keyring: false,
        kind,
        command,
        mounts,
        devices,
        share,
        resources,
        recorded,
    })
}

fn rootfs(
    at: At<'_>,
    files: &dyn HostFiles,
    bundle: &Path,
    spec: &oci::Spec,
) -> Result<RootfsPlan, SpecError> {
    let Some(root) = spec.root() else {
        return Err(at.missing("root", "the section that names the root file system"));
    };
    let value = format!("{:?}", root.path());
    if root.path().as_os_str().is_empty() {
        return Err(at.value("root.path", value, "the directory of the root file system"));
    }
    // An absolute path replaces the bundle's.
    let path = bundle.join(root.path());
    if !files.exists(&path) {
        return Err(at.value(
            "root.path",
            value,
            format!("an existing directory, {path:?} does not exist"),
        ));
    }
    if !files.is_directory(&path) {
        return Err(at.value("root.path", value, format!("a directory, {path:?} is none")));
    }
    Ok(RootfsPlan {
        path,
        readonly: root.readonly().unwrap_or(false),
    })
}

/// O-02, O-03.
fn command(spec: &oci::Spec, warnings: &mut Vec<String>) -> CommandPlan {
    // spec::read refuses a spec without a process.
    let Some(process) = spec.process() else {
        return CommandPlan::default();
    };
    let entries = process.env().as_deref().unwrap_or_default();
    for (index, entry) in entries.iter().enumerate() {
        if !entry.contains('=') {
            let entry = spec::shortened(entry);
            warnings.push(format!(
                "process.env[{index}]: {entry:?} dropped: expected NAME=value"
            ));
        }
    }
    let user = process.user();
    CommandPlan {
        args: process.args().clone().unwrap_or_default(),
        env: env::lenient(entries),
        cwd: process.cwd().clone(),
        uid: user.uid(),
        gid: user.gid(),
        additional_gids: user.additional_gids().clone().unwrap_or_default(),
        terminal: process.terminal().unwrap_or(false),
        no_new_privileges: process.no_new_privileges().unwrap_or(false),
        capabilities: process.capabilities().clone(),
    }
}

/// The spec's resources with what container-resource annotations add (C-08).
fn resources(
    spec: &oci::Spec,
    annotations: &Annotations,
    files: &dyn HostFiles,
) -> Result<oci::LinuxResources, AnnotationError> {
    let wanted = overrides::apply_resource(annotations, files)?.resource;
    let given = spec.linux().as_ref().and_then(|linux| linux.resources().clone());
    let mut resources = given.unwrap_or_default();
    if wanted.swappiness.0.is_some() || wanted.swap_in_bytes.0.is_some() {
        let mut memory = resources.memory().unwrap_or_default();
        if let Some(swappiness) = wanted.swappiness.0 {
            memory.set_swappiness(Some(swappiness));
        }
        // The option's rule keeps it within i64.
        if let Some(swap) = wanted.swap_in_bytes.0.and_then(|bytes| i64::try_from(bytes).ok()) {
            memory.set_swap(Some(swap));
        }
        resources.set_memory(Some(memory));
    }
    Ok(resources)
}
