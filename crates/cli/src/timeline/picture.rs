//! A timeline as a waterfall that opens in a browser: SVG, nothing in it but itself.
//!
//! ```text
//!  title, lanes
//!  ┌ group: what followed each other closely, on an axis of its own ┐
//!  │ name …… │   ▇▇▇ 12 ms                                          │
//!  └────────────────────────────────────────────────────────────────┘
//!  remarks
//! ```
//! Text is escaped: names come from the guest too. A row says all about itself when pointed at.
//!
//! Owns: the drawing. Never: what is part of what (see `rows`).

use super::rows::{Group, Row, groups};
use super::{readable, remarks};
use bulkhead_model::timeline::{Lane, Timeline};
use std::fmt::Write;

/// After this long without anything a new axis begins.
const PAUSE_NS: u64 = 1_000_000_000;

const WIDTH: f64 = 1200.0;
const MARGIN: f64 = 20.0;
/// Where the names end and the bars begin.
const LEFT: f64 = 360.0;
/// Where the bars end; the length of the last one stands behind it.
const RIGHT: f64 = 1110.0;
const ROW: f64 = 19.0;
const BAR: f64 = 11.0;
/// Between the heads of two groups, beside their rows.
const HEAD: f64 = 46.0;
const INDENT: f64 = 13.0;
/// About what a letter of a name takes.
const LETTER: f64 = 6.4;

const fn colour(lane: Option<Lane>) -> &'static str {
    match lane {
        None => "#c9ced6",
        Some(Lane::Cli) => "#4e79a7",
        Some(Lane::Supervisor) => "#86bcb6",
        Some(Lane::Network) => "#9c755f",
        Some(Lane::Stub) => "#b07aa1",
        Some(Lane::Hooks) => "#edc948",
        Some(Lane::Vmm) => "#e15759",
        Some(Lane::Fsd) => "#59a14f",
        Some(Lane::Guest) => "#f28e2b",
    }
}

/// The picture.
#[must_use]
pub(crate) fn picture(timeline: &Timeline) -> String {
    let groups = groups(timeline, PAUSE_NS);
    let zero = groups.first().map_or(0, |group| group.begin_ns);
    let mut body = String::new();
    let mut y = 92.0;
    for group in &groups {
        draw_group(&mut body, group, zero, y);
        y += HEAD + ROW * group.rows.len() as f64;
    }
    for remark in remarks(timeline) {
        text(&mut body, MARGIN, y, "r", &remark);
        y += 16.0;
    }
    let height = y + 6.0;
    let mut svg = format!(
        "<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{WIDTH}\" height=\"{height:.0}\" viewBox=\"0 0 {WIDTH} {height:.0}\">\n\
         <style>text{{font:12px system-ui,'DejaVu Sans',sans-serif;fill:#222}} .t{{font-size:18px;font-weight:600}} \
         .o{{font-weight:600}} .l{{fill:#555;font-size:11px}} .r{{fill:#666;font-size:11px}} .g{{stroke:#e6e8eb}} \
         .h{{fill:#000;fill-opacity:0}} g:nth-of-type(odd) .h{{fill-opacity:.03}} g:hover .h{{fill:#8aa;fill-opacity:.2}}</style>\n\
         <rect width=\"100%\" height=\"100%\" fill=\"#fff\"/>\n"
    );
    let title = format!("Where the time of {} went", timeline.sandbox);
    text(&mut svg, MARGIN, 34.0, "t", &title);
    draw_lanes(&mut svg, &groups);
    svg.push_str(&body);
    svg.push_str("</svg>\n");
    svg
}

/// The colours that occur.
fn draw_lanes(svg: &mut String, groups: &[Group]) {
    let used = |lane: Lane| {
        groups
            .iter()
            .flat_map(|group| &group.rows)
            .any(|row| row.lane == Some(lane))
    };
    let mut x = MARGIN;
    for lane in Lane::ALL.into_iter().filter(|lane| used(*lane)) {
        let fill = colour(Some(lane));
        put(
            svg,
            format_args!(
                "<rect x=\"{x:.1}\" y=\"50\" width=\"{BAR}\" height=\"{BAR}\" rx=\"2\" fill=\"{fill}\"/>\n"
            ),
        );
        text(svg, x + 16.0, 60.0, "l", lane.name());
        x += 34.0 + LETTER * lane.name().len() as f64;
    }
}

