//! Rows of text, separated by commas, with a line of names first.

use std::{
    fs::{self, OpenOptions},
    io::Write,
    path::Path,
};

use anyhow::{Context, Result, ensure};

/// What is a line of a file.
pub trait Record: Sized {
    /// Names of the columns.
    const COLUMNS: &'static [&'static str];

    /// A value for each column.
    fn values(&self) -> Vec<String>;

    /// From as many values as there are columns.
    ///
    /// # Errors
    /// Names the column whose value is no good.
    fn parse(values: &[&str]) -> Result<Self>;
}

/// Adds a row to a file, which is made if there is none.
///
/// # Errors
/// It can't be written.
pub fn append<R: Record>(path: &Path, row: &R) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).with_context(|| parent.display().to_string())?;
    }
    let new = !path.exists();
    let mut file = OpenOptions::new()
        .create(true)
        .append(true)
        .open(path)
        .with_context(|| format!("cannot write {}", path.display()))?;
    let mut text = if new { R::COLUMNS.join(",") + "\n" } else { String::new() };
    // no value may break a line
    let values = row.values().into_iter().map(|value| value.replace(',', ";").replace(['\n', '\r'], " "));
    text += &values.collect::<Vec<_>>().join(",");
    text.push('\n');
    file.write_all(text.as_bytes()).with_context(|| format!("cannot write {}", path.display()))
}

/// Every row of a file; none if there is no file.
///
/// # Errors
/// The line that is no row.
pub fn read<R: Record>(path: &Path) -> Result<Vec<R>> {
    if !path.exists() {
        return Ok(Vec::new());
    }
    let text = fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let mut lines = text.lines();
    ensure!(lines.next() == Some(&R::COLUMNS.join(",")), "{} has other columns", path.display());
    lines
        .enumerate()
        .map(|(index, line)| {
            let values: Vec<&str> = line.split(',').collect();
            ensure!(values.len() == R::COLUMNS.len(), "{} values", values.len());
            R::parse(&values).with_context(|| format!("{} line {}", path.display(), index + 2))
        })
        .collect()
}

/// One value of a line.
///
/// # Errors
/// Names the column.
pub fn value<T: std::str::FromStr>(columns: &[&str], values: &[&str], name: &str) -> Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let index =
        columns.iter().position(|&column| column == name).with_context(|| format!("no column {name}"))?;
    let text = values.get(index).copied().unwrap_or_default();
    text.parse().with_context(|| format!("{name}: {text:?}"))
}

/// What [`seconds`] wrote.
///
/// # Errors
/// Names the column.
pub fn maybe_seconds(columns: &[&str], values: &[&str], name: &str) -> Result<Option<f64>> {
    let text: String = value(columns, values, name)?;
    if text.is_empty() { Ok(None) } else { value(columns, values, name).map(Some) }
}

/// A number of seconds that may be missing.
#[must_use]
pub fn seconds(value: Option<f64>) -> String {
    value.map(|value| format!("{value:.2}")).unwrap_or_default()
}
