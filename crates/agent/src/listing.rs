//! The processes of a container as `ps` wants them (contract C-22; proc(5)).
//!
//! Owns: reading `/proc`. Never: opens a container's file through a link out of it.

use crate::passwd;
use bulkhead_protocol::api::agent::GuestProcess;
use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use std::collections::HashMap;
use std::fs::{self, File};

/// Ticks per second of `/proc/<pid>/stat`: USER_HZ, the same on every x86 kernel.
const TICKS: u64 = 100;

/// Those of `pids` that still live. `init` is a process of the container, for its user names; `execs` maps pids
/// to exec ids.
#[must_use]
pub(crate) fn list(pids: &[i32], init: i32, execs: &HashMap<i32, String>) -> Vec<GuestProcess> {
    let boot = boot_time();
    let names = user_names(init);
    pids.iter()
        .filter_map(|pid| one(*pid, boot, &names, execs))
        .collect()
}

fn boot_time() -> u64 {
    fs::read_to_string("/proc/stat")
        .ok()
        .and_then(|text| {
            text.lines()
                .find_map(|line| line.strip_prefix("btime ")?.trim().parse().ok())
        })
        .unwrap_or(0)
}

fn user_names(init: i32) -> HashMap<u32, String> {
    let open = || -> Option<File> {
        let root = File::open(format!("/proc/{init}/root")).ok()?;
        let how = OpenHow::new()
            .flags(OFlag::O_RDONLY | OFlag::O_CLOEXEC | OFlag::O_NONBLOCK)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        let file = File::from(openat2(&root, "etc/passwd", how).ok()?);
        file.metadata().ok()?.is_file().then_some(file)
    };
    let mut names = HashMap::new();
    if let Some(file) = open() {
        for user in passwd::parse(file) {
            names.entry(user.uid).or_insert(user.name);
        }
    }
    names
}

#[derive(Debug, PartialEq, Eq)]
struct Stat {
    command: String,
    state: String,
    ppid: i32,
    tty: u32,
    cpu_ticks: u64,
    start_ticks: u64,
}

/// proc_pid_stat(5); the command is in parentheses and may hold anything.
fn parse_stat(text: &str) -> Option<Stat> {
    let (head, tail) = text.rsplit_once(')')?;
    let command = head.split_once('(')?.1.to_owned();
    let fields: Vec<&str> = tail.split_whitespace().collect();
    let number = |index: usize| fields.get(index)?.parse::<u64>().ok();
    Some(Stat {
        command,
        state: (*fields.first()?).to_owned(),
        ppid: fields.get(1)?.parse().ok()?,
        tty: fields.get(4)?.parse::<i32>().ok()?.cast_unsigned(),
        cpu_ticks: number(11)? + number(12)?,
        start_ticks: number(19)?,
    })
}

fn tty_name(device: u32) -> String {
    let (major, minor) = (
        (device >> 8) & 0xfff,
        (device & 0xff) | ((device >> 12) & 0xf_ff00),
    );
    match major {
        0 => "?".to_owned(),
        136..=143 => format!("pts/{}", (major - 136) * 256 + minor),
        4 => format!("tty{minor}"),
        _ => format!("{major}:{minor}"),
    }
}

fn one(
    pid: i32,
    boot: u64,
    names: &HashMap<u32, String>,
    execs: &HashMap<i32, String>,
) -> Option<GuestProcess> {
    let stat = parse_stat(&fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)?;
    let status = fs::read_to_string(format!("/proc/{pid}/status")).ok()?;
    let uid: u32 = status
        .lines()
        .find_map(|line| line.strip_prefix("Uid:")?.split_whitespace().next()?.parse().ok())
        .unwrap_or(0);
    let command = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let command = String::from_utf8_lossy(&command)
        .trim_end_matches('\0')
        .replace('\0', " ");
    Some(GuestProcess {
        pid,
        ppid: stat.ppid,
        uid,
        user: names.get(&uid).cloned().unwrap_or_else(|| uid.to_string()),
        exec: execs.get(&pid).cloned().unwrap_or_default(),
        command: if command.is_empty() {
            format!("[{}]", stat.command)
        } else {
            command
        },
        cpu_s: stat.cpu_ticks / TICKS,
        started_s: boot + stat.start_ticks / TICKS,
        tty: tty_name(stat.tty),
        state: stat.state,
        ..GuestProcess::default()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stat_with_an_odd_command() {
        let text = "12 (a) b (c) S 3 12 12 34816 12 0 0 0 0 0 250 150 0 0 20 0 1 0 5000 0 0";
        assert_eq!(
            parse_stat(text),
            Some(Stat {
                command: "a) b (c".to_owned(),
                state: "S".to_owned(),
                ppid: 3,
                tty: 34816,
                cpu_ticks: 400,
                start_ticks: 5000,
            })
        );
    }

    #[test]
    fn terminals_have_names() {
        assert_eq!(tty_name(0), "?");
        assert_eq!(tty_name(34816), "pts/0");
        assert_eq!(tty_name(34817), "pts/1");
    }

    #[test]
    fn lists_itself() {
        let pid = std::process::id() as i32;
        let all = list(&[pid, i32::MAX], pid, &HashMap::new());
        assert_eq!(all.len(), 1);
        assert!(!all[0].command.is_empty() && all[0].started_s > 0);
    }
}
