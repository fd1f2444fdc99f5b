//! `ps`: the processes in a container (C-22), with the columns of `ps -ef` or those `-o` names.
//!
//! Pids are the guest's. The JSON form is what engines ask for to look at host processes: it has the host
//! pids of the processes that stand for the container's.

use super::{Outcome, print_text};
use crate::context::{CALL, Context, unexpected};
use bulkhead_model::{ContainerSnapshot, Failure, FailureKind, State};
use bulkhead_protocol::GuestProcess;
use bulkhead_sandbox::{Command, Reply};
use clap::{Args, ValueEnum};
use std::time::{SystemTime, UNIX_EPOCH};
use time::OffsetDateTime;

/// Output forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// A list of pids.
    Json,
}

/// Options of `ps`.
#[derive(Debug, Args)]
pub(crate) struct Ps {
    /// Output form
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Id of the container
    #[arg(value_name = "CONTAINER-ID")]
    pub(crate) id: String,
    /// Options of ps: -e, -f, -o COLUMN,…
    #[arg(
        value_name = "PS-OPTIONS",
        trailing_var_arg = true,
        allow_hyphen_values = true
    )]
    pub(crate) options: Vec<String>,
}

impl Ps {
    /// Runs the verb.
    ///
    /// # Errors
    /// A ps option or column that is not known, what the guest reports.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let (format, columns) = chosen(self.format, &self.options)?;
        let mut found = context.find(&self.id)?;
        if format == Format::Json {
            let pids = serde_json::json!(host_pids(&found.container));
            return print_text(&format!("{pids}\n"));
        }
        let processes = match found.container.state {
            State::Stopped => Vec::new(),
            State::Ready | State::Running | State::Paused => {
                match found
                    .client
                    .call(&Command::Processes { id: found.id.clone() }, Some(CALL))?
                {
                    Reply::Processes { processes } => processes,
                    other => return Err(unexpected(&other)),
                }
            }
        };
        let now = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        print_text(&table(&columns, &processes, now))
    }
}

fn host_pids(container: &ContainerSnapshot) -> Vec<i32> {
    if container.state == State::Stopped {
        return Vec::new();
    }
    std::iter::once(&container.init)
        .chain(&container.execs)
        .filter(|process| process.exit.is_none())
        .filter_map(|process| process.host.map(|host| host.pid))
        .collect()
}

/// A column of the table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Column {
    User,
    Uid,
    Pid,
    Ppid,
    C,
    Start,
    Tty,
    Time,
    Command,
    Name,
    State,
    Elapsed,
}

/// The names of columns, as ps(1) has them, and their headings.
const COLUMNS: [(&str, Column, &str); 22] = [
    ("user", Column::User, "USER"),
    ("euser", Column::User, "EUSER"),
    ("uname", Column::User, "USER"),
    ("uid", Column::Uid, "UID"),
    ("euid", Column::Uid, "EUID"),
    ("pid", Column::Pid, "PID"),
    ("ppid", Column::Ppid, "PPID"),
    ("c", Column::C, "C"),
    ("stime", Column::Start, "STIME"),
    ("start", Column::Start, "STARTED"),
    ("tty", Column::Tty, "TT"),
    ("tt", Column::Tty, "TT"),
    ("tname", Column::Tty, "TTY"),
    ("time", Column::Time, "TIME"),
    ("cputime", Column::Time, "TIME"),
    ("cmd", Column::Command, "CMD"),
    ("args", Column::Command, "COMMAND"),
    ("command", Column::Command, "COMMAND"),
    ("comm", Column::Name, "COMMAND"),
    ("ucmd", Column::Name, "CMD"),
    ("s", Column::State, "S"),
    ("etime", Column::Elapsed, "ELAPSED"),
];

type Columns = Vec<(Column, String)>;

