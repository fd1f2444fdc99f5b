//! Harness of the end-to-end tests: bundles, runtimes, deadlines, leak audit.
//!
//! ```text
//! Lab::new(runtime) ─► bundle() ─► call(["run", …]).run() ─► Outcome ─► asserts
//!        └── Drop: everything the test started is gone, or the test fails and says what is left
//! ```
//! Owns: what all end-to-end tests share. Never: an expectation about the product beyond "nothing is left".
//! Called by the tests beside it, which run with `cargo xtask test`.
//!
//! A harness reports by panicking, so `unwrap` and `expect` are at home here.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::missing_panics_doc)]

mod audit;
mod bundle;
mod call;
mod lab;
mod net;
mod runtime;
mod token;
mod wait;

pub use audit::Audit;
pub use bundle::Bundle;
pub use call::{Call, Outcome, Running};
pub use lab::Lab;
pub use net::Net;
pub use runtime::Runtime;
pub use token::token;
pub use wait::{Lines, until};

use std::time::Duration;

/// Longest a verb may take: a boot on a machine that is five times slower than usual.
pub const VERB: Duration = Duration::from_secs(120);

/// Longest a verb may take that starts nothing.
pub const QUICK: Duration = Duration::from_secs(60);
