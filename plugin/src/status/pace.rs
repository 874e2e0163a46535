//! How fast workers read their checkpoints: pure.
use std::collections::{BTreeMap, VecDeque};

use jiff::Timestamp;

use super::tree::LoadView;

/// How far back a rate looks.
const WINDOW_MILLISECONDS: i64 = 10_000;

/// Bytes read, as seen at earlier looks, by pod UID.
#[derive(Clone, Debug, Default)]
pub struct Pace {
    seen: BTreeMap<String, VecDeque<(Timestamp, u64)>>,
}

impl Pace {
    /// Takes note of what a worker has read, and says how fast that goes: against what it had read some seconds ago, or, at
    /// the first look, against nothing at `started`.
    pub fn of(
        &mut self,
        uid: &str,
        now: Timestamp,
        started: Option<Timestamp>,
        done: u64,
        total: u64,
    ) -> LoadView {
        let seen = self.seen.entry(uid.to_owned()).or_default();
        // another life, or another load
        if seen.back().is_some_and(|(_, before)| *before > done) {
            seen.clear();
        }
        while seen.len() > 1
            && seen.front().is_some_and(|(at, _)| milliseconds(*at, now) > WINDOW_MILLISECONDS)
        {
            seen.pop_front();
        }
        let first = seen.front().copied().filter(|(at, _)| milliseconds(*at, now) > 0);
        let since = first.or(started.map(|started| (started, 0)));
        let rate = since.and_then(|(at, before)| {
            let elapsed = u64::try_from(milliseconds(at, now)).ok().filter(|elapsed| *elapsed > 0)?;
            Some(done.saturating_sub(before).saturating_mul(1000) / elapsed)
        });
        seen.push_back((now, done));
        load(done, total, rate)
    }

    /// Forgets pods that are gone.
    pub fn keep(&mut self, uids: &[String]) {
        self.seen.retain(|uid, _| uids.contains(uid));
    }
}

/// Of several that go on at the same time: it takes as long as the slowest.
pub fn together(loads: &[LoadView]) -> Option<LoadView> {
    let sum = |of: fn(&LoadView) -> u64| loads.iter().fold(0u64, |sum, load| sum.saturating_add(of(load)));
    let etas: Option<Vec<u64>> = loads.iter().map(|load| load.eta_seconds).collect();
    let rates: Option<Vec<u64>> = loads.iter().map(|load| load.bytes_per_second).collect();
    (!loads.is_empty()).then(|| LoadView {
        bytes_done: sum(|load| load.bytes_done),
        bytes_total: sum(|load| load.bytes_total),
        bytes_per_second: rates.map(|rates| rates.iter().fold(0u64, |sum, rate| sum.saturating_add(*rate))),
        eta_seconds: etas.and_then(|etas| etas.into_iter().max()),
    })
}

fn load(done: u64, total: u64, rate: Option<u64>) -> LoadView {
    let left = total.saturating_sub(done);
    LoadView {
        bytes_done: done,
        bytes_total: total,
        bytes_per_second: rate,
        eta_seconds: rate.filter(|rate| *rate > 0).map(|rate| left.div_ceil(rate)),
    }
}

fn milliseconds(from: Timestamp, to: Timestamp) -> i64 {
    to.as_millisecond() - from.as_millisecond()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_800_000_000 + second).unwrap()
    }

    #[test]
    fn the_first_look_takes_the_average_and_later_ones_the_last_seconds() {
        let mut pace = Pace::default();
        let first = pace.of("a", at(10), Some(at(0)), 1000, 5000);
        assert_eq!((first.bytes_per_second, first.eta_seconds), (Some(100), Some(40)));
        let second = pace.of("a", at(12), Some(at(0)), 3000, 5000);
        assert_eq!((second.bytes_per_second, second.eta_seconds), (Some(1000), Some(2)));
        // what is long ago does not count
        let third = pace.of("a", at(30), Some(at(0)), 3180, 5000);
        assert_eq!(third.bytes_per_second, Some(10));
    }

    #[test]
    fn without_a_start_or_an_advance_there_is_no_end() {
        let mut pace = Pace::default();
        assert_eq!(pace.of("a", at(1), None, 5, 10).bytes_per_second, None);
        let stuck = pace.of("a", at(2), None, 5, 10);
        assert_eq!((stuck.bytes_per_second, stuck.eta_seconds), (Some(0), None));
        // a new life begins anew
        assert_eq!(pace.of("a", at(4), Some(at(2)), 2, 10).bytes_per_second, Some(1));
        pace.keep(&[]);
        assert_eq!(pace.of("a", at(6), None, 4, 10).bytes_per_second, None);
    }

    #[test]
    fn several_are_as_slow_as_the_slowest() {
        let loads = [load(10, 20, Some(10)), load(10, 20, Some(1))];
        assert_eq!(
            together(&loads),
            Some(LoadView {
                bytes_done: 20,
                bytes_total: 40,
                bytes_per_second: Some(11),
                eta_seconds: Some(10)
            })
        );
        assert_eq!(together(&[load(1, 2, None), loads[0]]).unwrap().eta_seconds, None);
        assert_eq!(together(&[]), None);
    }
}
