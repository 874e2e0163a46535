//! What came of one change that was made on purpose.

use anyhow::Result;

use super::{
    csv::{self, Record},
    provenance::Provenance,
};

/// One change under load: a line of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Change {
    /// Where it comes from.
    pub provenance: Provenance,
    /// What was done.
    pub event: String,
    /// Among equal ones.
    pub repetition: u32,
    /// Streams that were right to the last token.
    pub right: usize,
    /// Streams that failed.
    pub failed: usize,
    /// Streams that differed.
    pub differing: usize,
    /// Longest wait for a first piece, seconds.
    pub first_s: f64,
    /// Longest wait between two pieces of a stream, seconds.
    pub gap_s: f64,
    /// How long the change took, seconds.
    pub took_s: f64,
    /// What went wrong; empty if nothing did.
    pub problem: String,
}

impl Record for Change {
    const COLUMNS: &'static [&'static str] = &[
        "date",
        "commit",
        "machine",
        "event",
        "repetition",
        "right",
        "failed",
        "differing",
        "first_s",
        "gap_s",
        "took_s",
        "problem",
    ];

    fn values(&self) -> Vec<String> {
        let Provenance { date, commit, machine } = self.provenance.clone();
        vec![
            date,
            commit,
            machine,
            self.event.clone(),
            self.repetition.to_string(),
            self.right.to_string(),
            self.failed.to_string(),
            self.differing.to_string(),
            csv::seconds(Some(self.first_s)),
            csv::seconds(Some(self.gap_s)),
            csv::seconds(Some(self.took_s)),
            self.problem.clone(),
        ]
    }

    fn parse(values: &[&str]) -> Result<Self> {
        let text = |name| csv::value::<String>(Self::COLUMNS, values, name);
        let count = |name| csv::value::<usize>(Self::COLUMNS, values, name);
        let seconds = |name| csv::value::<f64>(Self::COLUMNS, values, name);
        Ok(Self {
            provenance: Provenance::parse(Self::COLUMNS, values)?,
            event: text("event")?,
            repetition: csv::value(Self::COLUMNS, values, "repetition")?,
            right: count("right")?,
            failed: count("failed")?,
            differing: count("differing")?,
            first_s: seconds("first_s")?,
            gap_s: seconds("gap_s")?,
            took_s: seconds("took_s")?,
            problem: text("problem")?,
        })
    }
}
