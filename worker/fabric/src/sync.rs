//! Locks and waits.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Locks; what the fabric's locks guard stays sound when a holder panics.
pub(crate) fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A count of happenings that threads wait for. Telling costs no system call while nobody waits.
#[derive(Debug, Default)]
pub(crate) struct Signal {
    count: Mutex<u64>,
    waiting: AtomicU32,
    told: Condvar,
}

impl Signal {
    pub(crate) fn count(&self) -> u64 {
        *lock(&self.count)
    }

    /// Something happened.
    pub(crate) fn tell(&self) {
        *lock(&self.count) += 1;
        if self.waiting.load(Ordering::SeqCst) > 0 {
            self.told.notify_all();
        }
    }

    /// Returns when something has happened since `seen` was counted, or at `until`.
    pub(crate) fn wait(&self, seen: u64, until: Instant) {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut count = lock(&self.count);
        while *count == seen {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            count = self.told.wait_timeout(count, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        drop(count);
        self.waiting.fetch_sub(1, Ordering::SeqCst);
    }

    /// [`Self::wait`] for at most this long.
    pub(crate) fn wait_for(&self, seen: u64, within: Duration) {
        self.wait(seen, Instant::now() + within);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_happening_wakes_whoever_has_not_seen_it() {
        let signal = Signal::default();
        let seen = signal.count();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| signal.wait_for(seen, Duration::from_secs(60)));
            signal.tell();
            waiting.join().unwrap();
        });
        signal.wait_for(seen, Duration::from_secs(60));
        assert_eq!(signal.count(), seen + 1);
        signal.wait_for(seen + 1, Duration::from_millis(1));
    }
}
