//! Saved machines that sandboxes start from.
//!
//! ```text
//!  start ─► Identity (signature of the machine, files) ─► TemplateStore::find ─┬─ Ready ──► restored
//!                                                                              └─ Absent ─► booted cold
//!  after a cold start ─► Order ─► a process of its own: make ─► boot ─► save ─► publish (rename)
//!                                                       └─► fill: VMs that went on already wait in a Pool
//! ```
//!
//! Owns: what a template is, where it lies, when it is good, how it is made. Never: which sandbox uses it (see
//! `boot`), QEMU's arguments. Called by the real host, the process that makes one, and the template verbs.

mod agent;
mod digests;
mod error;
mod fill;
mod identity;
mod make;
mod manifest;
mod nonce;
mod order;
mod pool;
mod share;
mod store;

pub use error::TemplateError;
pub use fill::fill;
pub use identity::{Identity, TemplateKey};
pub use make::{Outcome, make};
pub use manifest::Manifest;
pub use order::{Order, shape};
pub use pool::{Pool, Record, Waiting};
pub(crate) use store::reuse;
pub use store::{Condition, Found, Kept, Template, TemplateStore, find};
