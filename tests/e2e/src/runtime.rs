//! The runtimes a test can be put to: conformance tests prove themselves on runc first.

use std::path::PathBuf;

/// An OCI runtime.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    /// The one under test.
    Bulkhead,
    /// The reference.
    Runc,
}

impl Runtime {
    /// Its program: `BULKHEAD_BIN` or the workspace's debug build; `runc` from PATH.
    #[must_use]
    pub fn program(self) -> PathBuf {
        match self {
            Self::Bulkhead => match std::env::var_os("BULKHEAD_BIN") {
                Some(path) => path.into(),
                None => target().join("debug/bulkhead"),
            },
            Self::Runc => "runc".into(),
        }
    }

    /// Options before every verb beside `--root`.
    #[must_use]
    pub fn global_options(self) -> Vec<String> {
        match self {
            Self::Bulkhead => vec!["--config".to_owned(), config().display().to_string()],
            Self::Runc => Vec::new(),
        }
    }
}

/// The configuration that names the guest under test.
#[must_use]
pub(crate) fn config() -> PathBuf {
    match std::env::var_os("BULKHEAD_TEST_CONFIG") {
        Some(path) => path.into(),
        None => target().join("guest-assets/config.toml"),
    }
}

fn target() -> PathBuf {
    let here = std::path::Path::new(env!("CARGO_MANIFEST_DIR"));
    let root = here
        .ancestors()
        .nth(2)
        .expect("tests/e2e lies two below the workspace");
    std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), |dir| root.join(dir))
}
