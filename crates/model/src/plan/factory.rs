//! How VMs are kept ready before they are wanted (O-21). Made by `config`, read by the supervisor.

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Settings of templates and the cache of booted VMs.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct FactoryPlan {
    /// Start from a template.
    pub template: bool,
    /// Directory of templates.
    pub template_path: PathBuf,
    /// Directory of the memory of templates.
    pub template_memory: PathBuf,
    /// VMs that went on from a template and wait, 0 for none.
    pub pool: u32,
    /// Directory of those that wait; the paths of their sockets begin with it, so it is short.
    pub pool_path: PathBuf,
    /// The same as `pool`, by the reference's name.
    pub vm_cache_number: u32,
    /// Socket of the server that keeps them there; here nobody has to.
    pub vm_cache_endpoint: PathBuf,
}
