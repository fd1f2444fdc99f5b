//! The contract's rows that `config` holds, one module per theme; every test names its row.

#![allow(missing_docs)]
#![allow(clippy::unwrap_used, clippy::expect_used)]

mod annotations;
mod assets;
mod containers;
mod files;
mod page;
mod properties;
mod rootfs;
mod sandboxes;
mod sizes;
mod spec;
mod support;
mod table;
mod volumes;
