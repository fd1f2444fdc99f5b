//! End-to-end tests: the built program, real VMs, and runc where a test can prove itself on it.
//!
//! Run by `cargo xtask test`. A test that ends well has left nothing behind: its [`bulkhead_e2e::Lab`] looks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Makes two tests of one body: on the runtime under test and on runc, which proves the test.
macro_rules! on_both {
    ($(#[$doc:meta])* fn $name:ident($lab:ident) $body:block) => {
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn check($lab: &Lab) $body

            #[test]
            #[ignore = "needs a VM"]
            fn bulkhead() {
                check(&Lab::with(Runtime::Bulkhead));
            }

            #[test]
            #[ignore = "needs root"]
            fn runc() {
                check(&Lab::with(Runtime::Runc));
            }
        }
    };
}

mod bad_input;
mod crash;
mod exec;
mod footprint;
mod lifecycle;
mod limits;
mod mounts;
mod network;
mod operator;
mod options;
mod pool;
mod run;
mod shop;
mod size;
mod stop;
mod stub;
mod template;
mod template_faults;
mod template_time;
mod terminal;
mod timeline;
