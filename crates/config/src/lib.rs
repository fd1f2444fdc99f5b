//! Configuration and OCI specs → plans.
//!
//! ```text
//!  options (one table) ─► load (TOML) ─► Config ─┐
//!                                                ├─► plan ─► SandboxPlan, ContainerPlan
//!  config.json ─► spec ─► overrides (annotations)┘
//! ```
//!
//! Owns: every option, what a valid config.json is, sizes. Never: I/O beyond reading the files it was given.
//! Called by the CLI and the shim.

pub mod env;
mod facts;
mod files;
mod line;
mod load;
pub mod mounts;
pub mod opt;
pub mod options;
pub mod overrides;
mod plan;
pub mod pod;
pub mod reference;
pub mod rootfs_options;
mod sizing;
mod source;
mod spec;
mod suggest;
mod validate;
pub mod value;

pub use facts::HostFacts;
pub use files::{Disk, HostFiles};
pub use load::{Config, ConfigError};
pub use opt::{Columns, Honour, Keeps, Opt, Section};
pub use options::{EXPERIMENTAL, MIN_MEMORY_MIB, OPTIONS, Settings, VMM_MAX_VCPUS};
pub use overrides::{AnnotationError, Annotations, apply as apply_annotations};
pub use plan::{
    BASE_ROOT_PORTS, CONFIG_PATH_ANNOTATION, PlanError, PlanKind, Plans, machine, plan, plan_with,
};
pub use source::Source;
pub use spec::{MAX_ARG_BYTES, SpecError, read as read_spec};
pub use validate::Invalid;
pub use value::{Refused, Rule};
