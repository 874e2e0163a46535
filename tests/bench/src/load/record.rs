//! What a client saw of a request, and percentiles over many.

use std::time::{Duration, Instant};

/// One finished request.
#[derive(Clone, Debug)]
pub struct Record {
    /// When it was sent.
    pub sent: Instant,
    /// When pieces with text came, or with tokens where the client sees those.
    pub pieces: Vec<Instant>,
    /// As the server counted them.
    pub prompt_tokens: u32,
    /// As the server counted them.
    pub output_tokens: u32,
    /// Prompt tokens that the server had computed before, as it says.
    pub cached_tokens: u32,
}

/// Latencies over all requests of a run, each list in milliseconds and ascending.
#[derive(Clone, Debug, Default)]
pub struct Latencies {
    /// From sending to the first piece.
    pub first: Vec<f64>,
    /// Between pieces.
    pub between: Vec<f64>,
}

impl Latencies {
    /// Of these requests.
    #[must_use]
    pub fn of(records: &[Record]) -> Self {
        let mut latencies = Self::default();
        for record in records {
            let first = record.pieces.first().map(|&piece| piece.duration_since(record.sent));
            latencies.first.extend(first.map(milliseconds));
            let gaps = record.pieces.windows(2).map(|pair| pair[1].duration_since(pair[0]));
            latencies.between.extend(gaps.map(milliseconds));
        }
        latencies.first.sort_by(f64::total_cmp);
        latencies.between.sort_by(f64::total_cmp);
        latencies
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1e3
}

/// The smallest value that at least this share of an ascending list does not exceed; 0 if the list is empty.
#[must_use]
pub fn percentile(ascending: &[f64], share: f64) -> f64 {
    let rank = (share * ascending.len() as f64).ceil() as usize;
    ascending.get(rank.saturating_sub(1)).copied().unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentiles_are_values_of_the_list() {
        let list: Vec<f64> = (1..=100).map(f64::from).collect();
        assert_eq!([0.0, 0.5, 0.99, 1.0].map(|share| percentile(&list, share)), [1.0, 50.0, 99.0, 100.0]);
        assert_eq!(percentile(&[7.0], 0.99), 7.0);
        assert_eq!(percentile(&[], 0.5), 0.0);
    }

    #[test]
    fn latencies_count_from_sending_and_between_pieces() {
        let sent = Instant::now();
        let at = |ms| sent + Duration::from_millis(ms);
        let record = |pieces| Record { sent, pieces, prompt_tokens: 1, output_tokens: 3, cached_tokens: 0 };
        let latencies = Latencies::of(&[record(vec![at(5), at(6), at(9)]), record(vec![at(2)])]);
        assert_eq!(latencies.first, [2.0, 5.0]);
        assert_eq!(latencies.between, [1.0, 3.0]);
    }
}
