//! Kernel modules to load in the guest (O-15).

use super::{OptionValue, Refused, Rule, strings, toml_strings};

const EXPECTED: &str = "module names, each followed by its parameters (annotation: separated by \";\")";

/// Modules, each `name parameter…`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Modules(pub Vec<String>);

fn module(text: &str) -> Result<String, Refused> {
    let words: Vec<&str> = text.split_whitespace().collect();
    let legal = words.first().is_some_and(|name| {
        name.bytes()
            .all(|b| b.is_ascii_alphanumeric() || b == b'_' || b == b'-')
    }) && !text.contains(|c: char| c.is_control());
    if legal {
        Ok(words.join(" "))
    } else {
        Err(Refused::new(format!("{text:?}"), EXPECTED))
    }
}

impl OptionValue for Modules {
    const TYPE: &'static str = "list of modules with parameters";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        text.split(';').map(module).collect::<Result<_, _>>().map(Self)
    }

    fn from_toml(value: &toml::Value, _: &Rule) -> Result<Self, Refused> {
        strings(value, EXPECTED)?
            .iter()
            .map(|text| module(text))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn to_toml(&self) -> String {
        toml_strings(&self.0)
    }

    fn expected(_: &Rule) -> String {
        EXPECTED.to_owned()
    }
}
