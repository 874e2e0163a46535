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
    /// Part of `uncovered_for` in which each such pair had a holder that was suspect for nothing but its silence: it
    /// was live before, and its connections stood.
    pub silent_for: Duration,
}

/// How the pairs are at a moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Cover {
    /// Each has a live copy.
    Whole,
    /// Some have none, and each of these has a holder that is only silent.
    Silent,
    /// Some have none, and one of these at least has no holder that is only silent.
    Bare,
}

/// What a moment changed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Gap {
    /// Something is uncovered from now on.
    Opened,
    /// All is covered again, after so long.
    Closed(Duration),
}

/// Time that is measured in pieces.
#[derive(Debug, Default)]
struct Watch {
    running: Option<Instant>,
    stopped: Duration,
}

impl Watch {
    fn start(&mut self, now: Instant) {
        self.running.get_or_insert(now);
    }

    /// Length of the piece that ends with that.
    fn stop(&mut self, now: Instant) -> Option<Duration> {
        let piece = now.saturating_duration_since(self.running.take()?);
        self.stopped += piece;
        Some(piece)
    }

    fn total(&self, now: Instant) -> Duration {
        self.stopped + self.running.map_or(Duration::ZERO, |since| now.saturating_duration_since(since))
    }
}

/// Adds up the time in which something is uncovered; every change is told, so no gap is missed.
#[derive(Debug, Default)]
pub(crate) struct Gaps {
    begun: bool,
    all: Watch,
    /// Runs only while `all` does.
    silent: Watch,
}

impl Gaps {
    /// How it is from `now` on; what began or ended with that. Nothing counts until `complete` was true once.
    pub(crate) fn note(&mut self, cover: Cover, complete: bool, now: Instant) -> Option<Gap> {
        self.begun |= complete;
        if cover == Cover::Silent && self.begun {
            self.silent.start(now);
        } else {
            self.silent.stop(now);
        }
        match (cover, self.all.running) {
            (Cover::Whole, _) => self.all.stop(now).map(Gap::Closed),
            (_, None) if self.begun => {
                self.all.start(now);
                Some(Gap::Opened)
            }
            _ => None,
        }
    }

    /// Of all gaps, the open one included.
    pub(crate) fn total(&self, now: Instant) -> Duration {
        self.all.total(now)
    }

    /// Of `total`, what was [`Cover::Silent`].
    pub(crate) fn silent(&self, now: Instant) -> Duration {
        self.silent.total(now)
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
        assert_eq!(gaps.note(Cover::Bare, false, at(0)), None);
        assert_eq!(gaps.note(Cover::Whole, true, at(5)), None);
        assert_eq!(gaps.total(at(6)), Duration::ZERO);
        assert_eq!(gaps.note(Cover::Bare, false, at(7)), Some(Gap::Opened));
        assert_eq!(gaps.note(Cover::Bare, true, at(8)), None);
        assert_eq!(gaps.total(at(9)), Duration::from_secs(2));
        assert_eq!(gaps.note(Cover::Whole, false, at(10)), Some(Gap::Closed(Duration::from_secs(3))));
        gaps.note(Cover::Bare, false, at(12));
        gaps.note(Cover::Whole, false, at(13));
        assert_eq!(gaps.total(at(20)), Duration::from_secs(4));
        assert_eq!(gaps.silent(at(20)), Duration::ZERO);
    }

    #[test]
    fn silence_is_a_part_of_the_gap_that_it_is_in() {
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        let mut gaps = Gaps::default();
        let both = |gaps: &Gaps, now| (gaps.total(at(now)).as_secs(), gaps.silent(at(now)).as_secs());
        gaps.note(Cover::Silent, false, at(0));
        assert_eq!(both(&gaps, 1), (0, 0), "nothing counts yet");
        gaps.note(Cover::Whole, true, at(2));
        assert_eq!(gaps.note(Cover::Silent, true, at(10)), Some(Gap::Opened));
        assert_eq!(gaps.note(Cover::Silent, true, at(11)), None);
        assert_eq!(both(&gaps, 12), (2, 2), "all of it");
        assert_eq!(gaps.note(Cover::Bare, true, at(13)), None, "the same gap");
        assert_eq!(both(&gaps, 15), (5, 3));
        assert_eq!(gaps.note(Cover::Silent, true, at(17)), None);
        assert_eq!(gaps.note(Cover::Whole, true, at(18)), Some(Gap::Closed(Duration::from_secs(8))));
        assert_eq!(both(&gaps, 30), (8, 4));
        gaps.note(Cover::Bare, true, at(40));
        assert_eq!(both(&gaps, 41), (9, 4));
    }
}
