//! Rows of a CSV file, and a table of them.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result};

use super::case::{CASES, Case, Limit};

/// One command of one process.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct KernelRow {
    /// Day of the run, UTC.
    pub date: String,
    /// Commit, with `-dirty` if files differed.
    pub commit: String,
    /// Class of the machine.
    pub machine: String,
    /// Threads.
    pub threads: usize,
    /// What was computed.
    pub case: String,
    /// By whom; `limit` for what the machine can do.
    pub by: String,
    /// Number of the round.
    pub round: usize,
    /// Shortest repetition, milliseconds.
    pub min_ms: f64,
    /// Median repetition, milliseconds.
    pub median_ms: f64,
    /// Best rate of a repetition: GB/s of weights.
    pub gigabytes: f64,
    /// The same in GFLOP/s.
    pub gigaflops: f64,
    /// Share of the machine that other processes had, percent.
    pub cpu_others_percent: f64,
}

/// What follows a name where a busy thread ran beside.
pub(super) const BESIDE: &str = ", beside a busy thread";

const HEAD: &str =
    "date,commit,machine,threads,case,by,round,min_ms,median_ms,gb_per_s,gflop_per_s,cpu_others_percent\n";

/// Writes a file anew.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, rows: &[KernelRow]) -> Result<()> {
    let mut text = String::from(HEAD);
    for row in rows {
        let KernelRow { date, commit, machine, threads, case, by, round, .. } = row;
        let clean = |text: &str| text.replace([',', '\n'], ";");
        let (machine, case, by) = (clean(machine), clean(case), clean(by));
        let (min, median) = (row.min_ms, row.median_ms);
        let (bytes, flops, others) = (row.gigabytes, row.gigaflops, row.cpu_others_percent);
        let _ = writeln!(
            text,
            "{date},{commit},{machine},{threads},{case},{by},{round},{min:.4},{median:.4},{bytes:.2},{flops:.1},{others:.1}"
        );
    }
    std::fs::write(path, text).with_context(|| path.display().to_string())
}

/// Least, median and number of what was compared, round by round.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Spread {
    median: f64,
    best: f64,
    count: usize,
}

fn spread(mut values: Vec<f64>) -> Option<Spread> {
    values.sort_by(f64::total_cmp);
    let (median, best) = (*values.get(values.len() / 2)?, *values.last()?);
    Some(Spread { median, best, count: values.len() })
}

/// A line for each case and number of threads: times of ours, its share of the limit and its lead over the best other engine. Ratios
/// are of the same round.
#[must_use]
pub fn markdown(rows: &[KernelRow]) -> String {
    let mut text = String::from(
        "| threads | work | ours, ms: min (median) | rate | of limit: median (best) | best other engine, ms: min (median) | times as fast as it: median (best) | rounds | others' CPU |\n\
         |---|---|---|---|---|---|---|---|---|\n",
    );
    let mut threads: Vec<usize> = rows.iter().map(|row| row.threads).collect();
    threads.sort_unstable();
    threads.dedup();
    for &threads in &threads {
        for case in CASES {
            if let Some(line) = line(rows, threads, case) {
                text.push_str(&line);
            }
        }
    }
    let lines: Vec<String> = threads
        .iter()
        .flat_map(|&threads| CASES.iter().flat_map(move |case| lines_beside(rows, threads, case)))
        .collect();
    if !lines.is_empty() {
        text.push_str(
            "\n| threads | work, beside a busy thread | by | ms: min (median) | times as long as alone: median (most) | rounds |\n\
             |---|---|---|---|---|---|\n",
        );
        text.extend(lines);
    }
    text
}

fn rows_of<'a>(rows: &'a [KernelRow], threads: usize, case: &Case, by: &str) -> Vec<&'a KernelRow> {
    rows.iter().filter(|row| row.threads == threads && row.case == case.name && row.by == by).collect()
}

/// What a busy neighbour costs each engine; medians of a round are compared, since it comes and goes within one.
fn lines_beside(rows: &[KernelRow], threads: usize, case: &Case) -> Vec<String> {
    let of = |by: &str| rows_of(rows, threads, case, by);
    let line = |by: &str| {
        let (alone, beside) = (of(by), of(&format!("{by}{BESIDE}")));
        let least = beside.iter().map(|row| row.min_ms).fold(f64::INFINITY, f64::min);
        let median = spread(beside.iter().map(|row| row.median_ms).collect())?;
        let ratios = beside.iter().filter_map(|row| {
            let other = alone.iter().find(|other| other.round == row.round)?;
            Some(row.median_ms / other.median_ms)
        });
        let cost = spread(ratios.collect())?;
        Some(format!(
            "| {threads} | {} | {by} | {least:.2} ({:.2}) | {:.2} ({:.2}) | {} |\n",
            case.name, median.median, cost.median, cost.best, cost.count,
        ))
    };
    let names = std::iter::once("belay").chain(case.others.iter().map(|(name, _)| *name));
    names.filter_map(line).collect()
}

