//! The table as text: `bulkhead config list`, `explain` and docs/options.md.
//!
//! Owns wording and layout only; every fact comes from the table. Called by the CLI and a test that fails
//! when the page in docs is stale.

use crate::load::Config;
use crate::opt::{Honour, Keeps, Opt, Section};
use crate::options::OPTIONS;
use crate::suggest::nearest;
use std::fmt::Write as _;

/// A name that is no option.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown option {name:?}{}", crate::suggest::hint(suggestion.as_deref()))]
pub struct UnknownOption {
    /// The name.
    pub name: String,
    /// The nearest option there is.
    pub suggestion: Option<String>,
}

/// Finds options by `section.key`, by key alone, or by annotation; a key can be in several sections.
///
/// # Errors
/// [`UnknownOption`] with a suggestion.
pub fn find(name: &str) -> Result<Vec<&'static Opt>, UnknownOption> {
    let found: Vec<&Opt> = OPTIONS
        .iter()
        .filter(|opt| {
            opt.name() == name
                || opt.key == name
                || opt.annotation().as_deref() == Some(name)
                || opt.columns.alias == Some(name)
        })
        .collect();
    if !found.is_empty() {
        return Ok(found);
    }
    let names: Vec<String> = OPTIONS.iter().map(Opt::name).collect();
    let key = name.rsplit('.').next().unwrap_or(name);
    let suggestion = nearest(name, names.iter().map(String::as_str))
        .map(str::to_owned)
        .or_else(|| {
            let key = nearest(key, OPTIONS.iter().map(|opt| opt.key))?;
            OPTIONS.iter().find(|opt| opt.key == key).map(Opt::name)
        });
    Err(UnknownOption {
        name: name.to_owned(),
        suggestion,
    })
}

/// Every option with its value and where it comes from, one line each, as TOML with comments.
#[must_use]
pub fn list(config: &Config) -> String {
    let mut text = String::new();
    for section in Section::ALL.into_iter().filter(|section| section.in_toml()) {
        let _ = writeln!(
            text,
            "{}[{}]",
            if text.is_empty() { "" } else { "\n" },
            section.name()
        );
        for opt in OPTIONS.iter().filter(|opt| opt.section == section) {
            let value = (opt.show)(config.settings());
            let origin = config
                .origin(&opt.name())
                .map_or_else(|| "default".to_owned(), |path| path.display().to_string());
            let _ = if value.is_empty() {
                writeln!(text, "# {} is unset  # {origin}", opt.key)
            } else {
                writeln!(text, "{} = {value}  # {origin}", opt.key)
            };
        }
    }
    text
}

/// Everything about one option, for a terminal.
#[must_use]
pub fn explain(opt: &Opt, config: &Config) -> String {
    let mut text = format!("{}\n  {}\n", opt.name(), opt.doc.trim());
    for (label, fact) in facts(opt) {
        let _ = writeln!(text, "  {label:<12} {fact}");
    }
    if opt.section.in_toml() {
        let value = (opt.show)(config.settings());
        let value = if value.is_empty() { "unset" } else { &value };
        let origin = config
            .origin(&opt.name())
            .map_or_else(|| "default".to_owned(), |path| path.display().to_string());
        let _ = writeln!(text, "  {:<12} {value} ({origin})", "now:");
    }
    text
}

/// docs/options.md.
#[must_use]
pub fn page() -> String {
    let mut text = String::from(
        "# Options\n\n\
         No option needs to be set. Files: `/etc/bulkhead/config.toml`, then `/etc/bulkhead/config.d/*.toml` in the\n\
         order of their names, or one file given by `--config`. A later file wins, key by key; an unknown key is an\n\
         error. `bulkhead config list` shows what is in force, `bulkhead config explain KEY` one option,\n\
         `bulkhead config check FILE` what is wrong with a file.\n\n\
         Annotations change the options of one sandbox. Those of the VM need `hypervisor.enable_annotations`. They are\n\
         read from the spec of the container that makes the sandbox; container options from each container's own.\n\n\
         This page is made from the table in `crates/config/src/options.rs`; a test fails when it is stale\n\
         (`BULKHEAD_BLESS=1 cargo test -p bulkhead-config reference_page` writes it anew).\n",
    );
    for section in Section::ALL {
        let title = match section {
            Section::Hypervisor => "`[hypervisor]`: the VM",
            Section::Runtime => "`[runtime]`: the host side",
            Section::Agent => "`[agent]`: the guest agent",
            Section::Factory => "`[factory]`: VMs kept ready",
            Section::Resource => "One container (annotations only)",
        };
        let _ = writeln!(text, "\n## {title}");
        for opt in OPTIONS.iter().filter(|opt| opt.section == section) {
            let _ = writeln!(text, "\n### `{}`\n\n{}\n", opt.key, opt.doc.trim());
            for (label, fact) in facts(opt) {
                let _ = writeln!(text, "- {label} {fact}");
            }
        }
    }
    text
}

fn facts(opt: &Opt) -> Vec<(&'static str, String)> {
    let default = opt.default();
    let mut facts = vec![
        ("type:", opt.kind.to_owned()),
        (
            "default:",
            if default.is_empty() {
                "unset".into()
            } else {
                default
            },
        ),
        ("expected:", opt.expected()),
        ("acts on:", opt.columns.applies.to_owned()),
        ("change it:", opt.columns.when.to_owned()),
    ];
    if let Some(annotation) = opt.annotation() {
        let mut fact = annotation;
        if let Some(alias) = opt.columns.alias {
            let _ = write!(fact, " or {alias}");
        }
        match opt.columns.keeps {
            Keeps::Never => {}
            Keeps::Empty => fact.push_str(" (empty: unchanged)"),
            Keeps::Zero => fact.push_str(" (0: unchanged)"),
        }
        facts.push(("annotation:", fact));
    }
    if let Some((globs, _)) = opt.columns.globs {
        facts.push((
            "allowed by:",
            format!("{}.{globs}, which must name the path", opt.section.name()),
        ));
    }
    if let Honour::DefaultOnly(reason) = opt.columns.honour {
        facts.push(("refused:", format!("any other value, as {reason}")));
    }
    facts
}
