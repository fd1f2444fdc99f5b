//! Lists of path patterns that annotations are held against (O-08).
//!
//! Owns: the match. Never: looks at a path. Called through the table of options.

use super::{OptionValue, Refused, Rule, strings, toml_strings};

const EXPECTED: &str = "a list of absolute path patterns, for example [\"/usr/bin/qemu-system-*\"]";

/// Shell patterns of absolute paths; `*`, `?` and `[…]` do not cross a `/`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Globs(Vec<String>);

impl Globs {
    /// Whether one of the patterns names `path`. Existence is the caller's to check.
    #[must_use]
    pub fn name(&self, path: &str) -> bool {
        let options = glob::MatchOptions {
            case_sensitive: true,
            require_literal_separator: true,
            require_literal_leading_dot: true,
        };
        self.0
            .iter()
            .filter_map(|text| glob::Pattern::new(text).ok())
            .any(|pattern| pattern.matches_with(path, options))
    }

    /// The patterns.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.0
    }
}

impl OptionValue for Globs {
    const TYPE: &'static str = "list of path patterns";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        // The table gives no annotation to a list that annotations are held against.
        Err(Refused::new(format!("{text:?}"), EXPECTED))
    }

    fn from_toml(value: &toml::Value, _: &Rule) -> Result<Self, Refused> {
        let patterns = strings(value, EXPECTED)?;
        for text in &patterns {
            if !text.starts_with('/') {
                return Err(Refused::new(format!("{text:?}"), EXPECTED));
            }
            // "**" would cross directories, which the rule above promises not to happen.
            if text.contains("**") || glob::Pattern::new(text).is_err() {
                return Err(Refused::new(
                    format!("{text:?}"),
                    "a path pattern of *, ? and closed [...] groups",
                ));
            }
        }
        Ok(Self(patterns))
    }

    fn to_toml(&self) -> String {
        toml_strings(&self.0)
    }

    fn expected(_: &Rule) -> String {
        EXPECTED.to_owned()
    }
}
