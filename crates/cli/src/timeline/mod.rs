//! A timeline for people: as a table and as a picture.
//!
//! ```text
//!  model::timeline ─► rows (what is part of what) ─┬─► table
//!                                                  └─► picture (SVG)
//! ```
//! Owns: how it looks. Never: where it comes from. Called by the verb `timeline`.

mod picture;
mod rows;
mod table;

pub(crate) use picture::picture;
pub(crate) use table::table;

/// A length of time as people read it, three or four digits.
fn readable(ns: u64) -> String {
    let ms = ns as f64 / 1e6;
    if ms >= 9_999.5 {
        format!("{:.1} s", ms / 1e3)
    } else if ms >= 999.5 {
        format!("{:.2} s", ms / 1e3)
    } else if ms >= 99.95 {
        format!("{ms:.0} ms")
    } else if ms >= 0.0995 {
        format!("{ms:.1} ms")
    } else {
        format!("{:.0} µs", ms * 1e3)
    }
}

/// What it says below itself: how exact it is, what is left out.
fn remarks(timeline: &bulkhead_model::timeline::Timeline) -> Vec<String> {
    let mut remarks = Vec::new();
    if let Some(error_ns) = timeline.guest_error_ns {
        remarks.push(format!(
            "times measured in the guest are exact to {}",
            readable(error_ns)
        ));
    }
    if timeline.forgotten > 0 {
        remarks.push(format!(
            "{} operations in between are not kept",
            timeline.forgotten
        ));
    }
    let dropped: u32 = timeline.operations.iter().map(|one| one.dropped).sum();
    if dropped > 0 {
        remarks.push(format!("{dropped} more steps are not kept"));
    }
    remarks
}

#[cfg(test)]
mod samples {
    use bulkhead_model::timeline::{Lane, Operation, Span, Timeline};
    use bulkhead_model::{ContainerId, SandboxId};

    const MS: u64 = 1_000_000;

    pub(super) fn span(lane: Lane, name: &str, begin_ms: u64, end_ms: u64) -> Span {
        Span::new(lane, name, begin_ms * MS, end_ms * MS)
    }

    pub(super) fn operation(
        name: &str,
        container: Option<&str>,
        ms: (u64, u64),
        spans: Vec<Span>,
    ) -> Operation {
        Operation {
            name: name.into(),
            container: container.map(|id| ContainerId::new(id).unwrap()),
            exec: None,
            begin_ns: ms.0 * MS,
            end_ns: Some(ms.1 * MS),
            spans,
            dropped: 0,
        }
    }

    /// A start that took 1.2 s, beginning 5 s after the host's boot, and a stop ten minutes later.
    pub(super) fn start_and_stop() -> Timeline {
        let mut timeline = Timeline::new(SandboxId::new("web").unwrap());
        timeline.guest_error_ns = Some(250_000);
        timeline.operations = vec![
            operation(
                "boot",
                None,
                (5030, 6100),
                vec![
                    span(Lane::Fsd, "start the daemon", 5050, 5060),
                    span(Lane::Vmm, "start QEMU, until it answers", 5045, 5120),
                    span(Lane::Supervisor, "start the VM", 5045, 5125),
                    span(Lane::Guest, "mount what is shared", 6040, 6070),
                    span(Lane::Supervisor, "configure the guest", 6030, 6075),
                    span(Lane::Guest, "kernel, until its first process", 5125, 6000),
                ],
            ),
            operation(
                "create",
                Some("web"),
                (5000, 6200),
                vec![
                    span(Lane::Cli, "start the program", 5000, 5010),
                    span(Lane::Hooks, "createRuntime <&>", 5100, 5100),
                    span(Lane::Supervisor, "create it in the guest", 6110, 6190),
                ],
            ),
            operation(
                "delete",
                Some("web"),
                (605_000, 605_050),
                vec![Span {
                    count: 12,
                    ..span(Lane::Supervisor, "undo: mount", 605_010, 605_020)
                }],
            ),
        ];
        timeline
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lengths_are_readable() {
        let texts = [
            0,
            85_000,
            99_600,
            1_500_000,
            99_960_000,
            999_600_000,
            12_345_678_000,
        ]
        .map(readable);
        assert_eq!(
            texts,
            ["0 µs", "85 µs", "0.1 ms", "1.5 ms", "100 ms", "1.00 s", "12.3 s"]
        );
    }

    #[test]
    fn what_is_left_out_is_said() {
        let mut timeline = samples::start_and_stop();
        timeline.forgotten = 3;
        timeline.operations[0].dropped = 2;
        assert_eq!(
            remarks(&timeline),
            [
                "times measured in the guest are exact to 0.2 ms",
                "3 operations in between are not kept",
                "2 more steps are not kept"
            ]
        );
    }
}
