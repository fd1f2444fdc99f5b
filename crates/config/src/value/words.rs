//! Experimental features (O-14).

use super::{OptionValue, Refused, Rule, strings, toml_strings};

/// Words out of a closed set, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Words(pub Vec<String>);

fn word(text: &str, rule: &Rule) -> Result<String, Refused> {
    match rule {
        Rule::OneOf(known) if known.contains(&text) => Ok(text.to_owned()),
        _ => Err(Refused::new(format!("{text:?}"), Words::expected(rule))),
    }
}

impl OptionValue for Words {
    const TYPE: &'static str = "list of features";

    /// Split on single spaces: two in a row make an empty feature, which is refused.
    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        text.split(' ')
            .map(|w| word(w, rule))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        strings(value, &Self::expected(rule))?
            .iter()
            .map(|w| word(w, rule))
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn to_toml(&self) -> String {
        toml_strings(&self.0)
    }

    fn expected(rule: &Rule) -> String {
        match rule {
            Rule::OneOf(known) if !known.is_empty() => {
                format!(
                    "features out of {} (annotation: separated by one space)",
                    known.join(", ")
                )
            }
            _ => "no feature: this version has no experimental features".to_owned(),
        }
    }
}
