//! Names that nobody else has.
//!
//! Owns: where they come from. Never: what is named. Called by `make` and `fill`.

use super::digests::hex;
use super::error::TemplateError;
use crate::platform::Platform;

/// 64 bits of the host's randomness, in hexadecimal.
pub(super) fn nonce(host: &dyn Platform) -> Result<String, TemplateError> {
    let seed = host
        .entropy()
        .map_err(TemplateError::io("reading", "/dev/urandom"))?;
    Ok(hex(&seed[..seed.len().min(8)]))
}
