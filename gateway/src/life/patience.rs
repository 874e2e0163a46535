//! How long one request has been without progress, and its seat while it waits.
use std::time::{Duration, Instant};

use crate::routing::Route;

use super::room::{Place, Seat, WaitingRoom};

/// See the module.
#[derive(Debug, Default)]
pub struct Patience {
    since: Option<Instant>,
    number: Option<u64>,
    seat: Option<Seat>,
}

impl Patience {
    /// The request has to wait. Gives the time at which its patience ends; `Err` says how many wait already.
    pub fn wait(
        &mut self,
        room: &WaitingRoom,
        route: &Route,
        longest: Duration,
        place: Place,
    ) -> Result<Instant, usize> {
        if self.seat.is_none() {
            let number = *self.number.get_or_insert_with(|| room.number());
            self.seat = Some(room.enter(route, number, place)?);
        }
        Ok(*self.since.get_or_insert_with(Instant::now) + longest)
    }

    /// Its seat, while it waits.
    pub fn seat(&self) -> Option<&Seat> {
        self.seat.as_ref()
    }

    /// A worker was found. The time without progress goes on: whether the worker serves is yet to be seen.
    pub fn found(&mut self) {
        if let Some(seat) = self.seat.take() {
            seat.served();
        }
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
    use prometheus_client::metrics::gauge::Gauge;

    #[test]
    fn patience_runs_on_over_attempts_and_starts_anew_with_progress() {
        const MINUTE: Duration = Duration::from_secs(60);
        let route =
            Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default()).route("m", Work::default());
        let room = WaitingRoom::new(1, Gauge::default());
        let mut patience = Patience::default();
        let end = patience.wait(&room, &route, MINUTE, Place::InLine).unwrap();
        patience.found();
        std::thread::sleep(Duration::from_millis(2));
        assert_eq!(patience.wait(&room, &route, MINUTE, Place::InLine).unwrap(), end);
        patience.progressed();
        assert!(patience.wait(&room, &route, MINUTE, Place::InLine).unwrap() > end);
    }
}
