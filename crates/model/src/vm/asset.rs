//! Files a VM is made of, and the digests they must have (O-16).

use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// A file whose digest was given; it is verified before use.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct AssetHash {
    /// Option that named the digest, for messages: `kernel_hash`.
    pub option: String,
    /// The file.
    pub path: PathBuf,
    /// SHA-512 in lower-case hexadecimal, 128 digits.
    pub sha512: String,
}
