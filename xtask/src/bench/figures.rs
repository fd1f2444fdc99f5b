//! Medians and tables.

use std::time::Duration;

/// Samples of one competitor; empty when it cannot run here.
#[derive(Debug, Default)]
pub(super) struct Series {
    samples: Vec<Duration>,
    /// Why it cannot run here.
    pub(super) refused: Option<String>,
}

impl Series {
    /// Adds a sample.
    pub(super) fn add(&mut self, sample: Duration) {
        self.samples.push(sample);
    }

    /// The median in seconds.
    pub(super) fn median(&self) -> Option<f64> {
        let mut sorted: Vec<f64> = self.samples.iter().map(Duration::as_secs_f64).collect();
        sorted.sort_by(f64::total_cmp);
        let upper = *sorted.get(sorted.len() / 2)?;
        if sorted.len() % 2 == 1 {
            return Some(upper);
        }
        let lower = *sorted.get(sorted.len() / 2 - 1)?;
        Some((lower + upper) / 2.0)
    }

    /// The least and the most in seconds.
    pub(super) fn range(&self) -> Option<(f64, f64)> {
        let least = self.samples.iter().min()?;
        let most = self.samples.iter().max()?;
        Some((least.as_secs_f64(), most.as_secs_f64()))
    }

    /// Median and range for a table cell.
    pub(super) fn cell(&self) -> String {
        let (Some(median), Some(least), Some(most)) = (
            self.median(),
            self.samples.iter().min(),
            self.samples.iter().max(),
        ) else {
            return format!("– ({})", self.refused.as_deref().unwrap_or("not run"));
        };
        format!(
            "{median:.3} s ({:.3}–{:.3})",
            least.as_secs_f64(),
            most.as_secs_f64()
        )
    }
}

/// A Markdown table.
pub(super) fn table(head: [&str; 2], rows: &[(String, String)]) -> String {
    let mut text = format!("| {} | {} |\n| --- | --- |\n", head[0], head[1]);
    for (name, value) in rows {
        text.push_str(&format!("| {name} | {value} |\n"));
    }
    text
}

/// A Markdown table of many columns.
pub(super) fn columns(head: &[String], rows: &[Vec<String>]) -> String {
    let line = |cells: &[String]| format!("| {} |\n", cells.join(" | "));
    let mut text = line(head) + &line(&vec!["---".to_owned(); head.len()]);
    for row in rows {
        text.push_str(&line(row));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn medians_and_cells() {
        let mut series = Series::default();
        assert_eq!(series.median(), None);
        assert_eq!(series.range(), None);
        series.refused = Some("no".into());
        assert_eq!(series.cell(), "– (no)");
        for ms in [300, 100, 200] {
            series.add(Duration::from_millis(ms));
        }
        assert_eq!(series.median(), Some(0.2));
        assert_eq!(series.range(), Some((0.1, 0.3)));
        series.add(Duration::from_millis(400));
        assert!((series.median().unwrap() - 0.25).abs() < 1e-9);
        assert_eq!(series.cell(), "0.250 s (0.100–0.400)");
    }

    #[test]
    fn a_table_has_a_line_below_its_head() {
        let cells = |words: [&str; 2]| words.map(str::to_owned).to_vec();
        assert_eq!(
            columns(&cells(["what", "a"]), &[cells(["x", "1"])]),
            "| what | a |\n| --- | --- |\n| x | 1 |\n"
        );
    }
}