fn draw_group(svg: &mut String, group: &Group, zero: u64, top: f64) {
    let length = group.end_ns.saturating_sub(group.begin_ns).max(1);
    let step = step(length);
    // The axis ends where the bars do; its last line may stand before that.
    let x = |ns: u64| LEFT + (RIGHT - LEFT) * (ns.saturating_sub(group.begin_ns) as f64 / length as f64);
    let bottom = top + 10.0 + ROW * group.rows.len() as f64;
    let mut at = 0;
    while at <= length {
        let line = x(group.begin_ns + at);
        put(
            svg,
            format_args!(
                "<line class=\"g\" x1=\"{line:.1}\" x2=\"{line:.1}\" y1=\"{top:.1}\" y2=\"{bottom:.1}\"/>\n"
            ),
        );
        let label = if at == 0 { "0".to_owned() } else { tick(at, step) };
        put(
            svg,
            format_args!(
                "<text class=\"l\" x=\"{line:.1}\" y=\"{:.1}\" text-anchor=\"middle\">{label}</text>\n",
                top - 5.0
            ),
        );
        at += step;
    }
    let since = group.begin_ns - zero;
    let head = match since {
        0 => format!("{} in all", readable(length)),
        _ => format!("{} later, {} in all", readable(since), readable(length)),
    };
    text(svg, MARGIN, top - 5.0, "l", &head);
    for (number, row) in group.rows.iter().enumerate() {
        draw_row(svg, row, group, &x, top + 10.0 + ROW * number as f64);
    }
}

fn draw_row(svg: &mut String, row: &Row, group: &Group, x: &impl Fn(u64) -> f64, y: f64) {
    let end = row.end_ns.unwrap_or(group.end_ns).max(row.begin_ns);
    let took = match row.end_ns {
        None => "goes on".to_owned(),
        Some(end) if end == row.begin_ns => String::new(),
        Some(end) => readable(end - row.begin_ns),
    };
    let lane = row.lane.map_or("operation", Lane::name);
    let at = readable(row.begin_ns.saturating_sub(group.begin_ns));
    let hint = format!(
        "{lane}: {} (at {at}{}{took})",
        row.name,
        if took.is_empty() { "" } else { ", " }
    );
    put(svg, format_args!("<g><title>{}</title>", escaped(&hint)));
    put(
        svg,
        format_args!("<rect class=\"h\" x=\"0\" y=\"{y:.1}\" width=\"{WIDTH}\" height=\"{ROW}\"/>"),
    );
    let (left, middle, base) = (
        MARGIN + INDENT * row.depth as f64,
        y + ROW / 2.0,
        y + ROW / 2.0 + 4.0,
    );
    let class = if row.lane.is_none() { "o" } else { "n" };
    text(svg, left, base, class, &fitting(&row.name, LEFT - 14.0 - left));
    let (from, to, fill) = (x(row.begin_ns), x(end), colour(row.lane));
    if took.is_empty() {
        put(
            svg,
            format_args!(
                "<path d=\"M{from:.1} {:.1}l5 5l-5 5l-5 -5z\" fill=\"{fill}\"/>",
                middle - 5.0
            ),
        );
    } else {
        let (bar, width) = (middle - BAR / 2.0, (to - from).max(1.5));
        put(
            svg,
            format_args!(
                "<rect x=\"{from:.1}\" y=\"{bar:.1}\" width=\"{width:.1}\" height=\"{BAR}\" rx=\"1.5\" fill=\"{fill}\"/>"
            ),
        );
        text(svg, from + width + 5.0, base, "l", &took);
    }
    svg.push_str("</g>\n");
}

/// Writing into a `String` does not fail.
fn put(svg: &mut String, what: std::fmt::Arguments<'_>) {
    let _ = svg.write_fmt(what);
}

fn text(svg: &mut String, x: f64, y: f64, class: &str, words: &str) {
    put(
        svg,
        format_args!(
            "<text class=\"{class}\" x=\"{x:.1}\" y=\"{y:.1}\">{}</text>",
            escaped(words)
        ),
    );
}

/// Cut where it would run into the bars.
fn fitting(name: &str, width: f64) -> String {
    let most = (width / LETTER).max(4.0) as usize;
    if name.chars().count() <= most {
        return name.to_owned();
    }
    name.chars().take(most - 1).chain(['…']).collect()
}

/// For element content: what XML 1.0 has a meaning for, and without what it cannot hold.
fn escaped(words: &str) -> String {
    let mut out = String::with_capacity(words.len());
    for letter in words.chars() {
        match letter {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            _ if letter.is_control() || matches!(letter, '\u{fffe}' | '\u{ffff}') => out.push('\u{fffd}'),
            _ => out.push(letter),
        }
    }
    out
}

