//! The few questions planning asks about host files, behind a trait so that plans can be made without a host.

use std::path::Path;

/// Questions about host files. Answers are facts of that moment; symlinks are followed.
pub trait HostFiles {
    /// Whether the path exists.
    fn exists(&self, path: &Path) -> bool;
    /// Whether the path is a directory.
    fn is_directory(&self, path: &Path) -> bool;
    /// Size in bytes of the file system the path is on: block size × blocks (statfs(2)).
    ///
    /// # Errors
    /// As statfs has it.
    fn file_system_bytes(&self, path: &Path) -> std::io::Result<u64>;
}

/// The host's own files.
#[derive(Debug, Clone, Copy, Default)]
pub struct Disk;

impl HostFiles for Disk {
    fn exists(&self, path: &Path) -> bool {
        path.exists()
    }

    fn is_directory(&self, path: &Path) -> bool {
        path.is_dir()
    }

    fn file_system_bytes(&self, path: &Path) -> std::io::Result<u64> {
        let stat = nix::sys::statfs::statfs(path)?;
        let block = u64::try_from(stat.block_size()).unwrap_or(0);
        Ok(block.saturating_mul(stat.blocks()))
    }
}