/// `ps -ef`.
fn full() -> Columns {
    let shown = [
        (Column::User, "UID"),
        (Column::Pid, "PID"),
        (Column::Ppid, "PPID"),
        (Column::C, "C"),
        (Column::Start, "STIME"),
        (Column::Tty, "TTY"),
        (Column::Time, "TIME"),
        (Column::Command, "CMD"),
    ];
    shown
        .map(|(column, heading)| (column, heading.to_owned()))
        .to_vec()
}

/// What the options after the id ask for. `-f json` and `--format json` are also accepted there.
fn chosen(format: Format, options: &[String]) -> Result<(Format, Columns), Failure> {
    let refuse = |text: &str| {
        Failure::new(
            FailureKind::InvalidArgument,
            format!("ps option {text:?} is not known: expected -e, -f, -A, -a, -x, -u, aux, -o COLUMN,…"),
        )
    };
    let mut format = format;
    let mut columns = Columns::new();
    let mut rest = options
        .iter()
        .map(String::as_str)
        .filter(|text| *text != "--")
        .peekable();
    while let Some(option) = rest.next() {
        let named = match option {
            "-f" | "--format" => rest
                .peek()
                .copied()
                .and_then(|text| Format::from_str(text, false).ok()),
            _ => option
                .strip_prefix("--format=")
                .and_then(|text| Format::from_str(text, false).ok()),
        };
        if let Some(named) = named {
            format = named;
            if !option.contains('=') {
                rest.next();
            }
            continue;
        }
        let letters = option.strip_prefix('-').unwrap_or(option);
        if let Some((flags, list)) = letters.split_once('o') {
            if !flags.chars().all(|c| "efAaxu".contains(c)) {
                return Err(refuse(option));
            }
            let list = if list.is_empty() {
                rest.next().ok_or_else(|| refuse(option))?
            } else {
                list
            };
            columns.extend(parse_columns(list.trim_start_matches('='))?);
        } else if letters.is_empty() || !letters.chars().all(|c| "efAaxuw".contains(c)) {
            return Err(refuse(option));
        }
    }
    if columns.is_empty() {
        columns = full();
    }
    Ok((format, columns))
}

fn parse_columns(list: &str) -> Result<Columns, Failure> {
    list.split([',', ' '])
        .filter(|text| !text.is_empty())
        .map(|text| {
            let (name, heading) = text.split_once('=').map_or((text, None), |(n, h)| (n, Some(h)));
            COLUMNS
                .iter()
                .find(|(known, _, _)| *known == name)
                .map(|(_, column, own)| (*column, heading.unwrap_or(own).to_owned()))
                .ok_or_else(|| {
                    let known: Vec<&str> = COLUMNS.iter().map(|(name, _, _)| *name).collect();
                    Failure::new(
                        FailureKind::InvalidArgument,
                        format!(
                            "ps column {name:?} is not known: expected one of {}",
                            known.join(" ")
                        ),
                    )
                })
        })
        .collect()
}