/// Between two lines of an axis: 1, 2 or 5 times a power of ten, so that there are five to twelve.
fn step(length: u64) -> u64 {
    let mut step = 1;
    loop {
        for factor in [1, 2, 5] {
            let one: u64 = step * factor;
            if length / one <= 11 {
                return one;
            }
        }
        step *= 10;
    }
}

/// The label of a line at `at`, in the unit of its axis.
fn tick(at: u64, step: u64) -> String {
    let (unit, name) = match step {
        100_000_000.. => (1e9, "s"),
        100_000.. => (1e6, "ms"),
        _ => (1e3, "µs"),
    };
    format!("{} {name}", at as f64 / unit)
}

#[cfg(test)]
mod tests {
    use super::super::samples::{operation, start_and_stop};
    use super::*;
    use bulkhead_model::SandboxId;

    /// Well-formed as far as this drawing goes: elements closed in order, nothing unescaped.
    fn elements(svg: &str) -> usize {
        let (mut open, mut count) = (Vec::new(), 0);
        for part in svg.split('<').skip(1) {
            let (tag, after) = part.split_once('>').expect("a tag ends");
            assert!(!after.contains('>'), "{part}");
            assert!(tag.matches('"').count() % 2 == 0, "{tag}");
            let name = tag.trim_matches('/').split(' ').next().unwrap();
            if tag.starts_with('/') {
                assert_eq!(open.pop(), Some(name));
            } else if !tag.ends_with('/') {
                open.push(name);
                count += 1;
            }
            for entity in after.split('&').skip(1) {
                assert!(
                    ["amp;", "lt;", "gt;", "quot;"]
                        .iter()
                        .any(|known| entity.starts_with(known)),
                    "{after}"
                );
            }
        }
        assert!(open.is_empty(), "{open:?}");
        count
    }

    #[test]
    fn every_row_is_there_with_its_colour_and_its_hint() {
        let svg = picture(&start_and_stop());
        assert!(elements(&svg) > 13);
        // Rows of create and boot, and of delete.
        assert_eq!(svg.matches("<title>").count(), 11 + 2);
        assert!(
            svg.contains("<title>hooks: createRuntime &lt;&amp;&gt; (at 100 ms)</title>"),
            "{svg}"
        );
        assert!(svg.contains("<title>vmm: start QEMU, until it answers (at 45.0 ms, 75.0 ms)</title>"));
        assert!(svg.contains("600.0 s later, 50.0 ms in all"), "{svg}");
        assert!(svg.contains("exact to 0.2 ms"));
        for lane in [
            Lane::Cli,
            Lane::Supervisor,
            Lane::Hooks,
            Lane::Vmm,
            Lane::Fsd,
            Lane::Guest,
        ] {
            assert!(
                svg.matches(colour(Some(lane))).count() >= 2,
                "{lane:?}: once in the legend, once as a bar"
            );
        }
        assert!(!svg.contains(colour(Some(Lane::Network))));
        assert!(!svg.contains("NaN") && !svg.contains("inf"));
    }

    #[test]
    fn a_bar_is_as_long_as_what_it_shows() {
        let svg = picture(&start_and_stop());
        // 75 ms of 1200, from 45 on.
        let (from, width) = (
            LEFT + 45.0 / 1200.0 * (RIGHT - LEFT),
            75.0 / 1200.0 * (RIGHT - LEFT),
        );
        assert!(svg.contains(&format!("<rect x=\"{from:.1}\"")), "{svg}");
        assert!(svg.contains(&format!("width=\"{width:.1}\"")), "{svg}");
    }

    #[test]
    fn odd_timelines_are_drawn() {
        let mut timeline = Timeline::new(SandboxId::new("s").unwrap());
        assert_eq!(elements(&picture(&timeline)), 3);
        let name = format!("\u{1b}[31m<b>{}", "x".repeat(500));
        timeline.operations = vec![operation(&name, None, (1, 1), Vec::new())];
        timeline.operations[0].end_ns = None;
        let svg = picture(&timeline);
        elements(&svg);
        assert!(!svg.contains('\u{1b}') && svg.contains("…") && svg.contains("goes on"));
    }

    #[test]
    fn an_axis_has_readable_lines() {
        let cases = [
            (11, 1),
            (12, 2),
            (1_200_000_000, 200_000_000),
            (50_000_000, 5_000_000),
            (u64::MAX, 2_000_000_000_000_000_000),
        ];
        for (length, wanted) in cases {
            assert_eq!(step(length), wanted, "{length}");
        }
        assert_eq!(tick(1_200_000_000, 200_000_000), "1.2 s");
        assert_eq!(tick(15_000_000, 5_000_000), "15 ms");
        assert_eq!(tick(2_000, 1_000), "2 µs");
    }
}
