//! A timeline as a table.

use super::remarks;
use super::rows::groups;
use bulkhead_model::timeline::{Lane, Timeline};

/// The table: milliseconds since the first operation began.
#[must_use]
pub(crate) fn table(timeline: &Timeline) -> String {
    let groups = groups(timeline, u64::MAX);
    let zero = groups.first().map_or(0, |group| group.begin_ns);
    let ms = |ns: u64| format!("{:.1}", ns as f64 / 1e6);
    let mut text = format!("{:>12} {:>11}  {:<10}  WHAT\n", "AT ms", "TOOK ms", "LANE");
    for row in groups.iter().flat_map(|group| &group.rows) {
        let took = match row.end_ns {
            None => "goes on".to_owned(),
            Some(end) if end == row.begin_ns => "-".to_owned(),
            Some(end) => ms(end.saturating_sub(row.begin_ns)),
        };
        let at = ms(row.begin_ns.saturating_sub(zero));
        let lane = row.lane.map_or("", Lane::name);
        let indent = "  ".repeat(row.depth);
        text.push_str(&format!(
            "{at:>12} {took:>11}  {lane:<10}  {indent}{}\n",
            row.name
        ));
    }
    for remark in remarks(timeline) {
        text.push_str(&format!("({remark})\n"));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::super::samples::start_and_stop;
    use super::*;

    #[test]
    fn times_are_since_the_first_operation() {
        let mut timeline = start_and_stop();
        timeline.operations[2].end_ns = None;
        assert_eq!(
            table(&timeline),
            "       AT ms     TOOK ms  LANE        WHAT
         0.0      1200.0              create web
         0.0        10.0  cli           start the program
        30.0      1070.0                boot
        45.0        80.0  supervisor      start the VM
        45.0        75.0  vmm               start QEMU, until it answers
        50.0        10.0  fsd               start the daemon
       125.0       875.0  guest           kernel, until its first process
      1030.0        45.0  supervisor      configure the guest
      1040.0        30.0  guest             mount what is shared
       100.0           -  hooks         createRuntime <&>
      1110.0        80.0  supervisor    create it in the guest
    600000.0     goes on              delete web
    600010.0        10.0  supervisor    undo: mount ×12
(times measured in the guest are exact to 0.2 ms)
"
        );
    }
}
