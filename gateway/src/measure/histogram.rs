//! Durations, counted in buckets whose edges grow by a factor: precise enough for a comparison of two of them.
use std::{
    sync::{
        LazyLock,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use belay_proto::gateway;

/// Upper edge of the first bucket, seconds.
pub const FIRST: f64 = 0.0005;

/// Each edge is this many times the one before.
pub const FACTOR: f64 = 1.1;

/// Edges: 0.5 ms to a good 10 minutes.
const EDGES: usize = 148;

static EDGE_SECONDS: LazyLock<[f64; EDGES]> = LazyLock::new(|| {
    let mut edge = FIRST;
    std::array::from_fn(|_| {
        let this = edge;
        edge *= FACTOR;
        this
    })
});

/// See the module. Bucket 0 counts what is below the first edge, the last one what is not below the last edge.
#[derive(Debug)]
pub struct Histogram {
    counts: [AtomicU64; EDGES + 1],
    nanoseconds: AtomicU64,
}

impl Default for Histogram {
    fn default() -> Self {
        Self { counts: std::array::from_fn(|_| AtomicU64::new(0)), nanoseconds: AtomicU64::new(0) }
    }
}

impl Histogram {
    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        let bucket = EDGE_SECONDS.partition_point(|edge| *edge <= seconds);
        self.counts[bucket].fetch_add(1, Ordering::Relaxed);
        let nanoseconds = u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX);
        self.nanoseconds.fetch_add(nanoseconds, Ordering::Relaxed);
    }

    /// As the operator reads it.
    pub fn message(&self) -> gateway::Histogram {
        gateway::Histogram {
            first: FIRST,
            factor: FACTOR,
            counts: self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect(),
            sum: self.sum(),
        }
    }

    /// Seconds in all.
    pub fn sum(&self) -> f64 {
        Duration::from_nanos(self.nanoseconds.load(Ordering::Relaxed)).as_secs_f64()
    }

    /// Upper edge and count of buckets made of `each` of the fine ones; the last edge is infinity.
    pub fn coarse(&self, each: usize) -> Vec<(f64, u64)> {
        let counts: Vec<u64> = self.counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
        let edge = |index: usize| EDGE_SECONDS.get(index).copied().unwrap_or(f64::INFINITY);
        let pieces = counts.chunks(each.max(1)).enumerate();
        pieces
            .map(|(index, piece)| (edge(index * each.max(1) + piece.len() - 1), piece.iter().sum()))
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn the_edges_reach_ten_minutes() {
        assert!(EDGE_SECONDS[EDGES - 1] > 600.0 && EDGE_SECONDS[EDGES - 2] < 620.0);
    }

    proptest! {
        #[test]
        fn every_duration_is_in_the_bucket_that_the_contract_names(nanoseconds in 0u64..2_000_000_000_000) {
            let histogram = Histogram::default();
            histogram.observe(Duration::from_nanos(nanoseconds));
            let gateway::Histogram { first, factor, counts, sum } = histogram.message();
            let seconds = Duration::from_nanos(nanoseconds).as_secs_f64();
            let bucket = counts.iter().position(|count| *count == 1).unwrap();
            prop_assert_eq!(counts.iter().sum::<u64>(), 1);
            prop_assert!((sum - seconds).abs() < 1e-9);
            let power = |index: usize| first * factor.powi(i32::try_from(index).unwrap());
            let slack = 1.0 + 1e-9;
            prop_assert!(bucket == 0 || power(bucket - 1) <= seconds * slack);
            prop_assert!(bucket == counts.len() - 1 || seconds < power(bucket) * slack);
        }

        #[test]
        fn coarse_buckets_lose_nothing(durations in prop::collection::vec(0u64..700_000, 0..50), each in 1usize..20) {
            let histogram = Histogram::default();
            for milliseconds in &durations {
                histogram.observe(Duration::from_millis(*milliseconds));
            }
            let coarse = histogram.coarse(each);
            prop_assert_eq!(coarse.iter().map(|(_, count)| *count).sum::<u64>(), durations.len() as u64);
            prop_assert!(coarse.is_sorted_by(|a, b| a.0 < b.0));
            prop_assert_eq!(coarse.last().unwrap().0, f64::INFINITY);
        }
    }
}
