//! Starting processes in containers from outside the agent's threads.
//!
//! ```text
//!  agent (threads, tokio) ──order + descriptors──► fork server (one thread, forked before any other)
//!        ▲                                             │ clone(CLONE_PARENT) per order
//!        └──────────── reply + pid (+ pty) ────────────┴─► worker ──► the container's process
//! ```
//!
//! The libraries that set containers up run callbacks after a clone, change directory and wait: all of that
//! is unsafe in a process with threads. The worker is a child of PID 1 and exits after its reply, so PID 1
//! reaps it and inherits what it started.
//!
//! Owns: orders, replies, server, workers. Never: state about containers. Called by `engine`.

mod attributes;
mod create;
mod exec;
mod launcher;
mod order;
mod server;
mod userns;
mod verdict;

pub(crate) use launcher::Launcher;
pub(crate) use order::{CreateOrder, ExecOrder, IdMap, Launched, Order, Refusal, UserMaps};
