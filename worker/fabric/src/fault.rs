//! Faults on purpose, to see what a group does about them.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::sync::lock;

/// What this worker does wrong.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Fault {
    /// Nothing.
    #[default]
    None,
    /// Every answer to a peer comes this much later; pings are answered as ever.
    Slow(Duration),
    /// Nothing is read from or written to these workers, pings included; connections stay open and silent. An empty
    /// list means all of them.
    Partition(Vec<u32>),
}

/// The fault in force. Costs a relaxed load while there is none.
#[derive(Debug, Default)]
pub(crate) struct Faults {
    any: AtomicBool,
    current: Mutex<Fault>,
    changed: Condvar,
}

impl Faults {
    pub(crate) fn set(&self, fault: Fault) {
        let mut current = lock(&self.current);
        self.any.store(fault != Fault::None, Ordering::Relaxed);
        *current = fault;
        self.changed.notify_all();
    }

    /// Wakes everybody who waits here, for good.
    pub(crate) fn stop(&self) {
        self.set(Fault::None);
    }

    /// Whether nothing passes between this worker and `worker`.
    pub(crate) fn cuts(&self, worker: u32) -> bool {
        self.any.load(Ordering::Relaxed) && partitions(&lock(&self.current), worker)
    }

    /// Returns once something passes between this worker and `worker`, or `within` is over.
    pub(crate) fn wait_while_cut(&self, worker: u32, within: Duration) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let until = Instant::now() + within;
        let mut current = lock(&self.current);
        while partitions(&current, worker) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return;
            }
            current = self.changed.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }

    /// Returns when an answer may go: at once unless answers are slow.
    pub(crate) fn delay_answer(&self) {
        if !self.any.load(Ordering::Relaxed) {
            return;
        }
        let since = Instant::now();
        let mut current = lock(&self.current);
        while let Fault::Slow(delay) = *current {
            let left = delay.saturating_sub(since.elapsed());
            if left.is_zero() {
                return;
            }
            current = self.changed.wait_timeout(current, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

fn partitions(fault: &Fault, worker: u32) -> bool {
    matches!(fault, Fault::Partition(workers) if workers.is_empty() || workers.contains(&worker))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_cuts_whom_it_names_and_ends() {
        let faults = Faults::default();
        assert!(!faults.cuts(1));
        faults.set(Fault::Partition(vec![1]));
        assert!(faults.cuts(1) && !faults.cuts(2));
        faults.wait_while_cut(2, Duration::from_secs(60));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| faults.wait_while_cut(1, Duration::from_secs(60)));
            faults.set(Fault::Partition(vec![]));
            assert!(faults.cuts(1) && faults.cuts(7));
            faults.set(Fault::None);
            waiting.join().unwrap();
        });
        assert!(!faults.cuts(1));
    }

    #[test]
    fn slow_answers_wait_until_it_is_over() {
        let faults = Faults::default();
        faults.delay_answer();
        faults.set(Fault::Slow(Duration::from_millis(20)));
        let since = Instant::now();
        faults.delay_answer();
        assert!(since.elapsed() >= Duration::from_millis(20));
        faults.set(Fault::Slow(Duration::from_secs(600)));
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| faults.delay_answer());
            faults.set(Fault::None);
            waiting.join().unwrap();
        });
    }
}
