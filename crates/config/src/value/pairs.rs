//! `key=value` lists that end up on a command line: kernel parameters, CPU features, machine options (O-13).
//!
//! Owns the three grammars; nothing that is not understood gets through, so no text of a user ever
//! reaches an argument uninterpreted.

use super::{OptionValue, Refused, Rule, quoted, shown};
use bulkhead_model::vm::KeyValue;

fn pair(text: &str) -> KeyValue {
    match text.split_once('=') {
        Some((key, value)) => KeyValue {
            key: key.to_owned(),
            value: Some(value.to_owned()),
        },
        None => KeyValue {
            key: text.to_owned(),
            value: None,
        },
    }
}

fn joined(pairs: &[KeyValue], separator: &str) -> String {
    let texts: Vec<String> = pairs
        .iter()
        .map(|pair| match &pair.value {
            Some(value) => format!("{}={value}", pair.key),
            None => pair.key.clone(),
        })
        .collect();
    texts.join(separator)
}

const PARAMS: &str = "kernel parameters separated by blanks, each key or key=value with a non-empty key";

/// Kernel parameters, separated by blanks, key and value at the first `=`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct KernelParams(pub Vec<KeyValue>);

impl OptionValue for KernelParams {
    const TYPE: &'static str = "kernel parameters";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        let key_char = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'' | ',' | '=' | '\\');
        // A quote would let a value swallow the parameters after it.
        let value_char = |c: char| c.is_ascii_graphic() && !matches!(c, '"' | '\'');
        text.split_whitespace()
            .map(|word| {
                let pair = pair(word);
                let legal = !pair.key.is_empty()
                    && pair.key.chars().all(key_char)
                    // Everything after a bare "--" would be handed to init.
                    && !pair.key.starts_with("--")
                    && pair.value.iter().all(|value| value.chars().all(value_char));
                if legal {
                    Ok(pair)
                } else {
                    Err(Refused::new(format!("{word:?}"), PARAMS))
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), PARAMS)),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&joined(&self.0, " "))
    }

    fn expected(_: &Rule) -> String {
        PARAMS.to_owned()
    }

    fn append(&mut self, more: Self) {
        self.0.extend(more.0);
    }
}

fn plain(text: &str) -> bool {
    !text.is_empty()
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'-' | b'.'))
}

const FEATURES: &str = "CPU features separated by commas, each name=on, name=off, name=value, +name or -name, for example \"pmu=off\"";

/// CPU features, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CpuFeatures(pub Vec<KeyValue>);

impl OptionValue for CpuFeatures {
    const TYPE: &'static str = "CPU features";

    fn from_text(text: &str, _: &Rule) -> Result<Self, Refused> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(|word| {
                let legal = match word.split_once('=') {
                    Some((key, value)) => plain(key) && !key.starts_with('-') && plain(value),
                    None => word.strip_prefix(['+', '-']).is_some_and(plain),
                };
                if legal {
                    Ok(pair(word))
                } else {
                    Err(Refused::new(format!("{word:?}"), FEATURES))
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), FEATURES)),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&joined(&self.0, ","))
    }

    fn expected(_: &Rule) -> String {
        FEATURES.to_owned()
    }
}

/// Machine options that may be set, with their values. Others (`kernel`, `dumpdtb`, `memory-backend`, …)
/// name host files or belong to the driver.
const MACHINE: &[(&str, &[&str])] = &[
    ("dump-guest-core", &["on", "off"]),
    ("hmat", &["on", "off"]),
    ("hpet", &["on", "off"]),
    ("i8042", &["on", "off"]),
    ("kernel_irqchip", &["on", "off", "split"]),
    ("mem-merge", &["on", "off"]),
    ("nvdimm", &["on", "off"]),
    ("pic", &["on", "off", "auto"]),
    ("pit", &["on", "off", "auto"]),
    ("sata", &["on", "off"]),
    ("smbus", &["on", "off"]),
    ("smm", &["on", "off", "auto"]),
    ("usb", &["on", "off"]),
    ("vmport", &["on", "off", "auto"]),
];

/// Machine options, separated by commas.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MachineOptions(pub Vec<KeyValue>);

impl OptionValue for MachineOptions {
    const TYPE: &'static str = "machine options";

    fn from_text(text: &str, rule: &Rule) -> Result<Self, Refused> {
        if text.is_empty() {
            return Ok(Self::default());
        }
        text.split(',')
            .map(|word| {
                let pair = pair(word);
                let values = MACHINE
                    .iter()
                    .find_map(|(key, values)| (*key == pair.key).then_some(*values));
                match (values, pair.value.as_deref()) {
                    (Some(values), Some(value)) if values.contains(&value) => Ok(pair),
                    (Some(values), _) => Err(Refused::new(
                        format!("{word:?}"),
                        format!("{}={}", pair.key, values.join("|")),
                    )),
                    (None, _) => Err(Refused::new(format!("{word:?}"), Self::expected(rule))),
                }
            })
            .collect::<Result<_, _>>()
            .map(Self)
    }

    fn from_toml(value: &toml::Value, rule: &Rule) -> Result<Self, Refused> {
        match value.as_str() {
            Some(text) => Self::from_text(text, rule),
            None => Err(Refused::new(shown(value), Self::expected(rule))),
        }
    }

    fn to_toml(&self) -> String {
        quoted(&joined(&self.0, ","))
    }

    fn expected(_: &Rule) -> String {
        let keys: Vec<&str> = MACHINE.iter().map(|(key, _)| *key).collect();
        format!(
            "key=value pairs separated by commas with keys out of {}",
            keys.join(", ")
        )
    }
}
