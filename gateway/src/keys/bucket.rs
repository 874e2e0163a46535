//! A bucket that refills steadily. Pure: all times are given, as durations since some fixed moment.
//!
//! It holds what may be taken within one window. What is taken comes back evenly: that is how it knows exactly when there
//! will be enough (the generic cell rate algorithm, ITU-T I.371).
use std::time::Duration;

/// See the module. Full at first.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bucket {
    /// When everything that was taken will have come back.
    full_at: Duration,
}

impl Bucket {
    /// When `amount` can be taken; zero: now. More than the bucket holds can be taken when it is full.
    pub fn after(&self, now: Duration, amount: u64, per_window: u64, window: Duration) -> Duration {
        let room = window.saturating_sub(time_of(amount.min(per_window), per_window, window));
        self.full_at.saturating_sub(now).saturating_sub(room)
    }

    /// Takes, whether there is enough or not: what is too much must come back before anything else can be taken.
    pub fn take(&mut self, now: Duration, amount: u64, per_window: u64, window: Duration) {
        self.full_at = self.full_at.max(now).saturating_add(time_of(amount, per_window, window));
    }

    /// Puts back what was taken.
    pub fn put_back(&mut self, amount: u64, per_window: u64, window: Duration) {
        self.full_at = self.full_at.saturating_sub(time_of(amount, per_window, window));
    }
}

/// How long so much takes to come back.
fn time_of(amount: u64, per_window: u64, window: Duration) -> Duration {
    let nanoseconds = window.as_nanos().saturating_mul(amount.into()) / u128::from(per_window.max(1));
    Duration::from_nanos(u64::try_from(nanoseconds).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const MINUTE: Duration = Duration::from_secs(60);

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    #[test]
    fn it_says_when_there_will_be_enough() {
        let mut bucket = Bucket::default();
        let now = second(1000);
        for _ in 0..6 {
            assert_eq!(bucket.after(now, 1, 6, MINUTE), Duration::ZERO);
            bucket.take(now, 1, 6, MINUTE);
        }
        assert_eq!(bucket.after(now, 1, 6, MINUTE), second(10));
        assert_eq!(bucket.after(now + second(4), 1, 6, MINUTE), second(6));
        assert_eq!(bucket.after(now, 3, 6, MINUTE), second(30));
        bucket.put_back(1, 6, MINUTE);
        assert_eq!(bucket.after(now, 1, 6, MINUTE), Duration::ZERO);
    }

    #[test]
    fn more_than_it_holds_waits_until_it_is_full_and_is_paid_back() {
        let mut bucket = Bucket::default();
        let now = second(5);
        assert_eq!(bucket.after(now, 100, 6, MINUTE), Duration::ZERO);
        bucket.take(now, 12, 6, MINUTE);
        assert_eq!(bucket.after(now, 1, 6, MINUTE), second(70));
    }

    proptest! {
        #[test]
        fn no_window_lets_more_through_than_two_of_its_amounts(
            per_window in 1u64..20, asks in prop::collection::vec((0u64..8, 1u64..5), 1..200),
        ) {
            // full at the window's begin, and refilled once in its course
            let mut bucket = Bucket::default();
            let (mut now, mut taken) = (second(1), Vec::new());
            for (pause, amount) in asks {
                now += second(pause);
                let amount = amount.min(per_window);
                if bucket.after(now, amount, per_window, MINUTE).is_zero() {
                    bucket.take(now, amount, per_window, MINUTE);
                    taken.push((now, amount));
                }
            }
            for (begin, _) in &taken {
                let within = taken.iter().filter(|(at, _)| at >= begin && *at < *begin + MINUTE);
                prop_assert!(within.map(|(_, amount)| *amount).sum::<u64>() <= 2 * per_window);
            }
        }

        #[test]
        fn when_it_says_so_it_has_it(per_window in 1u64..1000, taken in 0u64..3000, amount in 1u64..1000) {
            let mut bucket = Bucket::default();
            bucket.take(second(9), taken, per_window, MINUTE);
            let after = bucket.after(second(9), amount, per_window, MINUTE);
            prop_assert!(bucket.after(second(9) + after, amount, per_window, MINUTE).is_zero());
            let before = after.saturating_sub(Duration::from_millis(1));
            prop_assert!(after.is_zero() || !bucket.after(second(9) + before, amount, per_window, MINUTE).is_zero());
        }
    }
}
