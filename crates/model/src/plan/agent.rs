//! What the guest agent is told beside identity (O-15, O-22). Owns no defaults; made by `config`.

use serde::{Deserialize, Serialize};

/// Settings of the guest agent.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct AgentPlan {
    /// More log output.
    pub debug: bool,
    /// Record trace spans in the guest.
    pub tracing: bool,
    /// How spans are collected: `static` or `dynamic`; empty when tracing is off.
    pub trace_mode: String,
    /// Which spans: `isolated` or `collated`; empty when tracing is off.
    pub trace_type: String,
    /// Capacity of the stdio pipes in bytes, 0 for the kernel's default.
    pub container_pipe_bytes: u32,
    /// Containers may share the agent's pid namespace.
    pub share_pid_namespace: bool,
}
