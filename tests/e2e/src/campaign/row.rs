//! What came of one trial.

use anyhow::Result;

use super::{
    csv::{self, Record},
    provenance::Provenance,
    scenario::Scenario,
};

/// One trial: a line of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Row {
    /// Where it comes from.
    pub provenance: Provenance,
    /// Name of the fault.
    pub fault: String,
    /// Workers and ranks: `2x2`.
    pub layout: String,
    /// Copies of every expert.
    pub copies: u32,
    /// Among equal trials.
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
    /// From the fault until a worker saw that a peer does not answer, seconds.
    pub noticed_s: Option<f64>,
    /// Until every worker that was not struck had a live copy of every expert and took requests for good.
    pub serving_s: Option<f64>,
    /// Until all workers were there with all copies.
    pub restored_s: Option<f64>,
    /// Longest time that a worker which was not struck counted without coverage, seconds.
    pub uncovered_s: f64,
    /// Operations that the operator began.
    pub operations: usize,
    /// Which promise was broken; empty if none was.
    pub problem: String,
}

impl Row {
    /// With nothing measured yet.
    #[must_use]
    pub fn of(scenario: &Scenario, provenance: &Provenance) -> Self {
        Self {
            provenance: provenance.clone(),
            fault: scenario.fault.name().to_owned(),
            layout: scenario.layout.to_string(),
            copies: scenario.copies,
            repetition: scenario.repetition,
            ..Self::default()
        }
    }

    /// Whether it is about this scenario, on this commit.
    #[must_use]
    pub fn is_of(&self, scenario: &Scenario, commit: &str) -> bool {
        self.provenance.commit == commit
            && (&*self.fault, &self.layout) == (scenario.fault.name(), &scenario.layout.to_string())
            && (self.copies, self.repetition) == (scenario.copies, scenario.repetition)
    }

    /// The longest that any stream stood still, seconds.
    #[must_use]
    pub fn stall_s(&self) -> f64 {
        self.first_s.max(self.gap_s)
    }
}

impl Record for Row {
    const COLUMNS: &'static [&'static str] = &[
        "date",
        "commit",
        "machine",
        "fault",
        "layout",
        "copies",
        "repetition",
        "right",
        "failed",
        "differing",
        "first_s",
        "gap_s",
        "noticed_s",
        "serving_s",
        "restored_s",
        "uncovered_s",
        "operations",
        "problem",
    ];

    fn values(&self) -> Vec<String> {
        let Provenance { date, commit, machine } = self.provenance.clone();
        vec![
            date,
            commit,
            machine,
            self.fault.clone(),
            self.layout.clone(),
            self.copies.to_string(),
            self.repetition.to_string(),
            self.right.to_string(),
            self.failed.to_string(),
            self.differing.to_string(),
            csv::seconds(Some(self.first_s)),
            csv::seconds(Some(self.gap_s)),
            csv::seconds(self.noticed_s),
            csv::seconds(self.serving_s),
            csv::seconds(self.restored_s),
            csv::seconds(Some(self.uncovered_s)),
            self.operations.to_string(),
            self.problem.clone(),
        ]
    }

    fn parse(values: &[&str]) -> Result<Self> {
        let text = |name| csv::value::<String>(Self::COLUMNS, values, name);
        let count = |name| csv::value::<usize>(Self::COLUMNS, values, name);
        let small = |name| csv::value::<u32>(Self::COLUMNS, values, name);
        let seconds = |name| csv::value::<f64>(Self::COLUMNS, values, name);
        let maybe = |name| csv::maybe_seconds(Self::COLUMNS, values, name);
        Ok(Self {
            provenance: Provenance::parse(Self::COLUMNS, values)?,
            fault: text("fault")?,
            layout: text("layout")?,
            copies: small("copies")?,
            repetition: small("repetition")?,
            right: count("right")?,
            failed: count("failed")?,
            differing: count("differing")?,
            first_s: seconds("first_s")?,
            gap_s: seconds("gap_s")?,
            noticed_s: maybe("noticed_s")?,
            serving_s: maybe("serving_s")?,
            restored_s: maybe("restored_s")?,
            uncovered_s: seconds("uncovered_s")?,
            operations: count("operations")?,
            problem: text("problem")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_come_back_and_foreign_files_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/faults.csv");
        assert_eq!(csv::read::<Row>(&path).unwrap(), []);
        let scenario = Scenario::all(1)[0];
        let provenance = Provenance { commit: "abc".into(), ..Provenance::default() };
        let row = Row {
            first_s: 0.25,
            gap_s: 1.5,
            noticed_s: Some(0.5),
            failed: 2,
            problem: "2 failed; late".into(),
            ..Row::of(&scenario, &provenance)
        };
        assert_eq!(row.stall_s(), 1.5);
        csv::append(&path, &row).unwrap();
        csv::append(&path, &Row { problem: "one, two\nthree".into(), ..row.clone() }).unwrap();
        let read: Vec<Row> = csv::read(&path).unwrap();
        assert_eq!((read.len(), &read[0], read[1].problem.as_str()), (2, &row, "one; two three"));
        assert!(read[0].is_of(&scenario, "abc") && !read[0].is_of(&scenario, "abd"));
        assert!(!read[0].is_of(&Scenario { repetition: 1, ..scenario }, "abc"));
        std::fs::write(&path, "date,commit\n").unwrap();
        assert!(csv::read::<Row>(&path).unwrap_err().to_string().contains("other columns"));
    }
}
