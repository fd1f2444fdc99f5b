//! Validated identifiers. Owns the rule of what an id may look like; never touches the file system.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Longest id, in bytes: one path component (NAME_MAX).
pub const MAX_ID_BYTES: usize = 255;

/// Why a string is not an id.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum IdError {
    /// The string has no characters (contract C-03, K-02).
    #[error("{what} id is empty: expected 1 to {MAX_ID_BYTES} characters of A-Z a-z 0-9 _ + - .")]
    Empty {
        /// Which kind of id was asked for.
        what: &'static str,
    },
    /// Longer than [`MAX_ID_BYTES`].
    #[error("{what} id of {bytes} bytes is too long: expected at most {MAX_ID_BYTES}")]
    TooLong {
        /// Which kind of id was asked for.
        what: &'static str,
        /// Its length.
        bytes: usize,
    },
    /// A character outside the set runc accepts, or the names `.` and `..`.
    #[error(
        "invalid {what} id {value:?}: expected characters of A-Z a-z 0-9 _ + - . and neither \".\" nor \"..\""
    )]
    Characters {
        /// Which kind of id was asked for.
        what: &'static str,
        /// The refused id.
        value: String,
    },
}

fn check(what: &'static str, value: &str) -> Result<(), IdError> {
    if value.is_empty() {
        return Err(IdError::Empty { what });
    }
    if value.len() > MAX_ID_BYTES {
        return Err(IdError::TooLong {
            what,
            bytes: value.len(),
        });
    }
    let legal = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '+' | '-' | '.');
    if value == "." || value == ".." || !value.chars().all(legal) {
        return Err(IdError::Characters {
            what,
            value: value.to_owned(),
        });
    }
    Ok(())
}

macro_rules! id {
    ($(#[$doc:meta])* $name:ident, $what:literal) => {
        $(#[$doc])*
        #[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
        #[serde(try_from = "String", into = "String")]
        pub struct $name(String);

        impl $name {
            /// Checks `value` against the rule of ids.
            ///
            /// # Errors
            /// [`IdError`] naming the value and what was expected.
            pub fn new(value: impl Into<String>) -> Result<Self, IdError> {
                let value = value.into();
                check($what, &value)?;
                Ok(Self(value))
            }

            /// The id as text.
            #[must_use]
            pub fn as_str(&self) -> &str {
                &self.0
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(&self.0)
            }
        }

        impl AsRef<str> for $name {
            fn as_ref(&self) -> &str {
                &self.0
            }
        }

        impl TryFrom<String> for $name {
            type Error = IdError;
            fn try_from(value: String) -> Result<Self, IdError> {
                Self::new(value)
            }
        }

        impl From<$name> for String {
            fn from(id: $name) -> String {
                id.0
            }
        }
    };
}

id!(
    /// Id of a container, unique on the host under one `--root`.
    ContainerId,
    "container"
);
id!(
    /// Id of a sandbox (one VM); equals the id of the container that made it.
    SandboxId,
    "sandbox"
);
id!(
    /// Id of a further process (`exec`) inside a container, unique in its container.
    ExecId,
    "exec"
);

impl From<&ContainerId> for SandboxId {
    fn from(id: &ContainerId) -> Self {
        Self(id.0.clone())
    }
}

impl From<&SandboxId> for ContainerId {
    fn from(id: &SandboxId) -> Self {
        Self(id.0.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accepts_what_runc_accepts() {
        for good in ["a", "web-1", "A_b+c.d", "..a", &"x".repeat(255)] {
            assert!(ContainerId::new(good).is_ok(), "{good}");
        }
    }

    #[test]
    fn refuses_paths_and_odd_characters_and_names_them() {
        for bad in ["a/b", "..", ".", "a b", "ä", "a\n", "a:b"] {
            let error = ContainerId::new(bad).unwrap_err().to_string();
            assert!(error.contains(&format!("{bad:?}")), "{error}");
        }
        assert_eq!(ContainerId::new(""), Err(IdError::Empty { what: "container" }));
        assert_eq!(
            SandboxId::new("x".repeat(256)),
            Err(IdError::TooLong {
                what: "sandbox",
                bytes: 256
            })
        );
    }

    #[test]
    fn deserialising_checks_too() {
        assert!(serde_json::from_str::<ContainerId>("\"a/b\"").is_err());
    }
}
