//! Digests of assets (O-16).

use bulkhead_model::vm::AssetHash;
use sha2::{Digest, Sha512};
use std::fmt::Write as _;
use std::io::Read;
use std::path::PathBuf;

/// Why an asset may not be used.
#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    /// It cannot be read.
    #[error("{}: cannot read it to verify {option}", path.display())]
    Read {
        /// The file.
        path: PathBuf,
        /// The option with the digest.
        option: String,
        /// Why.
        #[source]
        source: std::io::Error,
    },
    /// It is another file than was meant.
    #[error("{}: its SHA-512 is {found}: expected {expected}, as {option} says", path.display())]
    Mismatch {
        /// The file.
        path: PathBuf,
        /// The option with the digest.
        option: String,
        /// What it is.
        found: String,
        /// What it should be.
        expected: String,
    },
}

/// Reads the asset and compares its SHA-512 with the one given.
///
/// # Errors
/// [`VerifyError`]; an asset that was refused must not be used.
pub fn verify(asset: &AssetHash) -> Result<(), VerifyError> {
    let read = |source| VerifyError::Read {
        path: asset.path.clone(),
        option: asset.option.clone(),
        source,
    };
    let mut file = std::fs::File::open(&asset.path).map_err(read)?;
    let mut hasher = Sha512::new();
    let mut buffer = vec![0; 256 << 10];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(read(error)),
        }
    }
    let found = hasher.finalize().iter().fold(String::new(), |mut text, byte| {
        // Writing to a String cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    });
    if found.eq_ignore_ascii_case(&asset.sha512) {
        Ok(())
    } else {
        Err(VerifyError::Mismatch {
            path: asset.path.clone(),
            option: asset.option.clone(),
            found,
            expected: asset.sha512.clone(),
        })
    }
}
