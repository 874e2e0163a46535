//! Whether every expert has a live copy, and for how long some had none.

use std::time::{Duration, Instant};

/// Experts' copies as this worker sees them: on its own ranks, and on those of peers that answer.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Coverage {
    /// Epoch in force; 0 for none.
    pub epoch: u64,
    /// (layer, expert) pairs.
    pub experts: u32,
    /// Pairs without a live copy at this moment.
    pub uncovered: u32,
    /// Live copies of the pair that has the fewest.
    pub min_live: u32,
    /// Copies that this worker holds beyond the placement.
    pub adopted: u32,
    /// Time in which some pair had no live copy, since all peers were live for the first time.
    pub uncovered_for: Duration,
}

/// What a moment changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Something is uncovered from now on.
    Opened,
    /// All is covered again, after so long.
    Closed(Duration),
}

/// Adds up the time in which something is uncovered; every change is told, so no gap is missed.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    begun: bool,
    open: Option<Instant>,
    closed: Duration,
}

impl Gaps {
    /// How it is from `now` on; what began or ended with that. Nothing counts until `complete` was true once.
    pub(crate) fn note(&mut self, covered: bool, complete: bool, now: Instant) -> Option<Gap> {
        self.begun |= complete;
        match (covered, self.open) {
            (true, Some(since)) => {
                let length = now.saturating_duration_since(since);
                self.closed += length;
                self.open = None;
                Some(Gap::Closed(length))
            }
            (false, None) if self.begun => {
                self.open = Some(now);
                Some(Gap::Opened)
            }
            _ => None,
        }
    }

    pub(crate) fn total(&self, now: Instant) -> Duration {
        self.closed + self.open.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn gaps_add_up_from_the_first_complete_moment() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut gaps = Gaps::default();
        assert_eq!(gaps.note(false, false, at(0)), None);
        assert_eq!(gaps.note(true, true, at(5)), None);
        assert_eq!(gaps.total(at(6)), Duration::ZERO);
        assert_eq!(gaps.note(false, false, at(7)), Some(Gap::Opened));
        assert_eq!(gaps.note(false, true, at(8)), None);
        assert_eq!(gaps.total(at(9)), Duration::from_secs(2));
        assert_eq!(gaps.note(true, false, at(10)), Some(Gap::Closed(Duration::from_secs(3))));
        gaps.note(false, false, at(12));
        gaps.note(true, false, at(13));
        assert_eq!(gaps.total(at(20)), Duration::from_secs(4));
    }
}
