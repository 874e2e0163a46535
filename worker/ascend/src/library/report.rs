use std::fmt;
use std::path::PathBuf;

use super::{Family, Tried, shown};

/// Where a symbol came from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resolved {
    /// Its name.
    pub symbol: &'static str,
    /// Where it is documented to live.
    pub family: Family,
    /// Whether there is no way without it.
    pub required: bool,
    /// The file that has it: as the loader says, so a library behind the one that was opened is told apart.
    pub file: Option<PathBuf>,
}

/// What was found where, for logs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// Version of the installation, if it says.
    pub version: Option<String>,
    /// Every symbol that was looked for.
    pub symbols: Vec<Resolved>,
    /// Files in the order in which they were tried.
    pub tried: Vec<Tried>,
}

impl Report {
    /// Optional symbols that were not found.
    pub fn absent(&self) -> impl Iterator<Item = &'static str> + '_ {
        self.symbols.iter().filter(|found| found.file.is_none()).map(|found| found.symbol)
    }
}

impl fmt::Display for Report {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "CANN {}", self.version.as_deref().unwrap_or("of unknown version"))?;
        let mut files: Vec<&PathBuf> = self.symbols.iter().filter_map(|found| found.file.as_ref()).collect();
        files.dedup();
        let mut seen: Vec<&PathBuf> = Vec::new();
        for file in files {
            if seen.contains(&file) {
                continue;
            }
            seen.push(file);
            let count = self.symbols.iter().filter(|found| found.file.as_ref() == Some(file)).count();
            write!(out, "; {count} symbols from {}", shown(file))?;
        }
        let absent: Vec<&str> = self.absent().collect();
        if !absent.is_empty() {
            write!(out, "; optional and absent: {}", absent.join(", "))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_report_counts_by_file_and_names_what_is_absent() {
        let found = |symbol, file: Option<&str>| Resolved {
            symbol,
            family: Family::Runtime,
            required: file.is_some(),
            file: file.map(PathBuf::from),
        };
        let report = Report {
            version: Some("9.1.0".into()),
            symbols: vec![
                found("a", Some("x.so")),
                found("b", Some("y.so")),
                found("c", Some("x.so")),
                found("d", None),
            ],
            tried: Vec::new(),
        };
        assert_eq!(
            report.to_string(),
            "CANN 9.1.0; 2 symbols from x.so; 1 symbols from y.so; optional and absent: d"
        );
    }
}
