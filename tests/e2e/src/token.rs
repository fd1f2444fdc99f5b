//! The word that is in the name of everything a test makes.
//!
//! Owns: that no two tests have the same one, nor one that an earlier run was killed with: a process id alone comes
//! again. Never: what it names. Called by the labs.

use std::hash::{BuildHasher, RandomState};
use std::sync::LazyLock;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Letters and digits of the part that tells one run from another: 60 million of them, as short as a process id.
const LENGTH: usize = 5;

static NEXT: AtomicUsize = AtomicUsize::new(0);
static RUN: LazyLock<String> = LazyLock::new(run);

/// A new one: the prefix, this run, and a number, closed by a letter so that none is the beginning of another.
#[must_use]
pub fn token(prefix: &str) -> String {
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("{prefix}{}x{number}z", *RUN)
}

fn run() -> String {
    // Seeded by the system.
    let mut rest = RandomState::new().hash_one(std::process::id());
    let digits = b"0123456789abcdefghijklmnopqrstuvw";
    (0..LENGTH)
        .map(|_| {
            let digit = digits[(rest % digits.len() as u64) as usize];
            rest /= digits.len() as u64;
            char::from(digit)
        })
        .collect()
}
