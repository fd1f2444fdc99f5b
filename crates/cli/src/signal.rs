//! Signal names as runc's `kill` reads them.
//!
//! Owns: name and number to number. Never: sends one. Called by the `kill` verb.

use nix::sys::signal::Signal;
use std::str::FromStr;

/// Highest signal number of Linux, signal(7).
pub(crate) const MAX_SIGNAL: i32 = 64;

/// Real-time signals as the C library numbers them for programs, signal(7).
const REAL_TIME: std::ops::RangeInclusive<i32> = 34..=64;

/// A text that is no signal.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("unknown signal {0:?}: expected a name such as TERM or SIGTERM, or a number from 0 to 64")]
pub(crate) struct UnknownSignal(pub String);

/// Reads a name with or without `SIG`, in any case, or a number. 0 asks whether the process is there.
///
/// # Errors
/// [`UnknownSignal`] naming the text.
pub(crate) fn parse(text: &str) -> Result<i32, UnknownSignal> {
    let unknown = || UnknownSignal(text.to_owned());
    if let Ok(number) = text.parse::<i32>() {
        return (0..=MAX_SIGNAL)
            .contains(&number)
            .then_some(number)
            .ok_or_else(unknown);
    }
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some(number) = real_time(name) {
        return Ok(number);
    }
    let name = match name {
        "CLD" => "CHLD",
        "POLL" => "IO",
        "IOT" => "ABRT",
        other => other,
    };
    Signal::from_str(&format!("SIG{name}"))
        .map(|signal| signal as i32)
        .map_err(|_| unknown())
}

fn real_time(name: &str) -> Option<i32> {
    let offset = |rest: &str| {
        if rest.is_empty() {
            Some(0)
        } else {
            rest.parse::<i32>().ok()
        }
    };
    let number = match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
        (Some(rest), _) => REAL_TIME.start().checked_add(offset(rest)?)?,
        (_, Some(rest)) => REAL_TIME.end().checked_add(offset(rest)?)?,
        _ => return None,
    };
    REAL_TIME.contains(&number).then_some(number)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGKILL", 9),
            ("sigkill", 9),
            ("Kill", 9),
            ("9", 9),
            ("0", 0),
            ("64", 64),
            ("SIGWINCH", 28),
            ("HUP", 1),
            ("CLD", 17),
            ("POLL", 29),
            ("IOT", 6),
            ("RTMIN", 34),
            ("SIGRTMIN+1", 35),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse(text), Ok(number), "{text}");
        }
    }

    #[test]
    fn what_is_no_signal_is_named() {
        for text in [
            "",
            "FOO",
            "SIG",
            "SIGSIGKILL",
            "65",
            "-1",
            "RTMIN+99",
            "RTMAX+1",
            "99999999999",
        ] {
            assert_eq!(parse(text), Err(UnknownSignal(text.into())), "{text}");
        }
    }
}
