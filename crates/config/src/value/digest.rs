//! SHA-512 digests in hexadecimal (O-16).

use super::{OptionValue, Refused, Rule, quoted, shown};

const EXPECTED: &str = "a SHA-512 digest: 128 hexadecimal digits";

/// A SHA-512 digest, kept in lower case; absent when not given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Digest(pub Option<String>);

impl OptionValue for Digest {
    const TYPE: &'static str = "SHA-512 in hexadecimal, may be unset";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        if text.len() == 128 && text.bytes().all(|b| b.is_ascii_hexdigit()) {
            Ok(Self(Some(text.to_ascii_lowercase())))
        } else {
            Err(Refused::new(format!("{text:?}"), EXPECTED))
        }
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some("") => Ok(Self(None)),
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), EXPECTED)),
        }
    }

    fn to_toml(&self) -> String {
        self.0.as_deref().map(quoted).unwrap_or_default()
    }

    fn expected(_: &Rule) -> String {
        EXPECTED.to_owned()
    }
}
