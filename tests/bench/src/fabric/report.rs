//! Rows of a CSV file, and a table of them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

/// One round of one case.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FabricRow {
    /// Day of the run, UTC.
    pub date: String,
    /// Commit, with `-dirty` if files differed.
    pub commit: String,
    /// Class of the machine.
    pub machine: String,
    /// What was sent.
    pub case: String,
    /// `bare` or `fabric`.
    pub transport: String,
    /// Number of the round.
    pub round: usize,
    /// Messages.
    pub messages: usize,
    /// Time of one (or of one window), median, microseconds.
    pub p50_us: f64,
    /// The same, 99th percentile.
    pub p99_us: f64,
    /// Messages a second.
    pub rate: f64,
    /// Processor time of both processes for a message, microseconds.
    pub cpu_us: f64,
    /// Share of the machine that other processes had, percent.
    pub cpu_others_percent: f64,
}

impl FabricRow {
    /// Counts each measured piece as so many messages.
    pub(super) fn count(&mut self, messages: usize) {
        let each = messages as f64;
        self.messages *= messages;
        self.rate *= each;
        self.cpu_us /= each;
    }

    fn line(&self) -> String {
        let Self { date, commit, machine, case, transport, round, messages, .. } = self;
        let numbers = [self.p50_us, self.p99_us, self.rate, self.cpu_us, self.cpu_others_percent];
        let numbers = numbers.map(|number| format!("{number:.1}")).join(",");
        let clean = |text: &str| text.replace([',', '\n'], ";");
        format!(
            "{date},{commit},{},{},{transport},{round},{messages},{numbers}\n",
            clean(machine),
            clean(case)
        )
    }
}

/// Writes a file anew.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, rows: &[FabricRow]) -> Result<()> {
    let mut text = String::from(
        "date,commit,machine,case,transport,round,messages,p50_us,p99_us,messages_per_s,cpu_us,cpu_others_percent\n",
    );
    rows.iter().for_each(|row| text += &row.line());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A Markdown table with a line for each case and transport: least and median of its rounds, and the median of the
/// ratios to the bare transport's round of the same number.
#[must_use]
pub fn markdown(rows: &[FabricRow]) -> String {
    let mut text = String::from(
        "| case | transport | p50 us: least, median | p99 us, median | messages/s: most, median | CPU us | p50 over bare | rate over bare | p99 over p50 | others |\n\
         |---|---|---|---|---|---|---|---|---|---|\n",
    );
    let mut cases: Vec<(&str, &str)> = Vec::new();
    for row in rows {
        let case = (row.case.as_str(), row.transport.as_str());
        if !cases.contains(&case) {
            cases.push(case);
        }
    }
    for (case, transport) in cases {
        let of = |transport: &str| -> Vec<&FabricRow> {
            rows.iter().filter(|row| row.case == case && row.transport == transport).collect()
        };
        let (own, bare) = (of(transport), of("bare"));
        let all = |value: fn(&FabricRow) -> f64| own.iter().map(|row| value(row)).collect::<Vec<f64>>();
        let over = |value: fn(&FabricRow) -> f64| {
            let ratios = own.iter().filter_map(|row| {
                let bare = bare.iter().find(|bare| bare.round == row.round)?;
                Some(value(row) / value(bare))
            });
            match median(ratios.collect()) {
                Some(ratio) if transport != "bare" => format!("{ratio:.2}"),
                _ => "–".into(),
            }
        };
        let middle = |value| median(all(value)).unwrap_or_default();
        let least = all(|row| row.p50_us).into_iter().fold(f64::INFINITY, f64::min);
        let most = all(|row| row.rate).into_iter().fold(0.0, f64::max);
        let _ = writeln!(
            text,
            "| {case} | {transport} | {least:.1}, {:.1} | {:.1} | {most:.0}, {:.0} | {:.1} | {} | {} | {:.2} | {:.0} % |",
            middle(|row| row.p50_us),
            middle(|row| row.p99_us),
            middle(|row| row.rate),
            middle(|row| row.cpu_us),
            over(|row| row.p50_us),
            over(|row| row.rate),
            middle(|row| row.p99_us / row.p50_us),
            middle(|row| row.cpu_others_percent),
        );
    }
    text
}

fn median(mut values: Vec<f64>) -> Option<f64> {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounds_are_compared_with_bare_rounds_of_the_same_number() {
        let row = |transport: &str, round: usize, p50_us: f64| FabricRow {
            case: "a".into(),
            transport: transport.into(),
            round,
            p50_us,
            p99_us: 2.0 * p50_us,
            rate: 1e6 / p50_us,
            ..FabricRow::default()
        };
        let rows = [
            row("bare", 0, 10.0),
            row("fabric", 0, 12.0),
            row("bare", 1, 100.0),
            row("fabric", 1, 130.0),
            row("bare", 2, 20.0),
            row("fabric", 2, 40.0),
        ];
        let text = markdown(&rows);
        let fabric = text.lines().last().unwrap();
        assert!(fabric.starts_with("| a | fabric | 12.0, 40.0 | 80.0 |"), "{fabric}");
        assert!(fabric.contains("| 1.30 | 0.77 | 2.00 |"), "{fabric}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/rows.csv");
        write(&path, &rows).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert_eq!(written.lines().count(), 7);
        let columns = written.lines().map(|line| line.split(',').count());
        assert!(columns.into_iter().all(|count| count == 12));
    }
}
