//! What is part of what: the rows of a table or picture, in order, indented.
//!
//! Nothing is recorded about that. A span is part of the shortest one around it that can be said to wait for it: one
//! of the same lane, the supervisor's or the command's. An operation is part of the one around it.
//!
//! Owns: that rule and the order. Never: how a row looks. Called by `table` and `picture`.

use bulkhead_model::timeline::{Lane, Operation, Span, Timeline};

/// One row.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Row {
    /// How deep it is inside others.
    pub(super) depth: usize,
    /// Whose; absent for an operation.
    pub(super) lane: Option<Lane>,
    /// What.
    pub(super) name: String,
    /// From when on.
    pub(super) begin_ns: u64,
    /// Until when; absent while it goes on.
    pub(super) end_ns: Option<u64>,
}

/// Rows that follow each other closely.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Group {
    /// Them, in order.
    pub(super) rows: Vec<Row>,
    /// When the first begins.
    pub(super) begin_ns: u64,
    /// When the last has ended; what goes on counts until the newest time that is known.
    pub(super) end_ns: u64,
}

/// All rows; a new group begins after `pause_ns` in which nothing happened.
pub(super) fn groups(timeline: &Timeline, pause_ns: u64) -> Vec<Group> {
    let operations = &timeline.operations;
    let latest = latest(operations);
    let within = |outer: &Operation, of: &Operation| {
        let (outer_end, end) = (outer.end_ns.unwrap_or(u64::MAX), of.end_ns.unwrap_or(u64::MAX));
        outer.begin_ns <= of.begin_ns && end <= outer_end
    };
    let length = |one: &Operation| one.end_ns.unwrap_or(u64::MAX) - one.begin_ns;
    let parents: Vec<Option<usize>> = operations
        .iter()
        .enumerate()
        .map(|(at, one)| {
            let longer = |other: usize| (length(&operations[other]), other) > (length(one), at);
            let around =
                (0..operations.len()).filter(|other| longer(*other) && within(&operations[*other], one));
            around.min_by_key(|other| (length(&operations[*other]), *other))
        })
        .collect();
    let mut first: Vec<usize> = (0..operations.len())
        .filter(|at| parents[*at].is_none())
        .collect();
    first.sort_by_key(|at| operations[*at].begin_ns);
    let mut groups: Vec<Group> = Vec::new();
    for at in first {
        let one = &operations[at];
        let end_ns = one.end_ns.unwrap_or(latest).max(one.begin_ns);
        let mut rows = Vec::new();
        lay_out(operations, &parents, at, 0, &mut rows);
        match groups.last_mut() {
            Some(group) if one.begin_ns <= group.end_ns.saturating_add(pause_ns) => {
                group.rows.extend(rows);
                group.end_ns = group.end_ns.max(end_ns);
            }
            _ => groups.push(Group {
                rows,
                begin_ns: one.begin_ns,
                end_ns,
            }),
        }
    }
    groups
}

/// The newest time that is known.
fn latest(operations: &[Operation]) -> u64 {
    let times = operations.iter().flat_map(|one| {
        let spans = one.spans.iter().map(|span| span.end_ns.unwrap_or(span.begin_ns));
        spans.chain([one.end_ns.unwrap_or(one.begin_ns)])
    });
    times.max().unwrap_or(0)
}

/// Of one operation: itself, then its spans and the operations inside it.
fn lay_out(
    operations: &[Operation],
    parents: &[Option<usize>],
    at: usize,
    depth: usize,
    rows: &mut Vec<Row>,
) {
    let Some(one) = operations.get(at) else { return };
    rows.push(Row {
        depth,
        lane: None,
        name: title(one),
        begin_ns: one.begin_ns,
        end_ns: one.end_ns,
    });
    let holders: Vec<Option<usize>> = (0..one.spans.len())
        .map(|span| holder(&one.spans, span))
        .collect();
    let inside = (0..operations.len()).filter(|other| parents.get(*other) == Some(&Some(at)));
    let mut order: Vec<(u64, Part)> = inside
        .filter_map(|other| Some((operations.get(other)?.begin_ns, Part::Operation(other))))
        .collect();
    order.extend(children(one, &holders, None));
    // Of what begins together the operation comes first.
    order.sort_by_key(|(begin_ns, part)| (*begin_ns, matches!(part, Part::Span(_))));
    for (_, part) in order {
        match part {
            Part::Operation(other) => lay_out(operations, parents, other, depth + 1, rows),
            Part::Span(span) => descend(one, &holders, span, depth + 1, rows),
        }
    }
}

enum Part {
    Operation(usize),
    Span(usize),
}

