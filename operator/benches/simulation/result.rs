//! What came of it.
use super::plant::Record;

/// First tokens are to be there within so many seconds.
pub const SLO_SECONDS: f64 = 2.0;

/// A group that was given up and was needed again so soon should have stayed.
const FLAP_SECONDS: f64 = 300.0;

/// What came of a trace under an autoscaler.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    pub trace: String,
    pub autoscaler: String,
    pub requests: usize,
    /// Of those, refused.
    pub refused: usize,
    /// Of those, refused or with a first token after more than [`SLO_SECONDS`].
    pub late: usize,
    pub p99_seconds: f64,
    /// Longest time until a first token or a refusal.
    pub worst_seconds: f64,
    pub group_seconds: f64,
    /// When the number of groups was set, and by how much.
    pub changes: Vec<(f64, i64)>,
    /// Most groups.
    pub most: u32,
}

impl Outcome {
    pub fn new(trace: String, autoscaler: &str) -> Self {
        Self { trace, autoscaler: autoscaler.to_owned(), ..Self::default() }
    }

    pub fn scaled(&mut self, now: f64, from: u32, to: u32) {
        self.changes.push((now, i64::from(to) - i64::from(from)));
        self.most = self.most.max(to);
    }

    pub fn finish(&mut self, records: &[Record]) {
        let mut waits: Vec<f64> = records
            .iter()
            .map(|record| match record {
                Record::Served(seconds) | Record::Refused(seconds) => *seconds,
            })
            .collect();
        waits.sort_by(f64::total_cmp);
        self.requests = records.len();
        self.refused = records.iter().filter(|record| matches!(record, Record::Refused(_))).count();
        let late = |record: &&Record| match record {
            Record::Served(seconds) => *seconds > SLO_SECONDS,
            Record::Refused(_) => true,
        };
        self.late = records.iter().filter(late).count();
        self.p99_seconds = waits.get(waits.len() * 99 / 100).copied().unwrap_or(0.0);
        self.worst_seconds = waits.last().copied().unwrap_or(0.0);
    }

    /// How often groups were given up, and others started within five minutes.
    pub fn flaps(&self) -> usize {
        let pairs = self.changes.windows(2);
        pairs.filter(|pair| matches!(pair, [a, b] if a.1 < 0 && b.1 > 0 && b.0 - a.0 < FLAP_SECONDS)).count()
    }

    pub fn late_percent(&self) -> f64 {
        100.0 * self.late as f64 / self.requests.max(1) as f64
    }
}
