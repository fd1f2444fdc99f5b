//! A host that exists only here, for the targets that plan.
//!
//! Owns: the answers to what planning asks. Never: looks at the disk.

#![allow(dead_code)]

use bulkhead_config::{Config, HostFacts, HostFiles};
use bulkhead_model::vm::Accelerator;
use std::path::Path;

/// Files that planning may ask for.
pub(crate) struct Files;

impl HostFiles for Files {
    fn exists(&self, path: &Path) -> bool {
        path.starts_with("/bundle")
    }
    fn is_directory(&self, path: &Path) -> bool {
        path == Path::new("/bundle/rootfs")
    }
    fn file_system_bytes(&self, path: &Path) -> std::io::Result<u64> {
        if self.exists(path) {
            Ok(1 << 30)
        } else {
            Err(std::io::ErrorKind::NotFound.into())
        }
    }
}

/// What the host has.
pub(crate) const FACTS: HostFacts = HostFacts {
    cpus: 8,
    memory_mib: 16_384,
    free_hugepages_mib: 1024,
    accelerator: Accelerator::Tcg,
    hypervisor: None,
    builtin_fs_daemon: true,
};

/// A configuration that allows every annotation.
pub(crate) fn config() -> Config {
    let text = "[hypervisor]\nenable_annotations = [\".*\"]\n";
    Config::parse(Path::new("fuzz.toml"), text).unwrap_or_else(|errors| panic!("{errors:?}"))
}

/// What a user reads is one line.
pub(crate) fn one_line(text: &str) {
    assert!(!text.is_empty() && !text.contains('\n'), "{text:?}");
}
