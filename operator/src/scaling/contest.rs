//! Somebody else who sets the number of groups again and again.
use jiff::{SignedDuration, Timestamp};

/// A number that somebody sets so soon after ours contradicts it.
const SOON: SignedDuration = SignedDuration::from_mins(2);

/// For how long contradictions are counted.
const COUNTED: SignedDuration = SignedDuration::from_mins(15);

/// So many contradictions are no accident.
const MANY: usize = 3;

/// How long it is left to them then.
const PAUSE: SignedDuration = SignedDuration::from_mins(5);

/// Contradictions.
#[derive(Clone, Debug, Default)]
pub(super) struct Contest {
    contradictions: Vec<Timestamp>,
    until: Option<Timestamp>,
}

impl Contest {
    /// Somebody has set another number; `ours`: when we had set the one before.
    pub fn note(&mut self, ours: Option<Timestamp>, now: Timestamp) {
        if ours.is_some_and(|ours| now.duration_since(ours) <= SOON) {
            self.contradictions.push(now);
        }
        self.contradictions.retain(|at| now.duration_since(*at) <= COUNTED);
        if self.contradictions.len() >= MANY {
            self.contradictions.clear();
            self.until = Some(now + PAUSE);
        }
    }

    /// Until when it is left to them, if it is.
    pub fn until(&self, now: Timestamp) -> Option<Timestamp> {
        self.until.filter(|until| now < *until)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn three_contradictions_are_a_contest_and_changes_of_mind_are_none() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut contest = Contest::default();
        for second in [0, 400, 800, 1200] {
            contest.note(Some(at(second - 300)), at(second));
        }
        assert_eq!(contest.until(at(1200)), None, "long after ours: somebody has decided otherwise");
        for second in [2000, 2100] {
            contest.note(Some(at(second - 10)), at(second));
            assert_eq!(contest.until(at(second)), None);
        }
        contest.note(Some(at(2190)), at(2200));
        assert_eq!(contest.until(at(2200)), Some(at(2500)));
        assert_eq!(contest.until(at(2500)), None, "it is tried again");
    }
}
