//! `bulkhead config list|explain KEY|check FILE|reference`: the options, explained.
//!
//! Owns: which part of the option table is printed. Never: what options exist or mean (see the config crate).

use bulkhead_config::{Config, Source, reference};
use bulkhead_model::{Failure, FailureKind, failure::chain};
use std::io::Write;
use std::path::{Path, PathBuf};

/// Arguments of `bulkhead config`.
#[derive(Debug, clap::Args)]
pub(crate) struct ConfigArgs {
    #[command(subcommand)]
    verb: ConfigVerb,
}

#[derive(Debug, clap::Subcommand)]
enum ConfigVerb {
    /// Every option with its value and the file it comes from
    List,
    /// What an option is, takes and does, and when to change it
    Explain {
        /// Option: key, section.key or annotation
        key: String,
    },
    /// Everything that is wrong with a configuration file
    Check {
        /// The file
        file: PathBuf,
    },
    /// The reference page of all options, as Markdown
    Reference,
}

/// Runs the verb; `file` is the global `--config`.
///
/// # Errors
/// A configuration that cannot be used, an unknown option, a file with mistakes (one line for each).
pub(crate) fn run(args: &ConfigArgs, file: Option<&Path>, out: &mut dyn Write) -> Result<(), Failure> {
    let text = match &args.verb {
        ConfigVerb::List => reference::list(&load(file)?),
        ConfigVerb::Explain { key } => explain(key, &load(file)?)?,
        ConfigVerb::Check { file } => match Config::check(file) {
            Ok(_) => format!("{}: ok\n", file.display()),
            Err(errors) => {
                let lines: Vec<String> = errors.iter().map(|error| chain(error)).collect();
                return Err(Failure::new(FailureKind::InvalidArgument, lines.join("\n")));
            }
        },
        ConfigVerb::Reference => reference::page(),
    };
    out.write_all(text.as_bytes())
        .map_err(|error| Failure::from_chain(FailureKind::Internal, &error))
}

fn load(file: Option<&Path>) -> Result<Config, Failure> {
    Config::load(&Source::named(file))
        .map_err(|error| Failure::from_chain(FailureKind::InvalidArgument, &error))
}

fn explain(key: &str, config: &Config) -> Result<String, Failure> {
    let found =
        reference::find(key).map_err(|error| Failure::from_chain(FailureKind::InvalidArgument, &error))?;
    let texts: Vec<String> = found.iter().map(|opt| reference::explain(opt, config)).collect();
    Ok(texts.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::Parser as _;

    #[derive(clap::Parser)]
    struct Outer {
        #[command(flatten)]
        args: ConfigArgs,
    }

    fn config(words: &[&str]) -> Result<String, Failure> {
        let outer = Outer::parse_from([&["config"], words].concat());
        let mut out = Vec::new();
        // A file that is there and empty: the test does not depend on the host's configuration.
        let empty = tempfile::NamedTempFile::new().unwrap();
        run(&outer.args, Some(empty.path()), &mut out)?;
        Ok(String::from_utf8(out).unwrap())
    }

    #[test]
    fn lists_every_option_as_toml() {
        let text = config(&["list"]).unwrap();
        assert!(text.contains("default_vcpus = 1  # default"), "{text}");
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), &text).unwrap();
        Config::check(file.path()).unwrap();
    }

    #[test]
    fn explains_by_key_and_by_annotation() {
        let by_key = config(&["explain", "default_vcpus"]).unwrap();
        let annotation = "io.katacontainers.config.hypervisor.default_vcpus";
        assert!(by_key.contains(annotation), "{by_key}");
        assert_eq!(config(&["explain", annotation]).unwrap(), by_key);
        let failure = config(&["explain", "default_vcpu"]).unwrap_err();
        assert!(
            failure.message.contains("did you mean hypervisor.default_vcpus?"),
            "{failure}"
        );
    }

    #[test]
    fn check_names_every_mistake() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "[hypervisor]\ndefault_vcpus = 0\nkernal = \"/k\"\n").unwrap();
        let path = file.path().to_str().unwrap();
        let failure = config(&["check", path]).unwrap_err();
        assert_eq!(failure.message.lines().count(), 2, "{failure}");
        assert!(failure.message.contains("default_vcpus is 0"), "{failure}");
        assert!(
            failure.message.contains("did you mean hypervisor.kernel?"),
            "{failure}"
        );
    }
}
