//! How many rows this worker routes to each expert, with exponential decay.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// Parts of a half-life between two times that new counts are folded into the decayed ones.
const FOLDS_PER_HALF_LIFE: u32 = 16;

/// Rows routed to each expert; what was counted a half-life ago counts half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Loads {
    /// Time in which a count loses half of its weight.
    pub half_life: Duration,
    /// `[layer][expert]`, thousandths of a row.
    pub layers: Vec<Vec<u64>>,
}

/// Counts; an exchange adds to them without a lock.
#[derive(Debug)]
pub(crate) struct LoadCounter {
    half_life: Duration,
    started: Instant,
    /// Rows since the last fold.
    fresh: Vec<Vec<AtomicU64>>,
    /// Milliseconds after `started` at which the next fold is due.
    due: AtomicU64,
    decayed: Mutex<Decayed>,
}

#[derive(Debug)]
struct Decayed {
    at: Instant,
    rows: Vec<Vec<f64>>,
}

impl LoadCounter {
    /// Counters for `experts` experts by layer.
    pub(crate) fn new(half_life: Duration, experts: &[usize]) -> Self {
        let started = Instant::now();
        Self {
            half_life,
            started,
            fresh: experts.iter().map(|&count| (0..count).map(|_| AtomicU64::new(0)).collect()).collect(),
            due: AtomicU64::new(fold_millis(half_life)),
            decayed: Mutex::new(Decayed {
                at: started,
                rows: experts.iter().map(|&count| vec![0.0; count]).collect(),
            }),
        }
    }

    pub(crate) fn fits(&self, experts: &[usize]) -> bool {
        self.fresh.iter().map(Vec::len).eq(experts.iter().copied())
    }

    /// Counts rows of one exchange.
    pub(crate) fn add(&self, layer: u32, expert: u32, rows: u32) {
        if let Some(count) = self.fresh.get(layer as usize).and_then(|experts| experts.get(expert as usize)) {
            count.fetch_add(u64::from(rows), Relaxed);
        }
    }

    /// Folds if it is time; one of the threads that come here then does it.
    pub(crate) fn tick(&self, now: Instant) {
        let millis = now.saturating_duration_since(self.started).as_millis() as u64;
        let due = self.due.load(Relaxed);
        let next = millis + fold_millis(self.half_life);
        if millis >= due && self.due.compare_exchange(due, next, Relaxed, Relaxed).is_ok() {
            self.fold(&mut lock(&self.decayed), now);
        }
    }

    fn fold(&self, decayed: &mut Decayed, now: Instant) {
        let since = now.saturating_duration_since(decayed.at).as_secs_f64();
        let keep = (-since / self.half_life.as_secs_f64()).exp2();
        decayed.at = now;
        for (rows, fresh) in decayed.rows.iter_mut().flatten().zip(self.fresh.iter().flatten()) {
            *rows = *rows * keep + fresh.swap(0, Relaxed) as f64;
        }
    }

    /// What counts at `now`.
    pub(crate) fn read(&self, now: Instant) -> Loads {
        let mut decayed = lock(&self.decayed);
        self.fold(&mut decayed, now);
        let milli = |rows: &f64| (rows * 1000.0).round() as u64;
        Loads {
            half_life: self.half_life,
            layers: decayed.rows.iter().map(|experts| experts.iter().map(milli).collect()).collect(),
        }
    }
}

fn fold_millis(half_life: Duration) -> u64 {
    (half_life / FOLDS_PER_HALF_LIFE).as_millis().max(1) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_halve_in_a_half_life_however_often_they_are_read() {
        for reads in [1, 2, 16] {
            let counter = LoadCounter::new(Duration::from_secs(60), &[2, 3]);
            counter.add(1, 2, 8);
            counter.add(0, 0, 1);
            counter.add(7, 0, 1);
            let start = counter.started;
            assert_eq!(counter.read(start).layers, [vec![1000, 0], vec![0, 0, 8000]]);
            for read in 1..=reads {
                counter.tick(start + Duration::from_secs(60) * read / reads);
            }
            assert_eq!(
                counter.read(start + Duration::from_secs(60)).layers,
                [vec![500, 0], vec![0, 0, 4000]]
            );
        }
    }

    #[test]
    fn a_tick_folds_only_when_it_is_due() {
        let counter = LoadCounter::new(Duration::from_secs(16), &[1]);
        counter.add(0, 0, 4);
        counter.tick(counter.started + Duration::from_millis(999));
        assert_eq!(counter.fresh[0][0].load(Relaxed), 4);
        counter.tick(counter.started + Duration::from_secs(1));
        assert_eq!(counter.fresh[0][0].load(Relaxed), 0);
        assert!(counter.fits(&[1]) && !counter.fits(&[2]));
    }
}
