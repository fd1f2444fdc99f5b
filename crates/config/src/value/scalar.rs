//! Booleans, integers, words and paths (O-17, C-08).
//!
//! Owns: how each is written, in TOML and in annotations. Never: which option has which type. Called through the table of options.

use super::{OptionValue, Refused, Rule, quoted, shown};
use std::path::PathBuf;

impl OptionValue for bool {
    const TYPE: &'static str = "boolean";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        match text {
            "1" | "t" | "T" | "TRUE" | "true" | "True" => Ok(true),
            "0" | "f" | "F" | "FALSE" | "false" | "False" => Ok(false),
            _ => Err(Refused::new(format!("{text:?}"), Self::expected(rule))),
        }
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        value
            .as_bool()
            .ok_or_else(|| Refused::new(shown(value), Self::expected(rule)))
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }

    fn expected(_: &Rule) -> String {
        "true|false".to_owned()
    }
}

fn bounds(rule: &Rule) -> (u64, u64) {
    match *rule {
        Rule::Range(low, high) => (low, high),
        Rule::Below(high) => (0, high),
        Rule::Any | Rule::OneOf(_) => (0, u64::from(u32::MAX)),
    }
}

impl OptionValue for u32 {
    const TYPE: &'static str = "integer";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        let refuse = || Refused::new(format!("{text:?}"), Self::expected(rule));
        if text.is_empty() || !text.bytes().all(|b| b.is_ascii_digit()) {
            return Err(refuse());
        }
        let number: Self = text.parse().map_err(|_| refuse())?;
        let (low, high) = bounds(rule);
        if (low..=high).contains(&u64::from(number)) {
            Ok(number)
        } else {
            Err(refuse())
        }
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        let (low, high) = bounds(rule);
        value
            .as_integer()
            .and_then(|n| Self::try_from(n).ok())
            .filter(|n| (low..=high).contains(&u64::from(*n)))
            .ok_or_else(|| Refused::new(shown(value), Self::expected(rule)))
    }

    fn to_toml(&self) -> String {
        self.to_string()
    }

    fn expected(rule: &Rule) -> String {
        let (low, high) = bounds(rule);
        format!("a decimal integer from {low} to {high}")
    }

    fn is_nothing(&self) -> bool {
        *self == 0
    }
}

impl OptionValue for String {
    const TYPE: &'static str = "word";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        let legal = match rule {
            Rule::OneOf(words) => words.contains(&text),
            _ => !text.is_empty() && !text.contains(|c: char| c.is_control() || c.is_whitespace()),
        };
        if legal {
            Ok(text.to_owned())
        } else {
            Err(Refused::new(format!("{text:?}"), Self::expected(rule)))
        }
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), Self::expected(rule))),
        }
    }

    fn to_toml(&self) -> String {
        quoted(self)
    }

    fn expected(rule: &Rule) -> String {
        match rule {
            Rule::OneOf(words) => words
                .iter()
                .map(|w| format!("{w:?}"))
                .collect::<Vec<_>>()
                .join(" or "),
            _ => "a word without blanks".to_owned(),
        }
    }

    fn is_nothing(&self) -> bool {
        self.is_empty()
    }
}

/// A path that is handed on must be absolute and must mean the same to everyone who reads it.
fn absolute(text: &str) -> Option<PathBuf> {
    let clean = text.starts_with('/')
        && !text.contains(|c: char| c.is_control())
        && text.split('/').all(|element| element != "." && element != "..");
    clean.then(|| PathBuf::from(text))
}

const ABSOLUTE: &str = "an absolute path without \".\" and \"..\" elements";

impl OptionValue for PathBuf {
    const TYPE: &'static str = "path";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        absolute(text).ok_or_else(|| Refused::new(format!("{text:?}"), ABSOLUTE))
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), ABSOLUTE)),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&self.to_string_lossy())
    }

    fn expected(_: &Rule) -> String {
        ABSOLUTE.to_owned()
    }
}

/// A path that need not be set; in TOML the empty string unsets it.
impl OptionValue for Option<PathBuf> {
    const TYPE: &'static str = "path, may be unset";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        PathBuf::from_text(text, rule).map(Some)
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some("") => Ok(None),
            _ => PathBuf::from_toml(value, rule).map(Some),
        }
    }

    fn to_toml(&self) -> String {
        self.as_ref().map(PathBuf::to_toml).unwrap_or_default()
    }

    fn expected(rule: &Rule) -> String {
        PathBuf::expected(rule)
    }
}

/// An unsigned number in any of the notations 10, 0x0a, 0o12, 012, 0b1010; absent when not given (C-08).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Based(pub Option<u64>);

impl OptionValue for Based {
    const TYPE: &'static str = "integer, base prefixes 0x 0o 0b and leading 0 accepted";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        let (digits, radix) = match text.as_bytes() {
            [b'0', b'x' | b'X', ..] => (&text[2..], 16),
            [b'0', b'o' | b'O', ..] => (&text[2..], 8),
            [b'0', b'b' | b'B', ..] => (&text[2..], 2),
            [b'0', _, ..] => (&text[1..], 8),
            _ => (text, 10),
        };
        let (low, high) = bounds(rule);
        // from_str_radix takes a sign, which is none of ours.
        let number = if digits.starts_with(['+', '-']) {
            None
        } else {
            u64::from_str_radix(digits, radix).ok()
        };
        number
            .filter(|n| (low..=high).contains(n))
            .map(|n| Self(Some(n)))
            .ok_or_else(|| Refused::new(format!("{text:?}"), Self::expected(rule)))
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        let (low, high) = bounds(rule);
        value
            .as_integer()
            .and_then(|n| u64::try_from(n).ok())
            .filter(|n| (low..=high).contains(n))
            .map(|n| Self(Some(n)))
            .ok_or_else(|| Refused::new(shown(value), Self::expected(rule)))
    }

    fn to_toml(&self) -> String {
        self.0.map(|n| n.to_string()).unwrap_or_default()
    }

    fn expected(rule: &Rule) -> String {
        let (low, high) = bounds(rule);
        format!("an unsigned integer from {low} to {high} (decimal, 0x, 0o, 0b or leading 0)")
    }
}

/// A signed decimal number, as engines write into sizing annotations.
pub(crate) fn signed(text: &str) -> Result<i64, Refused> {
    let digits = text.strip_prefix('-').unwrap_or(text);
    let refuse = || {
        Refused::new(
            format!("{text:?}"),
            format!("a decimal integer from {} to {}", i64::MIN, i64::MAX),
        )
    };
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return Err(refuse());
    }
    text.parse().map_err(|_| refuse())
}
