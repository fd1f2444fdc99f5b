//! The types an option can have: one parser per type for annotation text, one for TOML.
//!
//! Owns: what a value looks like (O-17 and the typed lists of O-13, O-15) and the wording of what was
//! expected. Never: which option has which type (see `options`), files, annotations.
//! Called by the option table.

mod digest;
mod globs;
mod machine;
mod modules;
mod pairs;
mod patterns;
mod scalar;
mod words;

pub use digest::Digest;
pub use globs::Globs;
pub use machine::MachineType;
pub use modules::Modules;
pub use pairs::{CpuFeatures, KernelParams, MachineOptions};
pub use patterns::Patterns;
pub use scalar::Based;
pub use words::Words;

pub(crate) use scalar::signed;

/// A value that an option does not take.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Refused {
    /// The offending value, or the element of a list.
    pub value: String,
    /// What would have been right.
    pub expected: String,
}

impl Refused {
    /// `value` is not `expected`.
    pub fn new(value: impl Into<String>, expected: impl Into<String>) -> Self {
        Self {
            value: value.into(),
            expected: expected.into(),
        }
    }
}

/// What narrows a type for one option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rule {
    /// Nothing.
    Any,
    /// Numbers from the first to the second, both included.
    Range(u64, u64),
    /// One of these words.
    OneOf(&'static [&'static str]),
    /// An integer in one of these notations is meant by the reader (C-08).
    Below(u64),
}

/// A type an option can have.
pub trait OptionValue: Sized + Clone + PartialEq {
    /// Its name on the reference page.
    const TYPE: &'static str;

    /// Reads the text of an annotation.
    ///
    /// # Errors
    /// [`Refused`] with the offending value.
    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused>;

    /// Reads a TOML value.
    ///
    /// # Errors
    /// [`Refused`] with the offending value.
    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused>;

    /// The value as TOML; empty when it is not set.
    fn to_toml(&self) -> String;

    /// What is expected under `rule`, as it follows "expected".
    fn expected(rule: &Rule) -> String;

    /// Takes an annotation's value where the option adds to what is configured.
    fn append(&mut self, more: Self) {
        *self = more;
    }

    /// Whether it is the "nothing given" value of O-10 and O-13: zero or the empty string.
    fn is_nothing(&self) -> bool {
        false
    }
}

/// How a TOML value is shown in an error: strings quoted, the rest as written.
pub(crate) fn shown(value: &toml::Value) -> String {
    match value {
        toml::Value::String(text) => format!("{text:?}"),
        other => other.to_string(),
    }
}

/// The strings of a TOML array.
pub(crate) fn strings(value: &toml::Value, expected: &str) -> Result<Vec<String>, Refused> {
    let refuse = |value: &toml::Value| Refused::new(shown(value), expected);
    let array = value.as_array().ok_or_else(|| refuse(value))?;
    array
        .iter()
        .map(|item| item.as_str().map(str::to_owned).ok_or_else(|| refuse(item)))
        .collect()
}

/// A TOML array of strings.
pub(crate) fn toml_strings<S: AsRef<str>>(items: &[S]) -> String {
    let quoted: Vec<String> = items.iter().map(|s| quoted(s.as_ref())).collect();
    format!("[{}]", quoted.join(", "))
}

/// A TOML string.
pub(crate) fn quoted(text: &str) -> String {
    toml::Value::String(text.to_owned()).to_string()
}
