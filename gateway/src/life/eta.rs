//! When it is worth asking again: from what is known. Pure.
use std::time::Duration;

/// Without anything to go by.
pub const UNKNOWN: Duration = Duration::from_secs(5);

const SHORTEST: Duration = Duration::from_secs(1);
const LONGEST: Duration = Duration::from_secs(120);

/// What is known of a model that cannot take a request now.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Known {
    /// Requests that wait.
    pub ahead: usize,
    /// Requests that were answered, per second, of late.
    pub per_second: f64,
    /// Until the next group has read its checkpoint.
    pub loading: Option<Duration>,
}

/// Until a request would be served that is sent then. [`UNKNOWN`] if nothing is known; between 1 s and 2 minutes.
pub fn eta(known: Known) -> Duration {
    let queue = if known.per_second > 0.0 && known.ahead > 0 {
        let seconds = known.ahead as f64 / known.per_second;
        Duration::try_from_secs_f64(seconds).ok().or(Some(LONGEST))
    } else {
        None
    };
    match (known.loading, queue) {
        (None, None) => UNKNOWN,
        (loading, queue) => {
            let total = loading.unwrap_or_default().saturating_add(queue.unwrap_or_default());
            total.clamp(SHORTEST, LONGEST)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_queue_and_the_loading_add_up_within_bounds() {
        let of = |ahead, per_second, loading: Option<u64>| {
            eta(Known { ahead, per_second, loading: loading.map(Duration::from_secs) }).as_secs()
        };
        assert_eq!(of(9, 0.0, None), 5);
        assert_eq!(of(30, 2.0, None), 15);
        assert_eq!(of(30, 2.0, Some(40)), 55);
        assert_eq!(of(30, 0.0, Some(40)), 40);
        assert_eq!(of(1, 50.0, None), 1);
        assert_eq!(of(30, 1e-300, None), 120);
        assert_eq!(of(0, 0.0, Some(4000)), 120);
    }
}
