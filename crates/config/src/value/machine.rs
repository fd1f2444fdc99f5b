//! The machine type (O-13).

use super::{OptionValue, Refused, Rule, quoted, shown};

const EXPECTED: &str = "\"q35\" or a version of it such as \"pc-q35-7.2\"";

/// A machine with PCIe root ports: `q35` or `pc-q35-<major>.<minor>`; the empty text means unchanged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MachineType(pub String);

impl OptionValue for MachineType {
    const TYPE: &'static str = "machine type";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        let number =
            |part: &str| !part.is_empty() && part.len() < 4 && part.bytes().all(|b| b.is_ascii_digit());
        let versioned = text
            .strip_prefix("pc-q35-")
            .and_then(|version| version.split_once('.'))
            .is_some_and(|(major, minor)| number(major) && number(minor));
        if text == "q35" || versioned {
            Ok(Self(text.to_owned()))
        } else {
            Err(Refused::new(format!("{text:?}"), EXPECTED))
        }
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), EXPECTED)),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&self.0)
    }

    fn expected(_: &Rule) -> String {
        EXPECTED.to_owned()
    }
}
