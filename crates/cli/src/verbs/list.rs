//! `list`: the containers under the root.

use super::{Outcome, print_text};
use crate::context::Context;
use bulkhead_model::{ContainerId, Failure, FailureKind, SandboxId, SandboxSnapshot};
use bulkhead_shim::oci_state::OciState;
use clap::{Args, ValueEnum};
use std::collections::BTreeMap;
use std::os::unix::fs::MetadataExt;

/// Output forms.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Format {
    /// A table.
    Table,
    /// A list of states.
    Json,
}

/// Options of `list`.
#[derive(Debug, Args)]
pub(crate) struct List {
    /// Output form
    #[arg(long, short, value_enum, default_value = "table")]
    pub(crate) format: Format,
    /// Print only the ids
    #[arg(long, short)]
    pub(crate) quiet: bool,
}

impl List {
    /// Runs the verb.
    ///
    /// # Errors
    /// A root that cannot be read. A container that does not answer is left out with a warning.
    pub(crate) fn run(self, context: &Context) -> Outcome {
        let ids = context
            .map()
            .containers()
            .map_err(|e| Failure::from_chain(FailureKind::Internal, &e))?;
        if self.quiet {
            return print_text(&ids.iter().map(|id| format!("{id}\n")).collect::<String>());
        }
        let states = states(context, &ids);
        match self.format {
            Format::Table => print_text(&table(&states)),
            Format::Json => {
                let text = serde_json::to_string(&states)
                    .map_err(|e| Failure::new(FailureKind::Internal, format!("encoding: {e}")))?;
                print_text(&format!("{text}\n"))
            }
        }
    }
}

/// Each sandbox is asked once.
fn states(context: &Context, ids: &[ContainerId]) -> Vec<OciState> {
    let mut asked: BTreeMap<SandboxId, Option<SandboxSnapshot>> = BTreeMap::new();
    let mut states = Vec::new();
    for id in ids {
        let Ok(Some(sandbox)) = context.look_up(id) else {
            continue;
        };
        let answer = asked
            .entry(sandbox.clone())
            .or_insert_with(|| ask(context, &sandbox));
        let Some(answer) = answer else { continue };
        let mut state = context.oci_state(answer, id);
        state.owner = owner(context, &sandbox);
        states.push(state);
    }
    states
}

fn ask(context: &Context, sandbox: &SandboxId) -> Option<SandboxSnapshot> {
    match context.present(sandbox) {
        Ok(snapshot) => Some(snapshot),
        // Deleted since the map was read.
        Err(failure) if failure.kind == FailureKind::NotFound => None,
        Err(failure) => {
            context.report.warning(&format!("sandbox {sandbox}: {failure}"));
            None
        }
    }
}

/// Name of the user who owns the state directory, or the number.
fn owner(context: &Context, sandbox: &SandboxId) -> String {
    let Ok(uid) = std::fs::metadata(context.layout.sandbox(sandbox).dir).map(|meta| meta.uid()) else {
        return String::new();
    };
    match nix::unistd::User::from_uid(nix::unistd::Uid::from_raw(uid)) {
        Ok(Some(user)) => user.name,
        _ => format!("#{uid}"),
    }
}

fn table(states: &[OciState]) -> String {
    let mut rows = vec![["ID", "PID", "STATUS", "BUNDLE", "CREATED", "OWNER"].map(str::to_owned)];
    for state in states {
        rows.push([
            state.id.clone(),
            state.pid.to_string(),
            state.status.clone(),
            state.bundle.display().to_string(),
            state.created.clone(),
            state.owner.clone(),
        ]);
    }
    columns(&rows)
}

/// Left-aligned columns, at least 12 wide, 3 blanks apart: as runc prints them.
fn columns<const N: usize>(rows: &[[String; N]]) -> String {
    let width = |at: usize| {
        let longest = rows
            .iter()
            .filter_map(|row| row.get(at))
            .map(|cell| cell.chars().count());
        (longest.max().unwrap_or(0) + 3).max(12)
    };
    let mut text = String::new();
    for row in rows {
        for (at, cell) in row.iter().enumerate() {
            if at + 1 == N {
                text.push_str(cell);
            } else {
                let width = width(at);
                text.push_str(&format!("{cell:<width$}"));
            }
        }
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_as_runc_prints_it() {
        assert_eq!(
            table(&[]),
            "ID          PID         STATUS      BUNDLE      CREATED     OWNER\n"
        );
        let state = OciState {
            oci_version: "1.1.0".into(),
            id: "x1".into(),
            pid: 14402,
            status: "running".into(),
            bundle: "/tmp/clitest/rc/b".into(),
            rootfs: "/r".into(),
            created: "2026-11-23T22:37:09.03405405Z".into(),
            annotations: BTreeMap::new(),
            owner: "root".into(),
        };
        assert_eq!(
            table(&[state]).lines().nth(1),
            Some(
                "x1          14402       running     /tmp/clitest/rc/b   2026-11-23T22:37:09.03405405Z   root"
            )
        );
    }
}
