//! Counters of a fabric.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};
use std::time::Duration;

/// Upper bounds of the latency buckets, microseconds.
const BOUNDS_MICROS: [u64; 14] =
    [50, 100, 200, 500, 1_000, 2_000, 5_000, 10_000, 20_000, 50_000, 100_000, 500_000, 2_000_000, 10_000_000];

/// Counters since the fabric began; read by metrics, written by exchanges.
#[derive(Debug, Default)]
pub struct Stats {
    buckets: [AtomicU64; BOUNDS_MICROS.len() + 1],
    micros: AtomicU64,
    routes: AtomicU64,
    rows_sent: AtomicU64,
    bytes_sent: AtomicU64,
    bytes_received: AtomicU64,
    routes_served: AtomicU64,
    failed: AtomicU64,
    rerouted: AtomicU64,
    rounds: AtomicU64,
    round_routes: AtomicU64,
    rounds_failed: AtomicU64,
}

/// Time of whole exchanges, as a histogram.
#[derive(Clone, Debug, PartialEq)]
pub struct Latency {
    /// `(upper bound in seconds, exchanges in this bucket)`; the last bound is infinite.
    pub buckets: Vec<(f64, u64)>,
    /// Exchanges.
    pub count: u64,
    /// Seconds of all of them.
    pub sum: f64,
}

/// What [`Stats`] held at one moment.
#[derive(Clone, Debug, PartialEq)]
pub struct StatsSnapshot {
    /// Exchanges that succeeded.
    pub latency: Latency,
    /// Exchanges that failed.
    pub failed: u64,
    /// Routes of successful exchanges, local ones included.
    pub routes: u64,
    /// Rows sent to peers.
    pub rows_sent: u64,
    /// Bytes of asks sent to peers.
    pub bytes_sent: u64,
    /// Bytes of results received from peers.
    pub bytes_received: u64,
    /// Routes computed for peers.
    pub routes_served: u64,
    /// Routes that were asked of somebody else after their first ask came to nothing.
    pub rerouted: u64,
    /// Exchanges that devices did in a round.
    pub rounds: u64,
    /// Routes of these.
    pub round_routes: u64,
    /// Exchanges whose round came to nothing, so that they went over TCP.
    pub rounds_failed: u64,
}

impl Stats {
    pub(crate) fn exchanged(&self, routes: usize, took: Duration) {
        let micros = took.as_micros() as u64;
        let bucket = BOUNDS_MICROS.iter().position(|bound| micros <= *bound).unwrap_or(BOUNDS_MICROS.len());
        self.buckets[bucket].fetch_add(1, Relaxed);
        self.micros.fetch_add(micros, Relaxed);
        self.routes.fetch_add(routes as u64, Relaxed);
    }

    pub(crate) fn exchange_failed(&self) {
        self.failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn rerouted(&self, routes: usize) {
        self.rerouted.fetch_add(routes as u64, Relaxed);
    }

    pub(crate) fn round_done(&self, routes: usize) {
        self.rounds.fetch_add(1, Relaxed);
        self.round_routes.fetch_add(routes as u64, Relaxed);
    }

    pub(crate) fn round_failed(&self) {
        self.rounds_failed.fetch_add(1, Relaxed);
    }

    pub(crate) fn sent(&self, rows: usize, bytes: usize) {
        self.rows_sent.fetch_add(rows as u64, Relaxed);
        self.bytes_sent.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn received(&self, bytes: usize) {
        self.bytes_received.fetch_add(bytes as u64, Relaxed);
    }

    pub(crate) fn served(&self, routes: usize) {
        self.routes_served.fetch_add(routes as u64, Relaxed);
    }

    /// Reads all counters; each is exact, together they may be one exchange apart.
    #[must_use]
    pub fn snapshot(&self) -> StatsSnapshot {
        let bounds = BOUNDS_MICROS.iter().map(|micros| *micros as f64 / 1e6).chain([f64::INFINITY]);
        let buckets: Vec<(f64, u64)> =
            bounds.zip(&self.buckets).map(|(bound, count)| (bound, count.load(Relaxed))).collect();
        StatsSnapshot {
            latency: Latency {
                count: buckets.iter().map(|(_, count)| count).sum(),
                sum: self.micros.load(Relaxed) as f64 / 1e6,
                buckets,
            },
            failed: self.failed.load(Relaxed),
            routes: self.routes.load(Relaxed),
            rows_sent: self.rows_sent.load(Relaxed),
            bytes_sent: self.bytes_sent.load(Relaxed),
            bytes_received: self.bytes_received.load(Relaxed),
            routes_served: self.routes_served.load(Relaxed),
            rerouted: self.rerouted.load(Relaxed),
            rounds: self.rounds.load(Relaxed),
            round_routes: self.round_routes.load(Relaxed),
            rounds_failed: self.rounds_failed.load(Relaxed),
        }
    }
}
