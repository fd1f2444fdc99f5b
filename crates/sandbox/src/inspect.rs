//! The live tree of a sandbox for readers (`bulkhead inspect`).
//!
//! Owns: the shape of that tree. Never: state. Called for a live sandbox and, from saved state, for a dead one.

use bulkhead_model::SandboxSnapshot;
use serde_json::{Value, json};

/// The tree.
#[must_use]
pub fn tree(snapshot: &SandboxSnapshot) -> Value {
    json!({ "sandbox": snapshot })
}
