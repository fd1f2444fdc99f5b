//! Environment entries (O-03), in the two ways they are read.
//!
//! Owns: both readings. Never: which variables there are. Called by `plan`, the strict one by tests of the contract only.

use bulkhead_model::plan::EnvVar;

/// An entry that strict reading refuses.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EnvError {
    /// No `=`.
    #[error("environment entry {entry:?} has no \"=\": expected NAME=value")]
    NoEquals {
        /// The entry.
        entry: String,
    },
    /// Nothing before the `=`.
    #[error("environment entry {entry:?} has an empty name: expected NAME=value")]
    NoName {
        /// The entry.
        entry: String,
    },
}

/// The environment of a config.json: entries without `=` are dropped.
#[must_use]
pub fn lenient(entries: &[String]) -> Vec<EnvVar> {
    entries
        .iter()
        .filter_map(|entry| entry.split_once('='))
        .map(|(name, value)| EnvVar {
            name: name.to_owned(),
            value: value.to_owned(),
        })
        .collect()
}

/// The environment a user typed: every entry must be right, and single quotes and spaces around a value
/// are taken off.
///
/// # Errors
/// The first [`EnvError`].
pub fn strict(entries: &[String]) -> Result<Vec<EnvVar>, EnvError> {
    entries
        .iter()
        .map(|entry| match entry.split_once('=') {
            None => Err(EnvError::NoEquals { entry: entry.clone() }),
            Some(("", _)) => Err(EnvError::NoName { entry: entry.clone() }),
            Some((name, value)) => Ok(EnvVar {
                name: name.to_owned(),
                value: value.trim_matches(['\'', ' ']).to_owned(),
            }),
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pairs(vars: &[EnvVar]) -> Vec<(&str, &str)> {
        vars.iter().map(|v| (v.name.as_str(), v.value.as_str())).collect()
    }

    /// O-03: dropped without `=`; everything after the first `=` is the value.
    #[test]
    fn o03_lenient_drops_what_has_no_equals_sign() {
        let entries = [
            "A=1".into(),
            "bare".into(),
            "B=x=y=z".into(),
            "C=".into(),
            "=v".into(),
        ];
        assert_eq!(
            pairs(&lenient(&entries)),
            [("A", "1"), ("B", "x=y=z"), ("C", ""), ("", "v")]
        );
    }

    /// O-03: strict reading refuses a missing `=` and an empty name, and trims quotes and spaces.
    #[test]
    fn o03_strict_refuses_and_trims() {
        let entries = ["A=' 'x=y' '".into(), "B=' it''s '".into(), "C=\"q\"".into()];
        let vars = strict(&entries).unwrap();
        assert_eq!(pairs(&vars), [("A", "x=y"), ("B", "it''s"), ("C", "\"q\"")]);
        let error = strict(&["bare".into()]).unwrap_err();
        assert!(error.to_string().contains("\"bare\""), "{error}");
        let error = strict(&["=v".into()]).unwrap_err();
        assert!(error.to_string().contains("\"=v\""), "{error}");
    }
}
