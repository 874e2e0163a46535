//! Requests in flight: the real count that a shutdown waits for.
use std::sync::Arc;

use tokio::sync::watch;

/// Counts requests in flight.
#[derive(Clone, Debug, Default)]
pub struct Flights(Arc<watch::Sender<usize>>);

/// One request in flight, until dropped.
#[derive(Debug)]
pub struct Flight(Arc<watch::Sender<usize>>);

impl Flights {
    /// A request begins.
    pub fn begin(&self) -> Flight {
        self.0.send_modify(|count| *count += 1);
        Flight(self.0.clone())
    }

    /// Requests in flight now.
    pub fn count(&self) -> usize {
        *self.0.borrow()
    }

    /// Ends when no request is in flight.
    pub async fn none(&self) {
        // fails only when the sender is gone, and `self` holds it
        let _ = self.0.subscribe().wait_for(|count| *count == 0).await;
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        self.0.send_modify(|count| *count -= 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[tokio::test]
    async fn waits_exactly_for_the_last_request() {
        let flights = Flights::default();
        flights.none().await;
        let (first, second) = (flights.begin(), flights.begin());
        assert_eq!(flights.count(), 2);
        let waiting = flights.clone();
        let mut waiting = tokio::spawn(async move { waiting.none().await });
        drop(first);
        assert!(tokio::time::timeout(Duration::from_millis(20), &mut waiting).await.is_err());
        drop(second);
        tokio::time::timeout(Duration::from_secs(5), waiting).await.unwrap().unwrap();
    }
}
