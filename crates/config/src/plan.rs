//! config.json + annotations + configuration + host → plans.
//!
//! ```text
//!  read the spec ─► place in the pod ─┬─ makes a sandbox: settings + annotations ─► SandboxPlan ┐
//!                                     └─ joins one: its id ──────────────────────────────────────┴► ContainerPlan
//! ```
//!
//! Owns the translation (O-01 to O-06, O-14, O-15, O-21 to O-23). Never: acquires anything; the host is
//! seen through [`HostFacts`] and [`HostFiles`] only. Called by the CLI's `create` and the shim.

mod container;
mod sandbox;

use crate::facts::HostFacts;
use crate::files::{Disk, HostFiles};
use crate::load::{Config, ConfigError};
use crate::overrides::{self, AnnotationError, Annotations};
use crate::pod::{self, PodError};
use crate::source::Source;
use crate::spec::{self, At, Read, SpecError};
use crate::validate::{Invalid, validate, validate_on};
use bulkhead_model::plan::{ContainerKind, FactoryPlan};
use bulkhead_model::{ContainerId, ContainerPlan, FailureKind, SandboxId, SandboxPlan, VmPlan};
use std::path::Path;

/// Root ports every sandbox has: shared files, network cards and a few disks.
pub const BASE_ROOT_PORTS: u32 = 6;

/// Annotation that names another configuration file (O-20).
pub const CONFIG_PATH_ANNOTATION: &str = "io.katacontainers.config_path";

/// Why no plan can be made.
#[derive(Debug, thiserror::Error)]
pub enum PlanError {
    /// config.json.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// An annotation.
    #[error(transparent)]
    Annotation(#[from] AnnotationError),
    /// The annotations that place a container in a pod.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// Options that do not go together, or not with this host.
    #[error(transparent)]
    Invalid(#[from] Invalid),
    /// The configuration that an annotation names.
    #[error(transparent)]
    Config(#[from] ConfigError),
}

impl PlanError {
    /// Its class: everything is the caller's input, but some of it is refused on principle.
    #[must_use]
    pub fn kind(&self) -> FailureKind {
        match self {
            Self::Spec(SpecError::Unsupported { .. }) | Self::Invalid(Invalid::NotHonoured { .. }) => {
                FailureKind::Unsupported
            }
            Self::Spec(_) | Self::Annotation(_) | Self::Pod(_) | Self::Invalid(_) | Self::Config(_) => {
                FailureKind::InvalidArgument
            }
        }
    }
}

/// What a container is to be, and its sandbox if it makes one.
#[derive(Debug, Clone, PartialEq)]
pub enum PlanKind {
    /// It makes a sandbox.
    Sandbox {
        /// The sandbox.
        sandbox: Box<SandboxPlan>,
        /// Its first container.
        container: Box<ContainerPlan>,
    },
    /// It joins a sandbox.
    Container {
        /// Which.
        sandbox: SandboxId,
        /// The container.
        container: Box<ContainerPlan>,
    },
}

/// The result of planning.
#[derive(Debug, Clone, PartialEq)]
pub struct Plans {
    /// The plans.
    pub kind: PlanKind,
    /// What was tolerated in the spec, one line each, for the log.
    pub warnings: Vec<String>,
}

/// Makes the plans for the container `container` whose config.json is `spec_json`. `bundle` is absolute
/// with symlinks resolved; its `rootfs` must be there already.
///
/// # Errors
/// The first [`PlanError`]: one line that names key, value and what was expected.
pub fn plan(
    bundle: &Path,
    spec_json: &[u8],
    container: &ContainerId,
    config: &Config,
    host: &HostFacts,
) -> Result<Plans, PlanError> {
    plan_with(&Disk, bundle, spec_json, container, config, host)
}

/// [`plan`] with the host's files given.
///
/// # Errors
/// As [`plan`].
pub fn plan_with(
    files: &dyn HostFiles,
    bundle: &Path,
    spec_json: &[u8],
    container: &ContainerId,
    config: &Config,
    host: &HostFacts,
) -> Result<Plans, PlanError> {
    let file = bundle.join("config.json");
    let Read { spec, mut warnings } = spec::read(&file, spec_json)?;
    let annotations: Annotations = spec
        .annotations()
        .clone()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let kind = pod::kind(&annotations)?;
    let at = At(&file);
    let parts = container::Parts {
        at,
        files,
        bundle,
        id: container,
        kind,
        annotations: &annotations,
    };
    let planned = container::container(&parts, spec, &mut warnings)?;
    let kind = match kind {
        ContainerKind::PodContainer => PlanKind::Container {
            sandbox: pod::sandbox(&annotations)?,
            container: Box::new(planned),
        },
        ContainerKind::PodSandbox => {
            let other;
            let config = match chosen(config, &annotations, files)? {
                Some(loaded) => {
                    other = loaded;
                    &other
                }
                None => config,
            };
            let settings = overrides::apply(config.settings(), &annotations, files)?;
            validate(&settings)?;
            validate_on(&settings, host)?;
            let sandbox = sandbox::sandbox(at, files, &planned, annotations, &settings, host)?;
            PlanKind::Sandbox {
                sandbox: Box::new(sandbox),
                container: Box::new(planned),
            }
        }
    };
    Ok(Plans { kind, warnings })
}

/// The machine of a sandbox nobody asks anything special of, and the settings of templates.
#[must_use]
pub fn machine(config: &Config, host: &HostFacts) -> (VmPlan, FactoryPlan) {
    sandbox::machine(config.settings(), host)
}

/// The configuration a sandbox's annotation chose (O-20); allowed by the configuration in force.
fn chosen(
    config: &Config,
    annotations: &Annotations,
    files: &dyn HostFiles,
) -> Result<Option<Config>, PlanError> {
    let Some(path) = annotations.get(CONFIG_PATH_ANNOTATION) else {
        return Ok(None);
    };
    if !config.settings().runtime.valid_config_paths.name(path) || !files.exists(path.as_ref()) {
        return Err(AnnotationError::Path {
            annotation: CONFIG_PATH_ANNOTATION.to_owned(),
            value: path.clone(),
            globs: "runtime.valid_config_paths".to_owned(),
        }
        .into());
    }
    Ok(Some(Config::load(&Source::File(path.into()))?))
}
