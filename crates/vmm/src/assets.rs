//! Files a VM is made of are what their digests say (O-16).
//!
//! Owns: reading and comparing. Never: which files (the plan's). Called whenever a VM is started, right before its
//! files are used.

use crate::VmmError;
use bulkhead_model::vm::AssetHash;
use sha2::{Digest, Sha512};
use std::fs::File;
use std::io::{self, Read};

/// Read at once, in bytes.
const CHUNK: usize = 256 << 10;

/// Compares each file's SHA-512 with the one given. Blocks: a kernel takes some tens of milliseconds.
///
/// # Errors
/// [`VmmError::Verify`], [`VmmError::Digest`] for the first that is not what was meant; none may be used then.
pub fn verify(assets: &[AssetHash]) -> Result<(), VmmError> {
    for asset in assets {
        let found = digest(asset).map_err(|source| VmmError::Verify {
            path: asset.path.clone(),
            option: asset.option.clone(),
            source,
        })?;
        if !found.eq_ignore_ascii_case(&asset.sha512) {
            return Err(VmmError::Digest {
                path: asset.path.clone(),
                option: asset.option.clone(),
                found,
                expected: asset.sha512.clone(),
            });
        }
    }
    Ok(())
}

fn digest(asset: &AssetHash) -> io::Result<String> {
    let mut file = File::open(&asset.path)?;
    let mut hasher = Sha512::new();
    let mut buffer = vec![0; CHUNK];
    loop {
        match file.read(&mut buffer) {
            Ok(0) => break,
            Ok(count) => hasher.update(&buffer[..count]),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(hasher
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// FIPS 180-2, C.1.
    const ABC: &str = "ddaf35a193617abacc417349ae20413112e6fa4e89a97ea20a9eeee64b55d39a\
        2192992a274fc1a836ba3c23a3feebbd454d4423643ce80e2a9ac94fa54ca49f";

    fn asset(path: &Path, sha512: &str) -> AssetHash {
        AssetHash {
            option: "kernel_hash".into(),
            path: path.to_owned(),
            sha512: sha512.into(),
        }
    }

    /// O-16: the right digest in either case, another file, a file that is not there.
    #[test]
    fn o16_digests_are_compared() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("kernel");
        std::fs::write(&path, "abc").unwrap();
        verify(&[asset(&path, ABC), asset(&path, &ABC.to_uppercase())]).unwrap();
        std::fs::write(&path, "abd").unwrap();
        let text = verify(&[asset(&path, ABC)]).unwrap_err().to_string();
        for word in ["kernel: its SHA-512 is ", ABC, "kernel_hash"] {
            assert!(text.contains(word), "{text}");
        }
        std::fs::remove_file(&path).unwrap();
        assert!(matches!(
            verify(&[asset(&path, ABC)]),
            Err(VmmError::Verify { .. })
        ));
    }
}
