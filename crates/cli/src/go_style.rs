//! Runc's spelling of options, turned into ours: Go's flag package takes `-bundle x` for `--bundle x` and
//! `--detach=true` for `--detach`.
//!
//! Owns: rewriting words, by the options the command knows. Never: what an option means. Called by `lib`
//! before clap sees the words.

use clap::{Arg, ArgAction, Command};
use std::ffi::{OsStr, OsString};

/// Rewrites the words after the program's name. Words that are not understood stay as they are, so that
/// clap complains about them as typed. What follows `--`, or the program of `exec`, is left alone.
pub(crate) fn normalise(command: &Command, words: impl IntoIterator<Item = OsString>) -> Vec<OsString> {
    let mut walk = Walk {
        global: command,
        verb: None,
        positionals: 0,
    };
    let mut out = Vec::new();
    let mut words = words.into_iter();
    while let Some(word) = words.next() {
        let Some(text) = word.to_str() else {
            walk.positional(OsStr::new(""));
            out.push(word);
            continue;
        };
        if text == "--" || walk.program_begins() {
            out.push(word);
            break;
        }
        if !text.starts_with('-') || text == "-" {
            walk.positional(&word);
            out.push(word);
            continue;
        }
        let (name, value) = text
            .split_once('=')
            .map_or((text, None), |(name, value)| (name, Some(value)));
        match (walk.find(name), value) {
            (Some(arg), Some(value)) if !takes_value(arg) => match truth(value) {
                Some(true) => out.push(long(arg, name).into()),
                Some(false) => {}
                None => out.push(word),
            },
            (Some(arg), Some(value)) => out.push(format!("{}={value}", long(arg, name)).into()),
            (Some(arg), None) => {
                let takes = takes_value(arg);
                let name = long(arg, name);
                match if takes { words.next() } else { None } {
                    // Joined, so that a value such as -1 is not taken for an option.
                    Some(value) if name.starts_with("--") => {
                        let mut joined = OsString::from(name);
                        joined.push("=");
                        joined.push(value);
                        out.push(joined);
                    }
                    Some(value) => out.extend([name.into(), value]),
                    None => out.push(name.into()),
                }
            }
            (None, _) => out.push(word),
        }
    }
    out.extend(words);
    out
}

struct Walk<'a> {
    global: &'a Command,
    verb: Option<&'a Command>,
    positionals: usize,
}

impl<'a> Walk<'a> {
    fn positional(&mut self, word: &OsStr) {
        match self.verb {
            None => self.verb = self.global.find_subcommand(word),
            Some(_) => self.positionals += 1,
        }
    }

    /// Whether the next word is part of a program's own words. Options are accepted between the container
    /// id and the program.
    fn program_begins(&self) -> bool {
        let limit = match self.verb.map(Command::get_name) {
            Some("exec") => 2,
            Some("ps") => 1,
            _ => return false,
        };
        self.positionals >= limit
    }

    /// The option spelled `word` (with one or two dashes, long or short).
    fn find(&self, word: &str) -> Option<&'a Arg> {
        let name = word.strip_prefix("--").or_else(|| word.strip_prefix('-'))?;
        let known = |arg: &&Arg| {
            arg.get_long() == Some(name)
                || arg
                    .get_short()
                    .is_some_and(|c| name.chars().eq([c]) && !word.starts_with("--"))
        };
        self.verb
            .and_then(|verb| verb.get_arguments().find(known))
            .or_else(|| self.global.get_arguments().find(known))
    }
}

fn takes_value(arg: &Arg) -> bool {
    matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
}

fn long(arg: &Arg, typed: &str) -> String {
    arg.get_long()
        .map_or_else(|| typed.to_owned(), |long| format!("--{long}"))
}

/// Booleans as Go reads them (also contract O-17).
fn truth(value: &str) -> Option<bool> {
    match value {
        "1" | "t" | "T" | "TRUE" | "true" | "True" => Some(true),
        "0" | "f" | "F" | "FALSE" | "false" | "False" => Some(false),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::invocation::Invocation;
    use clap::CommandFactory;

    fn rewritten(line: &str) -> String {
        let words = line.split_whitespace().map(OsString::from);
        let out = normalise(&Invocation::command(), words);
        let text: Vec<_> = out.iter().map(|w| w.to_string_lossy()).collect();
        text.join(" ")
    }

    #[test]
    fn go_spellings_become_ours() {
        for (typed, ours) in [
            ("run -bundle b x", "run --bundle=b x"),
            ("run -b b x", "run --bundle=b x"),
            ("run --detach=true --keep=false x", "run --detach x"),
            ("-log-format=json state x", "--log-format=json state x"),
            ("update --cpu-quota -1 x", "update --cpu-quota=-1 x"),
            ("update x -memory-swap -1", "update x --memory-swap=-1"),
            ("kill -a x 9", "kill --all x 9"),
            ("exec -t x sh -t -c true", "exec --tty x sh -t -c true"),
            ("exec x -t sh -t", "exec x --tty sh -t"),
            ("exec -- x sh -t", "exec -- x sh -t"),
            ("ps x -f json", "ps x -f json"),
            ("run --detach=maybe x", "run --detach=maybe x"),
            ("run -nonsense x", "run -nonsense x"),
            ("run x -b", "run x --bundle"),
        ] {
            assert_eq!(rewritten(typed), ours, "{typed}");
        }
    }
}
