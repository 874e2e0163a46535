//! Tables for people: medians of equal runs.

use std::fmt::Write as _;

use super::row::Row;

/// Setup of the runs that others are compared with.
pub const BARE: &str = "bare";

/// A Markdown table with a line for each (model, concurrency, setup, settings): the median of its runs, throughput with
/// its smallest and largest value, and time and processor time above those of the bare forward of the same repetition.
#[must_use]
pub fn markdown(rows: &[Row]) -> String {
    let mut text = String::from(
        "| model | clients | asked | requests/s | output tokens/s (min–max) | over bare: time, CPU | TTFT p50 / p99 ms | ITL p50 / p99 ms | KV peak MiB | CPU s: worker, gateway, clients | others |\n\
         |---|---|---|---|---|---|---|---|---|---|---|\n",
    );
    for group in groups(rows) {
        let of = |value: &dyn Fn(&Row) -> f64| median(group.iter().map(|row| value(row)).collect());
        let rates: Vec<f64> = group.iter().map(|row| row.token_rate()).collect();
        let least = rates.iter().copied().fold(f64::INFINITY, f64::min);
        let most = rates.iter().copied().fold(0.0, f64::max);
        let first = group[0];
        let setup = match first.settings.as_str() {
            "" => first.setup.clone(),
            settings => format!("{}, {settings}", first.setup),
        };
        let is_bare = first.setup == BARE;
        let latency = |p50: f64, p99: f64| match is_bare {
            true => "–".to_owned(),
            false => format!("{p50:.1} / {p99:.1}"),
        };
        let time = overheads(rows, &group, |row| row.seconds);
        let cpu = overheads(rows, &group, |row| row.cpu_worker_s + row.cpu_gateway_s + row.cpu_clients_s);
        let over = match time.is_empty() {
            true => "–".to_owned(),
            false => format!("{:+.1} %, {:+.1} %", median(time), median(cpu)),
        };
        let memory = match is_bare {
            true => "–".to_owned(),
            false => format!("{:.1}", of(&|row| row.kv_peak_bytes as f64) / f64::from(1 << 20)),
        };
        let _ = writeln!(
            text,
            "| {} | {} | {setup} | {:.2} | {:.1} ({least:.1}–{most:.1}) | {over} | {} | {} | {memory} | {:.1}, {:.1}, {:.1} | {:.0} % |",
            first.model,
            first.concurrency,
            of(&Row::request_rate),
            of(&Row::token_rate),
            latency(of(&|row| row.ttft_p50_ms), of(&|row| row.ttft_p99_ms)),
            latency(of(&|row| row.itl_p50_ms), of(&|row| row.itl_p99_ms)),
            of(&|row| row.cpu_worker_s),
            of(&|row| row.cpu_gateway_s),
            of(&|row| row.cpu_clients_s),
            of(&|row| row.cpu_others_percent),
        );
    }
    text
}

/// Runs that differ in nothing but the repetition, in the order in which they first come.
fn groups(rows: &[Row]) -> Vec<Vec<&Row>> {
    let key = |row: &Row| (row.model.clone(), row.concurrency, row.setup.clone(), row.settings.clone());
    let mut groups: Vec<Vec<&Row>> = Vec::new();
    for row in rows {
        match groups.iter_mut().find(|group| key(group[0]) == key(row)) {
            Some(group) => group.push(row),
            None => groups.push(vec![row]),
        }
    }
    groups
}

/// For each run, by how much it took more of something than the bare forward with the same requests, in percent.
fn overheads(rows: &[Row], group: &[&Row], of: impl Fn(&Row) -> f64) -> Vec<f64> {
    let bare = |row: &Row| {
        rows.iter().find(|other| {
            other.setup == BARE
                && (&other.model, other.concurrency, other.repetition)
                    == (&row.model, row.concurrency, row.repetition)
        })
    };
    let served = group.iter().filter(|row| row.setup != BARE);
    served.filter_map(|row| Some(100.0 * (of(row) / of(bare(row)?) - 1.0))).collect()
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    let middle = values.len() / 2;
    match values.len() {
        0 => 0.0,
        len if len % 2 == 1 => values[middle],
        _ => (values[middle - 1] + values[middle]) / 2.0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overhead_is_taken_within_a_repetition_and_the_median_shown() {
        let row = |setup: &str, repetition, seconds| Row {
            model: "m".into(),
            setup: setup.into(),
            concurrency: 32,
            repetition,
            requests: 10,
            output_tokens: 100,
            seconds,
            cpu_worker_s: 4.0,
            cpu_gateway_s: if setup == "bare" { 0.0 } else { 1.0 },
            ..Row::default()
        };
        let runs = [(10.0, 11.0), (20.0, 21.0), (10.0, 12.0)];
        let rows: Vec<Row> = (0..)
            .zip(runs)
            .flat_map(|(number, (bare, served))| [row("bare", number, bare), row("gateway", number, served)])
            .collect();
        let table = markdown(&rows);
        let lines: Vec<&str> = table.lines().collect();
        assert_eq!(lines.len(), 4, "{table}");
        assert!(lines[2].starts_with("| m | 32 | bare | 1.00 | 10.0 (5.0–10.0) | – |"), "{table}");
        assert!(
            lines[3].starts_with("| m | 32 | gateway | 0.83 | 8.3 (4.8–9.1) | +10.0 %, +25.0 % |"),
            "{table}"
        );
    }
}
