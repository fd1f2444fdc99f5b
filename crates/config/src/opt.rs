//! What is known about one option, and the macro that turns the table into typed settings.
//!
//! ```text
//!  options! { … }  ─►  struct Settings { hypervisor: Hypervisor { default_vcpus: u32, … }, … }
//!                  └►  static OPTIONS: &[Opt]   (parser, annotations, list, explain, docs, tests)
//! ```
//!
//! Owns the columns of the table. Never: the rows (see `options`).

use crate::options::Settings;
use crate::value::{Globs, Refused, Rule};

/// A part of the configuration: a TOML table and an annotation prefix.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Section {
    /// The VM.
    Hypervisor,
    /// The host side.
    Runtime,
    /// The guest agent.
    Agent,
    /// VMs kept ready.
    Factory,
    /// One container; annotations only.
    Resource,
}

impl Section {
    /// All sections, in the order of the reference page.
    pub const ALL: [Self; 5] = [
        Self::Hypervisor,
        Self::Runtime,
        Self::Agent,
        Self::Factory,
        Self::Resource,
    ];

    /// Name of the TOML table and first part of an option's name.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Hypervisor => "hypervisor",
            Self::Runtime => "runtime",
            Self::Agent => "agent",
            Self::Factory => "factory",
            Self::Resource => "resource",
        }
    }

    /// Prefix of its annotations; `None` when it has none.
    #[must_use]
    pub(crate) const fn annotation_prefix(self) -> Option<&'static str> {
        match self {
            Self::Hypervisor => Some("io.katacontainers.config.hypervisor."),
            Self::Runtime => Some("io.katacontainers.config.runtime."),
            Self::Agent => Some("io.katacontainers.config.agent."),
            Self::Factory => None,
            Self::Resource => Some("io.katacontainers.container.resource."),
        }
    }

    /// Whether it can be set in a configuration file.
    #[must_use]
    pub const fn in_toml(self) -> bool {
        !matches!(self, Self::Resource)
    }
}

/// When an annotation leaves the configured value as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Keeps {
    /// Never.
    Never,
    /// When its text is empty (O-13).
    Empty,
    /// When it is zero (O-10).
    Zero,
}

/// Whether a value can have its effect.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Honour {
    /// Every value the type and the rule allow.
    Every,
    /// Only the default, for the reason given: another value is an error, never ignored.
    DefaultOnly(&'static str),
}

/// The list of globs a path option is held against: the name of the option that has it, and its value.
pub type GlobsOf = (&'static str, fn(&Settings) -> &Globs);

/// The columns that have a usual value.
#[derive(Debug, Clone, Copy)]
pub struct Columns {
    /// What narrows the type.
    pub rule: Rule,
    /// Whether an annotation can set it.
    pub annotation: bool,
    /// A second annotation of the same meaning.
    pub alias: Option<&'static str>,
    /// For paths an annotation may only name when a glob does too (O-08).
    pub globs: Option<GlobsOf>,
    /// When an annotation changes nothing.
    pub keeps: Keeps,
    /// Whether each value can have its effect.
    pub honour: Honour,
    /// What it acts on.
    pub applies: &'static str,
    /// When to change it.
    pub when: &'static str,
}

impl Columns {
    /// What a row has unless it says otherwise.
    pub(crate) const USUAL: Self = Self {
        rule: Rule::Any,
        annotation: false,
        alias: None,
        globs: None,
        keeps: Keeps::Never,
        honour: Honour::Every,
        applies: "the sandbox",
        when: "",
    };
}

/// One option.
#[derive(Debug)]
pub struct Opt {
    /// The part it belongs to.
    pub section: Section,
    /// Its key in the TOML table and the end of its annotation.
    pub key: &'static str,
    /// One line.
    pub doc: &'static str,
    /// Name of its type.
    pub kind: &'static str,
    /// The other columns.
    pub columns: Columns,
    /// Sets it from an annotation's text; says whether anything was set.
    pub set_text: fn(&mut Settings, &str, &Columns) -> Result<bool, Refused>,
    /// Sets it from TOML.
    pub set_toml: fn(&mut Settings, &toml::Value, &Rule) -> Result<(), Refused>,
    /// Its value as TOML, empty when unset.
    pub show: fn(&Settings) -> String,
    /// What the type and a rule expect.
    pub expected: fn(&Rule) -> String,
}

impl Opt {
    /// `section.key`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}.{}", self.section.name(), self.key)
    }

    /// Its annotation, when it has one.
    #[must_use]
    pub fn annotation(&self) -> Option<String> {
        let prefix = self.section.annotation_prefix()?;
        self.columns.annotation.then(|| format!("{prefix}{}", self.key))
    }

    /// What it expects.
    #[must_use]
    pub fn expected(&self) -> String {
        (self.expected)(&self.columns.rule)
    }

    /// Its default as TOML, empty when unset.
    #[must_use]
    pub fn default(&self) -> String {
        (self.show)(&Settings::default())
    }
}

/// The table: sections, and in each the options with type, default and columns.
macro_rules! options {
    ($(
        #[doc = $section_doc:literal]
        $section:ident = $Section:ident {
            $(
                #[doc = $doc:literal]
                $key:ident: $type:ty = $default:expr, { $($column:ident: $value:expr),* $(,)? }
            )*
        }
    )*) => {
        $(
            #[doc = $section_doc]
            #[derive(Debug, Clone, PartialEq)]
            pub struct $Section {
                $(#[doc = $doc] pub $key: $type,)*
            }

            impl Default for $Section {
                fn default() -> Self {
                    Self { $($key: $default,)* }
                }
            }
        )*

        /// Every option's value, typed.
        #[derive(Debug, Clone, PartialEq, Default)]
        pub struct Settings {
            $(#[doc = $section_doc] pub $section: $Section,)*
        }

        /// Every option, in the order of the reference page.
        pub static OPTIONS: &[Opt] = &[
            $($(
                Opt {
                    section: Section::$Section,
                    key: stringify!($key),
                    doc: $doc,
                    kind: <$type as OptionValue>::TYPE,
                    columns: Columns { $($column: $value,)* ..Columns::USUAL },
                    set_text: |settings, text, columns| {
                        if columns.keeps == Keeps::Empty && text.is_empty() {
                            return Ok(false);
                        }
                        let value = <$type as OptionValue>::from_text(text, &columns.rule)?;
                        if columns.keeps == Keeps::Zero && value.is_nothing() {
                            return Ok(false);
                        }
                        settings.$section.$key.append(value);
                        Ok(true)
                    },
                    set_toml: |settings, value, rule| {
                        settings.$section.$key = <$type as OptionValue>::from_toml(value, rule)?;
                        Ok(())
                    },
                    show: |settings| settings.$section.$key.to_toml(),
                    expected: <$type as OptionValue>::expected,
                },
            )*)*
        ];
    };
}
pub(crate) use options;
