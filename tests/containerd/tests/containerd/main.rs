//! Tests under a real containerd, and of the shim alone where a test plays containerd's part.
//!
//! Run by `cargo xtask test`. A test that ends well has left nothing behind: its [`bulkhead_containerd::Place`] looks.

#![allow(clippy::unwrap_used, clippy::expect_used)]

/// Makes two tests of one body: with the shim under test and with runc's, which proves the test.
macro_rules! on_both {
    ($(#[$doc:meta])* fn $name:ident($engine:ident) $body:block) => {
        $(#[$doc])*
        mod $name {
            #[allow(unused_imports)]
            use super::*;

            fn check($engine: Engine) $body

            #[test]
            #[ignore = "needs a VM"]
            fn bulkhead() {
                check(Engine::Bulkhead);
            }

            #[test]
            #[ignore = "needs root"]
            fn runc() {
                check(Engine::Runc);
            }
        }
    };
}

mod bad_input;
mod crash;
mod pods;
mod run;
mod sandbox;
mod streams;