fn line(rows: &[KernelRow], threads: usize, case: &Case) -> Option<String> {
    let of = |by: &str| rows_of(rows, threads, case, by);
    let (ours, limits) = (of("belay"), of("limit"));
    let rate = |row: &KernelRow| if case.limit == Limit::Read { row.gigabytes } else { row.gigaflops };
    let compared = |others: &[&KernelRow], ratio: &dyn Fn(&KernelRow, &KernelRow) -> f64| {
        let same = |row: &&&KernelRow| others.iter().find(|other| other.round == row.round).copied();
        spread(ours.iter().filter_map(|row| Some(ratio(row, same(&row)?))).collect())
    };
    let share = compared(&limits, &|row, limit| rate(row) / rate(limit))?;
    let times = |rows: &[&KernelRow]| {
        let min = rows.iter().map(|row| row.min_ms).fold(f64::INFINITY, f64::min);
        let median =
            spread(rows.iter().map(|row| row.median_ms).collect()).map_or(f64::NAN, |spread| spread.median);
        format!("{min:.2} ({median:.2})")
    };
    let others = case.others.iter().filter_map(|(name, _)| {
        let rows = of(name);
        let lead = compared(&rows, &|row, other| other.min_ms / row.min_ms)?;
        Some((name, times(&rows), lead))
    });
    let best = others.min_by(|a, b| a.2.median.total_cmp(&b.2.median));
    let (other, lead) = best.map_or_else(
        || ("–".to_owned(), "–".to_owned()),
        |(name, times, lead)| (format!("{name}: {times}"), format!("{:.2} ({:.2})", lead.median, lead.best)),
    );
    let unit = if case.limit == Limit::Read { "GB/s" } else { "GFLOP/s" };
    let best_rate = ours.iter().map(|row| rate(row)).fold(0.0, f64::max);
    let foreign = spread(ours.iter().map(|row| row.cpu_others_percent).collect())?;
    Some(format!(
        "| {threads} | {} | {} | {best_rate:.1} {unit} | {:.2} ({:.2}) of {} | {other} | {lead} | {} | {:.0} % |\n",
        case.name,
        times(&ours),
        share.median,
        share.best,
        case.limit.name(),
        share.count,
        foreign.median,
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(by: &str, round: usize, min_ms: f64, gigabytes: f64) -> KernelRow {
        let (case, by) = ("experts, batch 1".to_owned(), by.to_owned());
        KernelRow {
            threads: 2,
            case,
            by,
            round,
            min_ms,
            median_ms: 2.0 * min_ms,
            gigabytes,
            ..KernelRow::default()
        }
    }

    #[test]
    fn a_neighbour_is_compared_with_the_same_round_without() {
        let rows = [
            row("limit", 0, 1.0, 40.0),
            row("belay", 0, 2.0, 36.0),
            row("belay, beside a busy thread", 0, 3.0, 30.0),
            row("llama.cpp", 0, 2.0, 24.0),
            row("llama.cpp, beside a busy thread", 0, 8.0, 24.0),
        ];
        let table = markdown(&rows);
        assert!(
            table.contains("| 2 | experts, batch 1 | belay | 3.00 (6.00) | 1.50 (1.50) | 1 |\n"),
            "{table}"
        );
        assert!(
            table.ends_with("| 2 | experts, batch 1 | llama.cpp | 8.00 (16.00) | 4.00 (4.00) | 1 |\n"),
            "{table}"
        );
    }

    #[test]
    fn ratios_are_those_of_the_same_round() {
        let rows = [
            row("limit", 0, 1.0, 40.0),
            row("belay", 0, 2.0, 36.0),
            row("llama.cpp", 0, 3.0, 24.0),
            row("limit", 1, 1.0, 20.0),
            row("belay", 1, 4.0, 18.0),
            row("llama.cpp", 1, 6.0, 12.0),
            row("kt-kernel", 1, 40.0, 1.0),
        ];
        let table = markdown(&rows);
        let line = table.lines().last().unwrap();
        assert!(
            line.contains(
                "| 2.00 (8.00) | 36.0 GB/s | 0.90 (0.90) of read | llama.cpp: 3.00 (12.00) | 1.50 (1.50) | 2 |"
            ),
            "{line}"
        );
    }
}
