//! How much work comes, and how much a group does: from the differences between looks.
use std::collections::VecDeque;

use jiff::Timestamp;

use super::signals::Signals;

/// Seconds over which the load is taken at most.
const LOAD_SECONDS: f64 = 60.0;

/// Seconds that are enough for a first idea of it.
const SHORTEST_SECONDS: f64 = 10.0;

/// Seconds of full load after which a group's rate is taken: together, not in one piece.
const FULL_SECONDS: f64 = 20.0;

/// How much the newest rate of a group counts.
const NEWEST: f64 = 0.3;

#[derive(Clone, Copy, Debug)]
struct Look {
    at: Timestamp,
    served: u64,
    waiting: u64,
}

/// Time in which all groups had enough to do.
#[derive(Clone, Copy, Debug, Default)]
struct Spell {
    seconds: f64,
    group_seconds: f64,
    tokens: f64,
}

/// Work that comes and work that is done, in tokens a second.
#[derive(Clone, Debug, Default)]
pub(super) struct Rates {
    looks: VecDeque<Look>,
    /// How many groups had enough to do at the last look: all that were ready, or none.
    full: u32,
    spell: Spell,
    per_group: Option<f64>,
}

impl Rates {
    /// With what was known of a group before.
    pub fn new(per_group: Option<u64>) -> Self {
        Self { per_group: per_group.map(|rate| rate as f64).filter(|&rate| rate > 0.0), ..Self::default() }
    }

    /// A look at the load. `full`: every one of the `ready` groups has enough to do.
    pub fn note(&mut self, signals: &Signals, ready: u32, full: bool, now: Timestamp) {
        let look = Look { at: now, served: signals.served_tokens, waiting: signals.tokens() };
        // a count that shrinks is another count
        if self.looks.back().is_some_and(|last| last.served > look.served || last.at > look.at) {
            self.looks.clear();
        }
        if let Some(last) = self.looks.back().copied()
            && full
            && self.full > 0
        {
            let time = seconds(last, look);
            self.spell.seconds += time;
            self.spell.group_seconds += time * f64::from(self.full);
            self.spell.tokens += (look.served - last.served) as f64;
            if self.spell.seconds >= FULL_SECONDS {
                self.learn(self.spell.tokens / self.spell.group_seconds);
                self.spell = Spell::default();
            }
        }
        self.full = if full { ready } else { 0 };
        self.looks.push_back(look);
        // one look from before the time remains, to compare with
        while self.looks.get(1).is_some_and(|second| seconds(*second, look) >= LOAD_SECONDS) {
            self.looks.pop_front();
        }
    }

    fn learn(&mut self, rate: f64) {
        // a rate of nothing says that groups hang, not what they can do
        if rate >= 1.0 {
            let before = self.per_group.unwrap_or(rate);
            self.per_group = Some(before + NEWEST * (rate - before));
        }
    }

    /// Tokens a second that have come for a minute, or for as long as somebody has looked: what was done, and what more
    /// waits than before.
    pub fn load(&self) -> Option<f64> {
        self.load_within(LOAD_SECONDS)
    }

    /// The same of the last twenty seconds, if that is more: a load that has just begun.
    pub fn newest_load(&self) -> Option<f64> {
        Some(self.load()?.max(self.load_within(2.0 * SHORTEST_SECONDS)?))
    }

    fn load_within(&self, most: f64) -> Option<f64> {
        let last = *self.looks.back()?;
        let first = *self.looks.iter().find(|look| seconds(**look, last) <= most).or(self.looks.front())?;
        let time = seconds(first, last);
        if time < SHORTEST_SECONDS {
            return None;
        }
        let done = (last.served - first.served) as f64;
        Some(((done + last.waiting as f64 - first.waiting as f64) / time).max(0.0))
    }

    /// Tokens a second that a group does with enough to do.
    pub fn per_group(&self) -> Option<f64> {
        self.per_group
    }
}

fn seconds(from: Look, to: Look) -> f64 {
    to.at.duration_since(from.at).as_secs_f64()
}
