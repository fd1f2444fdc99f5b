//! Mounts and devices of a spec → plans (O-04, O-06).
//!
//! Owns: the translation. Never: which mounts are shared with the guest (the engine's). Called by `plan`.

use crate::files::HostFiles;
use crate::spec::{At, SpecError};
use bulkhead_model::oci;
use bulkhead_model::plan::{DeviceKind, DevicePlan, MountPlan};
use std::path::{Component, Path, PathBuf};

/// Size in bytes of a container's /dev/shm that does not say otherwise (M-11).
pub const DEFAULT_SHM_BYTES: u64 = 64 << 20;

/// The mounts of a spec, in order; destinations are absolute and clean.
pub(crate) fn mounts(at: At<'_>, spec: &oci::Spec) -> Result<Vec<MountPlan>, SpecError> {
    spec.mounts()
        .iter()
        .flatten()
        .enumerate()
        .map(|(index, mount)| {
            let destination = inside(mount.destination()).ok_or_else(|| {
                at.value(
                    format!("mounts[{index}].destination"),
                    format!("{:?}", mount.destination()),
                    "a path below / in the container",
                )
            })?;
            let options = mount.options().clone().unwrap_or_default();
            Ok(MountPlan {
                source: mount.source().clone(),
                destination,
                fstype: mount.typ().clone().unwrap_or_default(),
                readonly: options.iter().any(|option| option == "ro"),
                options,
            })
        })
        .collect()
}

/// The path as seen from the container's root; `None` for the root itself and for what climbs above it.
fn inside(path: &Path) -> Option<PathBuf> {
    let mut clean = PathBuf::from("/");
    let mut depth = 0_usize;
    for component in path.components() {
        match component {
            Component::Normal(name) => {
                clean.push(name);
                depth += 1;
            }
            Component::ParentDir => {
                depth = depth.checked_sub(1)?;
                clean.pop();
            }
            Component::RootDir | Component::CurDir => {}
            Component::Prefix(_) => return None,
        }
    }
    (depth > 0).then_some(clean)
}

/// The devices of a spec, in order.
pub(crate) fn devices(at: At<'_>, spec: &oci::Spec) -> Result<Vec<DevicePlan>, SpecError> {
    let devices = spec.linux().as_ref().and_then(|l| l.devices().as_ref());
    devices
        .into_iter()
        .flatten()
        .enumerate()
        .map(|(index, device)| {
            let letter = device.typ().as_str().to_owned();
            let kind = DeviceKind::from_letter(&letter).ok_or_else(|| {
                at.value(
                    format!("linux.devices[{index}].type"),
                    format!("{letter:?}"),
                    "c, b, u or p",
                )
            })?;
            Ok(DevicePlan {
                path: device.path().clone(),
                kind,
                major: device.major(),
                minor: device.minor(),
                uid: device.uid().unwrap_or(0),
                gid: device.gid().unwrap_or(0),
                mode: device.file_mode(),
            })
        })
        .collect()
}

/// Size of the sandbox's /dev/shm in bytes: the first mount there decides, 0 without one (O-06).
pub(crate) fn shm_bytes(at: At<'_>, mounts: &[MountPlan], files: &dyn HostFiles) -> Result<u64, SpecError> {
    let shm = Path::new("/dev/shm");
    let Some((index, mount)) = mounts.iter().enumerate().find(|(_, m)| m.destination == shm) else {
        return Ok(0);
    };
    match &mount.source {
        Some(source) if mount.is_bind() && source != shm => {
            files.file_system_bytes(source).map_err(|error| SpecError::Host {
                file: at.0.to_owned(),
                key: format!("mounts[{index}].source"),
                value: format!("{source:?}"),
                message: format!("cannot tell the size of its file system: {error}"),
            })
        }
        _ => Ok(DEFAULT_SHM_BYTES),
    }
}
