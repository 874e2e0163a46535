//! How many retries a model's requests may have: a part of the requests of late, and a few in any case. Pure.
//!
//! When workers die one after the other, retries must not be what keeps the others from serving. A retry without budget
//! waits for it; it is not lost.
use std::{collections::VecDeque, time::Duration};

/// Retries, in hundredths of requests.
const PERCENT: u64 = 20;

/// Retries a second in any case.
const FLOOR_PER_SECOND: u64 = 10;

/// What counts, in seconds.
const WINDOW: u64 = 10;

/// See the module. Times are durations since some fixed moment.
#[derive(Debug, Default)]
pub struct RetryBudget {
    seconds: VecDeque<Second>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Second {
    number: u64,
    requests: u64,
    retries: u64,
}

impl RetryBudget {
    /// A request arrives.
    pub fn request(&mut self, now: Duration) {
        self.second(now).requests += 1;
    }

    /// Takes one retry; `Err` says when it may be worth trying again.
    pub fn retry(&mut self, now: Duration) -> Result<(), Duration> {
        self.second(now);
        let sum = |part: fn(&Second) -> u64| self.seconds.iter().map(part).sum::<u64>();
        let (requests, retries) = (sum(|second| second.requests), sum(|second| second.retries));
        let most = requests * PERCENT / 100 + FLOOR_PER_SECOND * WINDOW;
        // a burst must not use up what is there for the seconds to come
        let of_this_second = requests * PERCENT / 100 + FLOOR_PER_SECOND;
        let here = self.second(now);
        if retries < most && here.retries < of_this_second {
            here.retries += 1;
            Ok(())
        } else {
            Err(Duration::from_secs(here.number + 1).saturating_sub(now))
        }
    }

    fn second(&mut self, now: Duration) -> &mut Second {
        let number = now.as_secs();
        self.seconds.retain(|second| second.number + WINDOW > number);
        if self.seconds.back().is_none_or(|last| last.number < number) {
            self.seconds.push_back(Second { number, ..Second::default() });
        }
        let last = self.seconds.len() - 1;
        &mut self.seconds[last]
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn second(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn burst(budget: &mut RetryBudget, now: Duration) -> usize {
        (0..10_000).take_while(|_| budget.retry(now).is_ok()).count()
    }

    #[test]
    fn a_quiet_model_has_a_few_retries_each_second() {
        let mut budget = RetryBudget::default();
        assert_eq!(burst(&mut budget, second(3)), 10);
        assert_eq!(budget.retry(second(3) + Duration::from_millis(400)), Err(Duration::from_millis(600)));
        assert_eq!(burst(&mut budget, second(4)), 10);
    }

    #[test]
    fn a_busy_one_has_a_fifth_of_its_requests() {
        let mut budget = RetryBudget::default();
        (0..1000).for_each(|_| budget.request(second(3)));
        assert_eq!(burst(&mut budget, second(3)), 210);
        assert_eq!(burst(&mut budget, second(30)), 10, "and not for ever");
    }

    proptest! {
        #[test]
        fn no_window_has_more_retries_than_its_part(events in prop::collection::vec((0u64..90, any::<bool>()), 1..600)) {
            let (mut budget, mut now) = (RetryBudget::default(), Duration::ZERO);
            let (mut requests, mut retries) = (Vec::new(), Vec::new());
            for (milliseconds, is_request) in events {
                now += Duration::from_millis(milliseconds);
                if is_request {
                    budget.request(now);
                    requests.push(now.as_secs());
                } else if budget.retry(now).is_ok() {
                    retries.push(now.as_secs());
                    let within = |of: &[u64]| of.iter().filter(|at| **at + WINDOW > now.as_secs()).count() as u64;
                    let most = within(&requests) * PERCENT / 100 + FLOOR_PER_SECOND * WINDOW;
                    prop_assert!(within(&retries) <= most);
                }
                prop_assert!(budget.seconds.len() <= usize::try_from(WINDOW).unwrap());
            }
        }
    }
}