fn table(columns: &Columns, processes: &[GuestProcess], now: u64) -> String {
    let mut rows = vec![
        columns
            .iter()
            .map(|(_, heading)| heading.clone())
            .collect::<Vec<_>>(),
    ];
    for process in processes {
        rows.push(
            columns
                .iter()
                .map(|(column, _)| cell(*column, process, now))
                .collect(),
        );
    }
    let widths: Vec<usize> = (0..columns.len())
        .map(|at| {
            let lengths = rows
                .iter()
                .filter_map(|row| row.get(at))
                .map(|cell| cell.chars().count());
            lengths.max().unwrap_or(0)
        })
        .collect();
    let mut text = String::new();
    for row in rows {
        let mut line = String::new();
        for ((cell, width), (column, _)) in row.iter().zip(&widths).zip(columns) {
            if !line.is_empty() {
                line.push(' ');
            }
            let numeric = matches!(
                column,
                Column::Pid | Column::Ppid | Column::C | Column::Uid | Column::Time
            );
            line.push_str(&if numeric {
                format!("{cell:>width$}")
            } else {
                format!("{cell:<width$}")
            });
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

fn cell(column: Column, process: &GuestProcess, now: u64) -> String {
    let age = now.saturating_sub(process.started_s);
    match column {
        Column::User => process.user.clone(),
        Column::Uid => process.uid.to_string(),
        Column::Pid => process.pid.to_string(),
        Column::Ppid => process.ppid.to_string(),
        // As ps(1): CPU seconds per second of life, in percent.
        Column::C => (process.cpu_s.saturating_mul(100) / age.max(1))
            .min(99)
            .to_string(),
        Column::Start => started(process.started_s, now),
        Column::Tty => process.tty.clone(),
        Column::Time => clock(process.cpu_s),
        Column::Command => process.command.clone(),
        Column::Name => {
            let program = process.command.split(' ').next().unwrap_or_default();
            program
                .rsplit('/')
                .next()
                .unwrap_or(program)
                .trim_matches(['[', ']'])
                .to_owned()
        }
        Column::State => process.state.clone(),
        Column::Elapsed => clock(age),
    }
}

fn clock(seconds: u64) -> String {
    let (hours, minutes, seconds) = (seconds / 3600, seconds / 60 % 60, seconds % 60);
    match hours / 24 {
        0 => format!("{hours:02}:{minutes:02}:{seconds:02}"),
        days => format!("{days}-{:02}:{minutes:02}:{seconds:02}", hours % 24),
    }
}

/// Hour and minute within the last day, month and day before that; UTC.
fn started(at: u64, now: u64) -> String {
    let Some(time) = i64::try_from(at)
        .ok()
        .and_then(|s| OffsetDateTime::from_unix_timestamp(s).ok())
    else {
        return "?".to_owned();
    };
    if now.saturating_sub(at) < 24 * 3600 {
        format!("{:02}:{:02}", time.hour(), time.minute())
    } else {
        let month = time.month().to_string();
        format!("{}{:02}", month.get(..3).unwrap_or(&month), time.day())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NOW: u64 = 1_795_473_429;

    fn process() -> GuestProcess {
        GuestProcess {
            pid: 7,
            ppid: 1,
            uid: 0,
            user: "root".into(),
            exec: None,
            command: "/bin/sleep 1000".into(),
            cpu_s: 61,
            started_s: NOW - 122,
            tty: "?".into(),
            state: "S".into(),
        }
    }

    fn words(text: &str) -> Vec<String> {
        text.split_whitespace().map(str::to_owned).collect()
    }

    /// C-22: the table form, as `ps -ef` prints it.
    #[test]
    fn c22_table() {
        let (format, columns) = chosen(Format::Table, &[]).unwrap();
        assert_eq!(format, Format::Table);
        assert_eq!(
            table(&columns, &[process()], NOW),
            "UID  PID PPID  C STIME TTY     TIME CMD\n\
             root   7    1 50 22:35 ?   00:01:01 /bin/sleep 1000\n"
        );
    }

    #[test]
    fn options_after_the_id() {
        let (_, columns) = chosen(Format::Table, &words("-eo pid,comm=NAME -o stime")).unwrap();
        assert_eq!(
            table(&columns, &[process()], NOW + 200_000),
            "PID NAME  STIME\n  7 sleep Nov23\n"
        );
        assert_eq!(chosen(Format::Table, &words("-f json")).unwrap().0, Format::Json);
        assert_eq!(
            chosen(Format::Table, &words("--format=json")).unwrap().0,
            Format::Json
        );
        assert_eq!(
            chosen(Format::Table, &words("-ef")).unwrap(),
            (Format::Table, full())
        );
        for bad in ["-Z", "-o", "-o nonsense", "--sort"] {
            assert!(chosen(Format::Table, &words(bad)).is_err(), "{bad}");
        }
    }

    #[test]
    fn cpu_time() {
        assert_eq!(clock(59), "00:00:59");
        assert_eq!(clock(90_061), "1-01:01:01");
    }
}
