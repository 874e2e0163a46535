//! How far an exchange has come: every route, and every ask that is under way.

use std::ops::Range;

use crate::RowFormat;
use crate::assign::RouteState;
use crate::landing::Landing;
use crate::link::{Link, Step};
use crate::wire::{Failure, WireError};

/// Nobody.
const NOBODY: u32 = u32::MAX;

/// An ask of this exchange.
#[derive(Clone, Debug)]
pub(crate) struct Asked {
    pub worker: u32,
    /// Of the exchange's picks.
    pub picks: Range<usize>,
    /// Whether it was sent; else it waits for its turn.
    pub sent: bool,
}

/// What came over a link.
pub(crate) enum Pulled {
    /// Nothing for a tick.
    Nothing,
    /// A result of this many bytes.
    Result(usize),
    /// No result for these picks.
    Failed(Failure, Range<usize>),
}

/// State of every route and ask of one exchange.
#[derive(Debug, Default)]
pub(crate) struct Progress {
    pub states: Vec<RouteState>,
    /// Who was asked last for a route.
    owners: Vec<u32>,
    /// Lists of route indices, one for each ask, one after the other.
    pub picks: Vec<u32>,
    /// Asks without an answer, in the order in which they were made.
    pub asked: Vec<Asked>,
    /// Routes without a row.
    pub left: usize,
    /// Routes that nobody computes.
    pub open: usize,
}

impl Progress {
    pub(crate) fn begin(&mut self, routes: usize) {
        self.states.clear();
        self.states.resize(routes, RouteState::Open);
        self.owners.clear();
        self.owners.resize(routes, NOBODY);
        self.picks.clear();
        self.asked.clear();
        (self.left, self.open) = (routes, routes);
    }

    /// `picked` are asked of `worker`, in a piece that waits for its turn.
    pub(crate) fn ask(&mut self, worker: u32, picked: &[u32]) {
        let start = self.picks.len();
        self.picks.extend_from_slice(picked);
        for &index in picked {
            self.states[index as usize] = RouteState::Asked;
            self.owners[index as usize] = worker;
        }
        self.open -= picked.len();
        self.asked.push(Asked { worker, picks: start..self.picks.len(), sent: false });
    }

    /// A route has its row.
    pub(crate) fn finish(&mut self, index: u32) {
        let state = &mut self.states[index as usize];
        self.open -= usize::from(*state == RouteState::Open);
        self.left -= usize::from(*state != RouteState::Done);
        *state = RouteState::Done;
    }

    /// Opens the picks that `worker` was asked for last and that `which` names; returns how many.
    pub(crate) fn put_back(
        &mut self,
        worker: u32,
        picks: Range<usize>,
        which: impl Fn(u32) -> bool,
    ) -> usize {
        let mut count = 0;
        for &index in &self.picks[picks] {
            let at = index as usize;
            if self.states[at] == RouteState::Asked && self.owners[at] == worker && which(index) {
                self.states[at] = RouteState::Open;
                count += 1;
            }
        }
        self.open += count;
        count
    }

    /// Opens everything that `worker` was asked for, and forgets its asks.
    pub(crate) fn forget(&mut self, worker: u32) -> usize {
        let mut count = 0;
        for number in 0..self.asked.len() {
            if self.asked[number].worker == worker {
                count += self.put_back(worker, self.asked[number].picks.clone(), |_| true);
            }
        }
        self.asked.retain(|asked| asked.worker != worker);
        count
    }

    /// Whether an answer of `worker` is waited for.
    pub(crate) fn awaits(&self, worker: u32) -> bool {
        self.asked.iter().filter(|asked| asked.worker == worker).any(|asked| {
            let waited = |&index: &u32| {
                self.states[index as usize] == RouteState::Asked && self.owners[index as usize] == worker
            };
            self.picks[asked.picks.clone()].iter().any(waited)
        })
    }

    /// The oldest ask of `worker` that was sent, or else that was not.
    pub(crate) fn oldest(&self, worker: u32, sent: bool) -> Option<usize> {
        self.asked.iter().position(|asked| asked.worker == worker && asked.sent == sent)
    }

    /// `(asks, routes)` of `worker` that are under way.
    pub(crate) fn under_way(&self, worker: u32) -> (usize, usize) {
        let sent = self.asked.iter().filter(|asked| asked.worker == worker && asked.sent);
        sent.fold((0, 0), |(asks, routes), asked| (asks + 1, routes + asked.picks.len()))
    }

    /// Reads on at the link to `worker`; rows go to their places in `y`, `[routes, hidden]`.
    pub(crate) fn pull(
        &mut self,
        worker: u32,
        link: &mut Link,
        y: &mut [f32],
        (format, hidden): (RowFormat, usize),
    ) -> Result<Pulled, WireError> {
        let Some(oldest) = self.oldest(worker, true) else { return Ok(Pulled::Nothing) };
        let range = self.asked[oldest].picks.clone();
        let picks = &self.picks[range.clone()];
        let step = link.step(Some(Landing { format, hidden, to: y, places: Some(picks) }))?;
        if let Step::Nothing = step {
            return Ok(Pulled::Nothing);
        }
        self.asked.remove(oldest);
        Ok(match step {
            Step::Failed(failure) => Pulled::Failed(failure, range),
            Step::Result(bytes) => {
                for at in range {
                    self.finish(self.picks[at]);
                }
                Pulled::Result(bytes)
            }
            Step::Nothing => Pulled::Nothing,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_counted_once_however_often_they_are_asked() {
        let mut progress = Progress::default();
        progress.begin(4);
        progress.ask(1, &[0, 2]);
        progress.ask(2, &[3]);
        assert_eq!((progress.left, progress.open), (4, 1));
        assert!(
            progress.awaits(1) && progress.oldest(1, false) == Some(0) && progress.oldest(1, true).is_none()
        );

        assert_eq!(progress.put_back(1, 0..2, |index| index == 2), 1);
        progress.ask(2, &[2]);
        assert_eq!(progress.put_back(1, 0..2, |index| index == 2), 0, "it is worker 2's now");
        progress.finish(2);
        progress.finish(2);
        assert_eq!((progress.left, progress.open), (3, 1));
        assert_eq!(progress.forget(2), 1, "route 2 is done, route 3 is open again");
        assert_eq!((progress.open, progress.awaits(2), progress.awaits(1)), (2, false, true));
        assert_eq!(progress.put_back(1, 0..2, |_| true), 1);
        assert!(!progress.awaits(1), "nothing that it still brings is needed");
        progress.finish(0);
        progress.finish(1);
        progress.finish(3);
        assert_eq!((progress.left, progress.open), (0, 0));
    }
}
