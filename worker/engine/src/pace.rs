//! How fast work gets done, so that who is refused can be told when to come back.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

/// Bounds of what a client is told.
const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(60);
/// Weight of the last interval in the mean.
const WEIGHT: f64 = 0.2;

/// Mean time from one request's end to the next while others wait. Written by one thread.
#[derive(Default)]
pub struct Pace {
    /// 0: nothing measured yet.
    nanos: AtomicU64,
}

impl Pace {
    /// Requests waited, and one ended `interval` after the one before.
    pub fn note(&self, interval: Duration) {
        let interval = u64::try_from(interval.as_nanos()).unwrap_or(u64::MAX).max(1);
        let mean = match self.nanos.load(Ordering::Relaxed) {
            0 => interval,
            mean => (mean as f64 * (1.0 - WEIGHT) + interval as f64 * WEIGHT) as u64,
        };
        self.nanos.store(mean.max(1), Ordering::Relaxed);
    }

    /// When a place in a full queue is likely to be free: when the next request ends.
    #[must_use]
    pub fn retry_after(&self) -> Duration {
        Duration::from_nanos(self.nanos.load(Ordering::Relaxed)).clamp(SHORTEST, LONGEST)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_estimate_follows_the_rate_of_finished_work_within_bounds() {
        let pace = Pace::default();
        assert_eq!(pace.retry_after(), SHORTEST, "nothing is known");
        pace.note(Duration::from_secs(10));
        assert_eq!(pace.retry_after(), Duration::from_secs(10));
        for _ in 0..40 {
            pace.note(Duration::from_secs(4));
        }
        let estimate = pace.retry_after().as_secs_f64();
        assert!((4.0..4.1).contains(&estimate), "{estimate}");
        for _ in 0..40 {
            pace.note(Duration::from_millis(2));
        }
        assert_eq!(pace.retry_after(), SHORTEST);
        pace.note(Duration::from_secs(3600));
        assert_eq!(pace.retry_after(), LONGEST);
    }
}
