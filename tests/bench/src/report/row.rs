//! One run as one line of CSV.

use std::fmt::Write as _;
use std::path::Path;

use anyhow::{Context, Result, ensure};

/// What one run measured. The first fields say what ran, the others what came of it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Day of the run, UTC.
    pub date: String,
    /// Commit, with `-dirty` if files differed.
    pub commit: String,
    /// Class of the machine.
    pub machine: String,
    /// Model.
    pub model: String,
    /// `bare`, `worker` or `gateway`: who was asked.
    pub setup: String,
    /// Options of the worker that are not the default.
    pub settings: String,
    /// Clients at a time.
    pub concurrency: usize,
    /// Number of the run among equal ones.
    pub repetition: usize,
    /// Requests answered.
    pub requests: usize,
    /// Tokens of all prompts.
    pub prompt_tokens: u64,
    /// Tokens of all prompts that came out of the prefix cache.
    pub cached_tokens: u64,
    /// Tokens of all answers.
    pub output_tokens: u64,
    /// From the first request to the last answer.
    pub seconds: f64,
    /// Time to first token, median, milliseconds.
    pub ttft_p50_ms: f64,
    /// The same, 99th percentile.
    pub ttft_p99_ms: f64,
    /// Time between pieces of a stream, median, milliseconds.
    pub itl_p50_ms: f64,
    /// The same, 99th percentile.
    pub itl_p99_ms: f64,
    /// Most bytes of decode state in use, of several looks.
    pub kv_peak_bytes: u64,
    /// Processor time of the worker (of the bare forward, if it is that), seconds.
    pub cpu_worker_s: f64,
    /// Of the gateway.
    pub cpu_gateway_s: f64,
    /// Of the clients.
    pub cpu_clients_s: f64,
    /// Share of the machine that processes other than these had, percent.
    pub cpu_others_percent: f64,
}

/// Calls `$with` with every field in order.
macro_rules! fields {
    ($with:ident) => {
        $with!(
            date,
            commit,
            machine,
            model,
            setup,
            settings,
            concurrency,
            repetition,
            requests,
            prompt_tokens,
            cached_tokens,
            output_tokens,
            seconds,
            ttft_p50_ms,
            ttft_p99_ms,
            itl_p50_ms,
            itl_p99_ms,
            kv_peak_bytes,
            cpu_worker_s,
            cpu_gateway_s,
            cpu_clients_s,
            cpu_others_percent
        )
    };
}

impl Row {
    /// Requests a second.
    #[must_use]
    pub fn request_rate(&self) -> f64 {
        self.requests as f64 / self.seconds
    }

    /// Output tokens a second.
    #[must_use]
    pub fn token_rate(&self) -> f64 {
        self.output_tokens as f64 / self.seconds
    }

    fn line(&self) -> String {
        let mut line = String::new();
        macro_rules! write_fields {
            ($($name:ident),*) => { $( let _ = write!(line, "{},", text(&self.$name)); )* };
        }
        fields!(write_fields);
        line.pop();
        line
    }

    fn parse(line: &str) -> Result<Self> {
        let mut values = line.split(',');
        let mut row = Self::default();
        macro_rules! read_fields {
            ($($name:ident),*) => { $(
                let value = values.next().with_context(|| format!("no {}", stringify!($name)))?;
                row.$name = value.parse().with_context(|| format!("{}: {value:?}", stringify!($name)))?;
            )* };
        }
        fields!(read_fields);
        ensure!(values.next().is_none(), "too many values");
        Ok(row)
    }
}

/// Numbers with three digits behind the point at most; text without commas.
fn text(value: &dyn std::any::Any) -> String {
    let rounded = |number: &f64| ((number * 1e3).round() / 1e3).to_string();
    let number = value.downcast_ref::<f64>().map(rounded);
    let count = || value.downcast_ref::<u64>().map(ToString::to_string);
    let size = || value.downcast_ref::<usize>().map(ToString::to_string);
    let words = || value.downcast_ref::<String>().map(|text| text.replace([',', '\n'], ";"));
    number.or_else(count).or_else(size).or_else(words).unwrap_or_default()
}

fn header() -> String {
    macro_rules! names {
        ($($name:ident),*) => { [$(stringify!($name)),*].join(",") };
    }
    fields!(names)
}

/// Writes a file anew.
///
/// # Errors
/// It can't be written.
pub fn write(path: &Path, rows: &[Row]) -> Result<()> {
    let lines = std::iter::once(header()).chain(rows.iter().map(Row::line));
    let text: String = lines.map(|line| line + "\n").collect();
    if let Some(parent) = path.parent() {
        std::fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// Reads a file that [`write`] wrote.
///
/// # Errors
/// The line that is not a row.
pub fn read(path: &Path) -> Result<Vec<Row>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some(&header()), "{} has other columns", path.display());
    lines
        .enumerate()
        .map(|(number, line)| {
            Row::parse(line).with_context(|| format!("{} line {}", path.display(), number + 2))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/b.csv");
        let row = Row {
            machine: "Some; 2 cores".into(),
            concurrency: 32,
            requests: 10,
            output_tokens: 30,
            seconds: 2.5,
            cpu_others_percent: 0.125,
            ..Row::default()
        };
        assert_eq!((row.request_rate(), row.token_rate()), (4.0, 12.0));
        let rows = [row];
        write(&path, &rows).unwrap();
        assert_eq!(read(&path).unwrap(), rows);
        std::fs::write(&path, "date,commit\n").unwrap();
        assert!(read(&path).unwrap_err().to_string().contains("other columns"));
    }

    #[test]
    fn text_can_not_break_a_line() {
        let row = Row { machine: "a, b\nc".into(), ..Row::default() };
        assert_eq!(Row::parse(&row.line()).unwrap().machine, "a; b;c");
    }
}
