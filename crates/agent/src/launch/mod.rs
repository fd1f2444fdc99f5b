//! Starting processes in containers from outside the agent's threads.
//!
//! ```text
//!  agent (threads, tokio) ──order + descriptors──► fork server (one thread, forked before any other)
//!        ▲                                             │ one clone3 per order: the agent's child,
//!        │                                             ▼ in its cgroup and namespaces from the start
//!        └─────────── pid, terminal, verdict ───── the container's process ──► its program
//! ```
//!
//! Between clone and execve(2) a process allocates, reads files and runs hooks, which a child of a process with threads
//! must not: so the server has one thread. What can be worked out before the clone is (`plan`, `filter`).
//!
//! Owns: plans, orders, the server, everything a process does before its program. Never: state about containers.
//! Called by `engine`.

mod attributes;
mod birth;
mod copy_up;
mod exec;
mod filter;
mod hooks;
mod launcher;
mod mount_plan;
mod nodes;
mod order;
mod plan;
mod privileges;
mod reserve;
mod root;
mod server;
mod terminal;
mod voice;

pub(crate) use attributes::{Attributes, Confinement};
pub(crate) use launcher::{Launcher, Waiting};
pub(crate) use order::{ExecOrder, Launched, Order, Refusal};
pub(crate) use plan::{Blueprint, IdMap, Plan, UserMaps};
pub(crate) use reserve::Reserve;

/// A hook without a time-out may take this long, in seconds.
pub(crate) const LONGEST_HOOK: u64 = hooks::LONGEST;
