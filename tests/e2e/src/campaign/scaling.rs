//! What came of an autoscaler, or of what judges a canary, under load.

use anyhow::Result;

use super::{
    csv::{self, Record},
    provenance::Provenance,
};

/// One scenario, played once: a line of the file.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Run {
    /// Where it comes from.
    pub provenance: Provenance,
    /// What was played.
    pub scenario: String,
    /// Among equal ones.
    pub repetition: u32,
    /// Streams that were right to the last token.
    pub right: usize,
    /// Streams that failed.
    pub failed: usize,
    /// Times that a stream was sent away, with the time to come back.
    pub refused: usize,
    /// Streams that differed.
    pub differing: usize,
    /// Longest wait for a first piece, seconds.
    pub first_s: f64,
    /// `spec.replicas` over time: `1 > 3 > 1`.
    pub groups: String,
    /// How often that changed its direction.
    pub turns: usize,
    /// From the beginning of the load until as many groups as it asked for were ready, seconds.
    pub up_s: Option<f64>,
    /// From its end until all groups that were too many are gone, seconds.
    pub down_s: Option<f64>,
    /// What else was seen.
    pub saw: String,
    /// What went wrong; empty if nothing did.
    pub problem: String,
}

impl Record for Run {
    const COLUMNS: &'static [&'static str] = &[
        "date",
        "commit",
        "machine",
        "scenario",
        "repetition",
        "right",
        "failed",
        "refused",
        "differing",
        "first_s",
        "groups",
        "turns",
        "up_s",
        "down_s",
        "saw",
        "problem",
    ];

    fn values(&self) -> Vec<String> {
        let Provenance { date, commit, machine } = self.provenance.clone();
        vec![
            date,
            commit,
            machine,
            self.scenario.clone(),
            self.repetition.to_string(),
            self.right.to_string(),
            self.failed.to_string(),
            self.refused.to_string(),
            self.differing.to_string(),
            csv::seconds(Some(self.first_s)),
            self.groups.clone(),
            self.turns.to_string(),
            csv::seconds(self.up_s),
            csv::seconds(self.down_s),
            self.saw.clone(),
            self.problem.clone(),
        ]
    }

    fn parse(values: &[&str]) -> Result<Self> {
        let text = |name| csv::value::<String>(Self::COLUMNS, values, name);
        let count = |name| csv::value::<usize>(Self::COLUMNS, values, name);
        let seconds = |name| csv::value::<f64>(Self::COLUMNS, values, name);
        let maybe = |name| csv::maybe_seconds(Self::COLUMNS, values, name);
        Ok(Self {
            provenance: Provenance::parse(Self::COLUMNS, values)?,
            scenario: text("scenario")?,
            repetition: csv::value(Self::COLUMNS, values, "repetition")?,
            right: count("right")?,
            failed: count("failed")?,
            refused: count("refused")?,
            differing: count("differing")?,
            first_s: seconds("first_s")?,
            groups: text("groups")?,
            turns: count("turns")?,
            up_s: maybe("up_s")?,
            down_s: maybe("down_s")?,
            saw: text("saw")?,
            problem: text("problem")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn runs_come_back() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("autoscaling.csv");
        let run = Run {
            groups: "0 > 1 > 0".into(),
            turns: 1,
            up_s: Some(4.5),
            saw: "one; two".into(),
            ..Run::default()
        };
        csv::append(&path, &run).unwrap();
        assert_eq!(csv::read::<Run>(&path).unwrap(), [run]);
    }
}
