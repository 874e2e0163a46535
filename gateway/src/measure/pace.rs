//! How many requests are answered per second, of late.
use std::{
    sync::{Mutex, PoisonError},
    time::Instant,
};

/// After so many seconds a request counts for about a third of a new one.
const MEMORY_SECONDS: f64 = 30.0;

/// Less than this is nothing to go by.
const LEAST: f64 = 0.01;

/// See the module.
#[derive(Debug)]
pub struct Pace(Mutex<Decaying>);

#[derive(Clone, Copy, Debug)]
struct Decaying {
    at: Instant,
    per_second: f64,
}

impl Default for Pace {
    fn default() -> Self {
        Self(Mutex::new(Decaying { at: Instant::now(), per_second: 0.0 }))
    }
}

impl Decaying {
    fn at(self, now: Instant) -> f64 {
        let seconds = now.saturating_duration_since(self.at).as_secs_f64();
        self.per_second * (-seconds / MEMORY_SECONDS).exp()
    }
}

impl Pace {
    /// A request was answered.
    pub fn tick(&self, now: Instant) {
        let mut pace = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        *pace = Decaying { at: now.max(pace.at), per_second: pace.at(now) + 1.0 / MEMORY_SECONDS };
    }

    /// Requests per second; 0 if too few were answered to say.
    pub fn per_second(&self, now: Instant) -> f64 {
        let pace = self.0.lock().unwrap_or_else(PoisonError::into_inner).at(now);
        if pace < LEAST { 0.0 } else { pace }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn it_finds_a_steady_pace_and_forgets_it() {
        let pace = Pace::default();
        let mut now = Instant::now();
        assert!(pace.per_second(now) <= 0.0);
        for _ in 0..2000 {
            now += Duration::from_millis(250);
            pace.tick(now);
        }
        assert!((3.8..4.2).contains(&pace.per_second(now)), "{}", pace.per_second(now));
        assert!(pace.per_second(now + Duration::from_secs(600)) <= 0.0);
    }
}
