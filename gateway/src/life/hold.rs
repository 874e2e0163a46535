//! Holding requests while no worker can take them, within bounds.
use std::{
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use prometheus_client::metrics::gauge::Gauge;

use crate::{measure::Burden, routing::Route};

/// Counts the requests that wait for a worker, and bounds them.
#[derive(Clone, Debug)]
pub struct WaitingRoom {
    seats: usize,
    taken: Arc<AtomicUsize>,
    gauge: Gauge,
}

impl WaitingRoom {
    /// A room for `seats` requests; `gauge` shows how many are in it.
    pub fn new(seats: usize, gauge: Gauge) -> Self {
        Self { seats, taken: Arc::default(), gauge }
    }

    /// Takes a seat. A request that has streamed tokens already always gets one: it must not be lost, and there
    /// are no more of those than clients that were let in. `Err` says how many are waiting.
    fn enter(&self, route: &Route, started: bool) -> Result<Seat, usize> {
        let taken = self.taken.fetch_add(1, Ordering::AcqRel);
        if taken >= self.seats && !started {
            self.taken.fetch_sub(1, Ordering::AcqRel);
            return Err(taken);
        }
        self.gauge.inc();
        let held = Burden::new([route.meter.held.clone()], route.work);
        Ok(Seat { taken: self.taken.clone(), gauge: self.gauge.clone(), _held: held })
    }
}

#[derive(Debug)]
struct Seat {
    taken: Arc<AtomicUsize>,
    gauge: Gauge,
    _held: Burden<1>,
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.taken.fetch_sub(1, Ordering::AcqRel);
        self.gauge.dec();
    }
}

/// How long one request has been without progress, and its seat while it waits.
#[derive(Debug, Default)]
pub struct Patience {
    since: Option<Instant>,
    seat: Option<Seat>,
}

impl Patience {
    /// The request has to wait. Gives the time at which its patience ends; `Err` says how many wait already.
    pub fn wait(
        &mut self,
        room: &WaitingRoom,
        route: &Route,
        longest: Duration,
        started: bool,
    ) -> Result<Instant, usize> {
        if self.seat.is_none() {
            self.seat = Some(room.enter(route, started)?);
        }
        Ok(*self.since.get_or_insert_with(Instant::now) + longest)
    }

    /// A worker was found. The time without progress goes on: whether the worker serves is yet to be seen.
    pub fn found(&mut self) {
        self.seat = None;
    }

    /// The request got on: its next wait starts at zero.
    pub fn progressed(&mut self) {
        *self = Self::default();
    }

    /// Time without progress.
    pub fn waited(&self) -> Duration {
        self.since.map(|since| since.elapsed()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        measure::Work,
        routing::{ConnectOptions, Fleet, PolicyName},
    };

    fn route() -> Route {
        Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default()).route("m", Work::default())
    }

    const MINUTE: Duration = Duration::from_secs(60);

    #[test]
    fn the_room_is_bounded_and_seats_are_given_back() {
        let room = WaitingRoom::new(2, Gauge::default());
        let mut requests: Vec<Patience> = (0..3).map(|_| Patience::default()).collect();
        assert!(requests[0].wait(&room, &route(), MINUTE, false).is_ok());
        assert!(requests[1].wait(&room, &route(), MINUTE, false).is_ok());
        assert_eq!(requests[2].wait(&room, &route(), MINUTE, false), Err(2));
        assert_eq!(room.gauge.get(), 2);
        requests[0].found();
        assert!(requests[2].wait(&room, &route(), MINUTE, false).is_ok());
        requests.clear();
        assert_eq!(room.gauge.get(), 0);
    }

    #[test]
    fn a_started_stream_always_gets_a_seat() {
        let room = WaitingRoom::new(0, Gauge::default());
        assert!(Patience::default().wait(&room, &route(), MINUTE, false).is_err());
        assert!(Patience::default().wait(&room, &route(), MINUTE, true).is_ok());
    }

    #[test]
    fn patience_runs_on_over_attempts_and_starts_anew_with_progress() {
        let room = WaitingRoom::new(1, Gauge::default());
        let mut patience = Patience::default();
        let end = patience.wait(&room, &route(), MINUTE, false).unwrap();
        patience.found();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(patience.wait(&room, &route(), MINUTE, false).unwrap(), end);
        patience.progressed();
        assert!(patience.wait(&room, &route(), MINUTE, false).unwrap() > end);
    }
}
