//! Rows of a CSV file, and a table of them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::Way;

/// One round of one way.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ProxyRow {
    /// Day of the run, UTC.
    pub date: String,
    /// Commit, with `-dirty` if files differed.
    pub commit: String,
    /// Class of the machine.
    pub machine: String,
    /// Who was between.
    pub way: String,
    /// Clients at a time.
    pub clients: usize,
    /// Number of the round.
    pub round: usize,
    /// Requests.
    pub requests: usize,
    /// Time to the first token, median, microseconds.
    pub p50_us: f64,
    /// The same, 99th percentile.
    pub p99_us: f64,
    /// Requests a second.
    pub rate: f64,
    /// Processor time of the process between, for a request, microseconds.
    pub cpu_us: f64,
    /// Cores that were busy, whoever with.
    pub busy_cores: f64,
}

impl ProxyRow {
    fn line(&self) -> String {
        let Self { date, commit, machine, way, clients, round, requests, .. } = self;
        let numbers = [self.p50_us, self.p99_us, self.rate, self.cpu_us, self.busy_cores];
        let numbers = numbers.map(|number| format!("{number:.1}")).join(",");
        let clean = |text: &str| text.replace([',', '\n'], ";");
        format!("{date},{commit},{},{},{clients},{round},{requests},{numbers}\n", clean(machine), clean(way))
    }
}

/// Writes a file anew.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, rows: &[ProxyRow]) -> Result<()> {
    let mut text = String::from(
        "date,commit,machine,way,clients,round,requests,p50_us,p99_us,requests_per_s,cpu_us,busy_cores\n",
    );
    rows.iter().for_each(|row| text += &row.line());
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A Markdown table with a line for each way and number of clients: medians of the rounds, and of the differences to the
/// direct way's round of the same number.
#[must_use]
pub fn markdown(rows: &[ProxyRow]) -> String {
    let mut text = String::from(
        "| clients | way | p50 ms | added p50 ms | p99 ms | requests/s | CPU us a request | requests/s per core of the proxy | busy cores |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut cases: Vec<(usize, &str)> = rows.iter().map(|row| (row.clients, row.way.as_str())).collect();
    cases.sort_by_key(|(clients, way)| (*clients, Way::ALL.iter().position(|known| known.name() == *way)));
    cases.dedup();
    for (clients, way) in cases {
        let of = |way: &str| -> Vec<&ProxyRow> {
            rows.iter().filter(|row| row.clients == clients && row.way == way).collect()
        };
        let (own, direct) = (of(way), of(Way::Direct.name()));
        let middle = |value: fn(&ProxyRow) -> f64| median(own.iter().map(|row| value(row)).collect());
        let added = own.iter().filter_map(|row| {
            let direct = direct.iter().find(|direct| direct.round == row.round)?;
            Some(row.p50_us - direct.p50_us)
        });
        let is_direct = way == Way::Direct.name();
        let shown = |number: f64, digits: usize| {
            if is_direct { "–".to_owned() } else { format!("{number:.digits$}") }
        };
        let cpu = middle(|row| row.cpu_us);
        let _ = writeln!(
            text,
            "| {clients} | {way} | {:.2} | {} | {:.2} | {:.0} | {} | {} | {:.1} |",
            middle(|row| row.p50_us) / 1e3,
            shown(median(added.collect()) / 1e3, 2),
            middle(|row| row.p99_us) / 1e3,
            middle(|row| row.rate),
            shown(cpu, 0),
            shown(1e6 / cpu, 0),
            middle(|row| row.busy_cores),
        );
    }
    text
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ways_are_compared_with_the_direct_one_of_the_same_round() {
        let row = |way: Way, round: usize, p50_us: f64| ProxyRow {
            way: way.name().into(),
            clients: 1,
            round,
            requests: 10,
            p50_us,
            cpu_us: 100.0,
            ..ProxyRow::default()
        };
        let rows = [
            row(Way::Gateway, 0, 500.0),
            row(Way::Direct, 0, 200.0),
            row(Way::Gateway, 1, 900.0),
            row(Way::Direct, 1, 800.0),
            row(Way::Gateway, 2, 700.0),
            row(Way::Direct, 2, 300.0),
        ];
        let text = markdown(&rows);
        let lines: Vec<&str> = text.lines().skip(2).collect();
        assert!(lines[0].starts_with("| 1 | direct | 0.30 | – |"), "{text}");
        assert!(lines[1].starts_with("| 1 | gateway | 0.70 | 0.30 |"), "{text}");
        assert!(lines[1].contains("| 100 | 10000 |"), "{text}");
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("deep/rows.csv");
        write(&path, &rows).unwrap();
        let written = std::fs::read_to_string(&path).unwrap();
        assert!(written.lines().all(|line| line.split(',').count() == 12), "{written}");
    }
}
