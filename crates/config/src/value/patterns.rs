//! The allow-list of annotations (O-07).
//!
//! Owns: the match of a name. Never: what the annotation says. Called through the table of options.

use super::{OptionValue, Refused, Rule, strings, toml_strings};

const EXPECTED: &str = "a list of regular expressions, for example [\"default_vcpus\", \"enable_.*\"]";

/// Regular expressions, anchored at both ends, checked when read.
#[derive(Debug, Clone, Default)]
pub struct Patterns {
    texts: Vec<String>,
    compiled: Vec<regex::Regex>,
}

impl PartialEq for Patterns {
    fn eq(&self, other: &Self) -> bool {
        self.texts == other.texts
    }
}

impl Patterns {
    /// Whether one of the expressions matches all of `name`. An empty list matches nothing.
    #[must_use]
    pub fn allow(&self, name: &str) -> bool {
        self.compiled.iter().any(|regex| regex.is_match(name))
    }

    /// The expressions as written.
    #[must_use]
    pub fn as_slice(&self) -> &[String] {
        &self.texts
    }
}

impl OptionValue for Patterns {
    const TYPE: &'static str = "list of regular expressions";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        // The table gives no annotation to the allow-list of annotations.
        Err(Refused::new(format!("{text:?}"), EXPECTED))
    }

    fn from_toml(value: &toml::Value, _: &Rule) -> Result<Self, Refused> {
        let texts = strings(value, EXPECTED)?;
        let compiled = texts
            .iter()
            .map(|text| {
                // Compiled bare first: "a)|(b" must not become legal by being wrapped.
                regex::Regex::new(text)
                    .and_then(|_| regex::Regex::new(&format!(r"\A(?:{text})\z")))
                    .map_err(|_| Refused::new(format!("{text:?}"), "a regular expression"))
            })
            .collect::<Result<_, _>>()?;
        Ok(Self { texts, compiled })
    }

    fn to_toml(&self) -> String {
        toml_strings(&self.texts)
    }

    fn expected(_: &Rule) -> String {
        EXPECTED.to_owned()
    }
}
