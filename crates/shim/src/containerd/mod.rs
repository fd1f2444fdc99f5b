//! containerd's shim: the same binary by the name `containerd-shim-bulkhead-v2`.
//!
//! ```text
//!  containerd ─ start ──► invocation ─► start ─► launch ─► supervisor (serves Task, Sandbox and bulkhead's own socket)
//!             ─ delete ─► remove: whatever is left of a shim that died
//!             ─ ttrpc ──► service ─► Tasks ─► sandbox::Command
//!             ◄─ events ─ publisher
//! ```
//!
//! Owns: the translation between containerd's protocol and the sandbox's commands. Never: what a sandbox does.
//! Called by `cli` (the binary's name decides) and by the supervisor.

mod calls;
mod create;
mod desk;
mod endings;
mod exec;
mod invocation;
mod logger;
mod metrics;
mod options;
mod ordered;
mod pause;
mod pod_config;
mod publisher;
mod remove;
mod sandbox_service;
mod server;
mod service;
mod settings;
mod start;
mod status;
mod streams;
mod task;
mod tasks;

pub use invocation::main;
pub use pause::main as pause_main;
pub use server::Server;
pub use settings::Settings;