fn children(one: &Operation, holders: &[Option<usize>], of: Option<usize>) -> Vec<(u64, Part)> {
    let spans = one.spans.iter().zip(holders).enumerate();
    let mine = spans.filter(|(_, (_, holder))| **holder == of);
    let mut all: Vec<_> = mine
        .map(|(at, (span, _))| (span.begin_ns, Part::Span(at)))
        .collect();
    all.sort_by_key(|(begin_ns, _)| *begin_ns);
    all
}

fn descend(one: &Operation, holders: &[Option<usize>], at: usize, depth: usize, rows: &mut Vec<Row>) {
    let Some(span) = one.spans.get(at) else { return };
    let times = if span.count > 1 {
        format!(" ×{}", span.count)
    } else {
        String::new()
    };
    rows.push(Row {
        depth,
        lane: Some(span.lane),
        name: format!("{}{times}", span.name),
        begin_ns: span.begin_ns,
        end_ns: span.end_ns,
    });
    for (_, part) in children(one, holders, Some(at)) {
        if let Part::Span(inner) = part {
            descend(one, holders, inner, depth + 1, rows);
        }
    }
}

/// The shortest span that can hold span `at`. Of two that are equally long the one that ended later, which is the
/// outer one, comes later.
fn holder(spans: &[Span], at: usize) -> Option<usize> {
    let end = |span: &Span| span.end_ns.unwrap_or(u64::MAX);
    let length = |span: &Span| end(span) - span.begin_ns;
    let one = spans.get(at)?;
    let holds = |(other, around): &(usize, &Span)| {
        let waits = around.lane == one.lane || matches!(around.lane, Lane::Supervisor | Lane::Cli);
        let outer = (length(around), *other) > (length(one), at);
        waits && outer && !around.is_mark() && around.begin_ns <= one.begin_ns && end(one) <= end(around)
    };
    let around = spans.iter().enumerate().filter(holds);
    around
        .min_by_key(|(other, span)| (length(span), *other))
        .map(|(other, _)| other)
}

fn title(one: &Operation) -> String {
    let words = [
        Some(one.name.clone()),
        one.container.as_ref().map(ToString::to_string),
        one.exec.as_ref().map(ToString::to_string),
    ];
    words.into_iter().flatten().collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::super::samples::{operation, span, start_and_stop};
    use super::*;
    use bulkhead_model::SandboxId;

    fn shown(groups: &[Group]) -> Vec<Vec<String>> {
        let line = |row: &Row| format!("{}{}", "  ".repeat(row.depth), row.name);
        groups
            .iter()
            .map(|group| group.rows.iter().map(line).collect())
            .collect()
    }

    #[test]
    fn what_is_inside_is_indented_and_a_long_pause_begins_a_group() {
        let groups = groups(&start_and_stop(), 1_000_000_000);
        assert_eq!(
            shown(&groups),
            [
                vec![
                    "create web",
                    "  start the program",
                    "  boot",
                    "    start the VM",
                    "      start QEMU, until it answers",
                    // The daemon starts beside QEMU, not in it.
                    "      start the daemon",
                    "    kernel, until its first process",
                    "    configure the guest",
                    "      mount what is shared",
                    "  createRuntime <&>",
                    "  create it in the guest",
                ],
                vec!["delete web", "  undo: mount ×12"],
            ]
        );
        assert_eq!(groups[0].end_ns - groups[0].begin_ns, 1_200_000_000);
        assert_eq!(super::groups(&start_and_stop(), u64::MAX).len(), 1);
    }

    #[test]
    fn what_goes_on_has_no_end() {
        let mut timeline = Timeline::new(SandboxId::new("s").unwrap());
        let mut open = span(Lane::Supervisor, "wait for the agent's hello", 20, 20);
        open.end_ns = None;
        let mut boot = operation("boot", None, (10, 0), vec![span(Lane::Vmm, "x", 12, 30), open]);
        boot.end_ns = None;
        timeline.operations = vec![boot];
        let groups = groups(&timeline, 0);
        assert_eq!(groups[0].end_ns, 30_000_000);
        assert_eq!(groups[0].rows[0].end_ns, None);
        assert_eq!(groups[0].rows[2].end_ns, None);
    }

    #[test]
    fn alike_ones_never_hold_each_other() {
        let twice = vec![
            span(Lane::Guest, "a", 1, 2),
            span(Lane::Guest, "b", 1, 2),
            span(Lane::Guest, "m", 1, 1),
        ];
        let mut timeline = Timeline::new(SandboxId::new("s").unwrap());
        timeline.operations = vec![
            operation("x", None, (1, 2), twice),
            operation("y", None, (1, 2), Vec::new()),
        ];
        assert_eq!(
            shown(&groups(&timeline, 0)),
            [vec!["y", "  x", "    b", "      a", "        m"]]
        );
    }

    #[test]
    fn nothing_makes_no_rows() {
        assert_eq!(groups(&Timeline::new(SandboxId::new("s").unwrap()), 0), []);
    }
}
