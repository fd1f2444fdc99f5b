//! A variant of the configuration, as a bench is given it: `NAME` or `NAME:option=value,option=value`.
//!
//! Owns: that form and the files that come of it. Never: knows an option. Called by `compare`.

use std::str::FromStr;

/// A name and the options of the table `hypervisor` that make it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Variant {
    /// The head of its column.
    pub(super) name: String,
    /// Option and value, in the configuration's own form.
    pub(super) options: Vec<(String, String)>,
}

impl FromStr for Variant {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, options) = text.split_once(':').unwrap_or((text, ""));
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err(format!(
                "name {name:?}: expected letters, digits, dots and dashes"
            ));
        }
        let pairs = options.split(',').filter(|pair| !pair.is_empty());
        let options = pairs.map(|pair| match pair.split_once('=') {
            Some((option, value)) => Ok((option.to_owned(), toml(value))),
            None => Err(format!("{pair:?}: expected option=value")),
        });
        Ok(Self {
            name: name.to_owned(),
            options: options.collect::<Result<_, _>>()?,
        })
    }
}

impl Variant {
    /// The value of an option, if this variant has one of its own.
    pub(super) fn value(&self, option: &str) -> Option<&str> {
        let found = self.options.iter().find(|(name, _)| name == option)?;
        Some(found.1.trim_matches('"'))
    }

    /// `base` with these options in place of its own, and `more` in its last table, that of templates.
    pub(super) fn configuration(&self, base: &str, vmm: &str, more: &str) -> String {
        let own = |line: &str| {
            let name = line.split('=').next().unwrap_or_default().trim();
            name == "path" || self.options.iter().any(|(option, _)| option == name)
        };
        let mut text = String::new();
        for line in base.lines().filter(|line| !own(line)) {
            text.push_str(&format!("{line}\n"));
            if line.trim() == "[hypervisor]" {
                text.push_str(&format!("path = {vmm:?}\n"));
                for (option, value) in &self.options {
                    text.push_str(&format!("{option} = {value}\n"));
                }
            }
        }
        text + more
    }
}

/// Numbers and truth values as they are, all else is text.
fn toml(value: &str) -> String {
    if value.parse::<i64>().is_ok() || value.parse::<bool>().is_ok() {
        value.to_owned()
    } else {
        format!("{value:?}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_variant_replaces_what_the_base_says() {
        let variant: Variant = "small:kernel=/k,default_memory=256".parse().unwrap();
        assert_eq!(
            (variant.name.as_str(), variant.value("kernel")),
            ("small", Some("/k"))
        );
        assert_eq!(variant.value("initrd"), None);
        let base = "[hypervisor]\nkernel = \"/other\"\ninitrd = \"/i\"\n[factory]\ntemplate_path = \"/t\"\n";
        assert_eq!(
            variant.configuration(base, "/q", "template = \"off\"\n"),
            "[hypervisor]\npath = \"/q\"\nkernel = \"/k\"\ndefault_memory = 256\ninitrd = \"/i\"\n[factory]\n\
             template_path = \"/t\"\ntemplate = \"off\"\n"
        );
    }

    #[test]
    fn what_is_no_variant_says_what_one_is() {
        assert!("".parse::<Variant>().is_err());
        assert!("a b".parse::<Variant>().is_err());
        assert!(
            "a:kernel"
                .parse::<Variant>()
                .unwrap_err()
                .contains("option=value")
        );
        assert_eq!("a".parse::<Variant>().unwrap().options, []);
    }
}
