//! Harness of the tests under containerd: a containerd of the test's own, images, a CRI client, a bare shim.
//!
//! ```text
//!  Daemon::start ─► ctr(["run", …]).run() ─► Outcome
//!       └─ cri() ─► Cri ─► pods                          Drop: nothing is left, or the test fails and says what
//!  Shim::start ─► call(method, message) ─► status or answer      (containerd's part played by the test)
//! ```
//! Owns: what these tests share. Never: an expectation about the product beyond "nothing is left". Called by the tests
//! beside it, which run with `cargo xtask test`.
//!
//! A harness reports by panicking, so `unwrap` and `expect` are at home here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod cri;
mod daemon;
mod exec;
mod image;
mod place;
mod shim;
mod world;

pub use cri::{Cri, NamespaceMode, NamespaceOption, Pod};
pub use daemon::Daemon;
pub use exec::exec;
pub use image::{BUSYBOX, PAUSE};
pub use place::{Engine, Place};
pub use shim::{Bundle, Refused, Shim};
pub use world::{GATEWAY, World};
