//! The room where requests wait while no worker can take them: bounded, and with a fair order for each thing that is waited
//! for.
use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
};

use prometheus_client::metrics::gauge::Gauge;
use tokio::sync::Notify;

use crate::{
    measure::Burden,
    routing::{Route, Target},
};

use super::line::Line;

/// A key may take another seat only while it has fewer than this many times the seats that are free: one key alone gets
/// three quarters of the room, and there is always a seat for one that has none yet.
const SEATS_FOR_EACH_FREE: usize = 3;

/// See the module.
#[derive(Clone, Debug)]
pub struct WaitingRoom(Arc<Room>);

#[derive(Debug)]
struct Room {
    seats: usize,
    taken: AtomicUsize,
    next: AtomicU64,
    state: Mutex<State>,
    gauge: Gauge,
}

#[derive(Debug, Default)]
struct State {
    by_key: HashMap<Arc<str>, usize>,
    lines: HashMap<Target, Line>,
    calls: HashMap<u64, Arc<Notify>>,
}

/// How a request waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// In line with others that wait for the same.
    InLine,
    /// On its own: it has streamed already and goes first, or it cannot go where the others can.
    Apart,
    /// As [`Self::Apart`], and it always gets a seat: it has streamed already, and must not be lost. There are no more of
    /// those than clients that were let in.
    Started,
}

impl WaitingRoom {
    /// A room for `seats` requests; `gauge` shows how many are in it.
    pub fn new(seats: usize, gauge: Gauge) -> Self {
        Self(Arc::new(Room {
            seats,
            taken: AtomicUsize::new(0),
            next: AtomicU64::new(0),
            state: Mutex::default(),
            gauge,
        }))
    }

    /// The number of a request that may come to wait: who has a lower one came first.
    pub fn number(&self) -> u64 {
        self.0.next.fetch_add(1, Ordering::Relaxed)
    }

    /// Whether others wait for the same as this request, so that it has to join them.
    pub fn has_line(&self, route: &Route) -> bool {
        self.0.taken.load(Ordering::Acquire) > 0
            && self.0.state().lines.get(&route.target).is_some_and(|line| !line.is_empty())
    }

    /// Takes a seat. `Err` says how many are waiting.
    pub fn enter(&self, route: &Route, number: u64, place: Place) -> Result<Seat, usize> {
        let room = &self.0;
        let key = route.key();
        let mut state = room.state();
        let taken = room.taken.load(Ordering::Acquire);
        let mine = state.by_key.get(&key).copied().unwrap_or_default();
        let free = room.seats.saturating_sub(taken);
        let has_share = route.ticket.is_none() || mine < SEATS_FOR_EACH_FREE.saturating_mul(free);
        if place != Place::Started && (free == 0 || !has_share) {
            return Err(taken);
        }
        room.taken.store(taken + 1, Ordering::Release);
        *state.by_key.entry(key.clone()).or_default() += 1;
        let call = Arc::new(Notify::new());
        let line = (place == Place::InLine).then(|| route.target.clone());
        if let Some(line) = &line {
            state.lines.entry(line.clone()).or_default().join(&key, number);
            state.calls.insert(number, call.clone());
        }
        room.gauge.inc();
        let held = Burden::new([route.meter.held.clone()], route.work);
        Ok(Seat { room: room.clone(), key, number, line, call, served: false, _held: held })
    }
}

impl Room {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A seat, until dropped.
#[derive(Debug)]
pub struct Seat {
    room: Arc<Room>,
    key: Arc<str>,
    number: u64,
    line: Option<Target>,
    call: Arc<Notify>,
    served: bool,
    _held: Burden<1>,
}

impl Seat {
    /// Whether it is this request's turn to look for a worker.
    pub fn is_next(&self) -> bool {
        self.line.as_ref().is_none_or(|line| {
            self.room.state().lines.get(line).and_then(Line::next).is_none_or(|next| next == self.number)
        })
    }

    /// Ends when it may have become this request's turn.
    pub async fn called(&self) {
        self.call.notified().await;
    }

    /// It has got a worker: its key's turn is over.
    pub fn served(mut self) {
        self.served = true;
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        let mut state = self.room.state();
        let taken = self.room.taken.load(Ordering::Acquire);
        self.room.taken.store(taken.saturating_sub(1), Ordering::Release);
        if let Some(mine) = state.by_key.get_mut(&self.key) {
            *mine -= 1;
            if *mine == 0 {
                state.by_key.remove(&self.key);
            }
        }
        if let Some(target) = &self.line {
            state.calls.remove(&self.number);
            let State { lines, calls, .. } = &mut *state;
            if let Some(line) = lines.get_mut(target) {
                line.leave(&self.key, self.number, self.served);
                match line.next() {
                    Some(next) => calls.get(&next).into_iter().for_each(|call| call.notify_one()),
                    None => _ = lines.remove(target),
                }
            }
        }
        self.room.gauge.dec();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        keys::{Key, Keyring, read},
        measure::Work,
        routing::{ConnectOptions, Fleet, PolicyName},
    };

    fn route() -> Route {
        Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default()).route("m", Work::default())
    }

    fn of_key(name: &str) -> Route {
        let ring = Keyring::new(read(&format!("[{{name: {name}, key: {name}}}]")).unwrap(), 1);
        let mut headers = http::HeaderMap::new();
        headers.insert("x-api-key", name.parse().unwrap());
        let key: Arc<Key> = ring.of(&headers).unwrap();
        Route { ticket: Some(Arc::new(key.admit(0).unwrap())), ..route() }
    }

    fn enter(room: &WaitingRoom, route: &Route, place: Place) -> Result<Seat, usize> {
        room.enter(route, room.number(), place)
    }

    #[test]
    fn the_room_is_bounded_and_seats_are_given_back() {
        let room = WaitingRoom::new(2, Gauge::default());
        let route = route();
        let first = enter(&room, &route, Place::InLine).unwrap();
        let _second = enter(&room, &route, Place::Apart).unwrap();
        assert_eq!(enter(&room, &route, Place::InLine).unwrap_err(), 2);
        assert_eq!((room.0.gauge.get(), route.meter.held.requests()), (2, 2));
        drop(first);
        assert!(enter(&room, &route, Place::InLine).is_ok());
        let started = enter(&WaitingRoom::new(0, Gauge::default()), &route, Place::Started);
        assert!(started.is_ok(), "a started stream always gets one");
    }

    #[test]
    fn one_key_cannot_fill_the_room() {
        let room = WaitingRoom::new(16, Gauge::default());
        let (greedy, modest) = (of_key("greedy"), of_key("modest"));
        let mut seats = Vec::new();
        while let Ok(seat) = enter(&room, &greedy, Place::InLine) {
            seats.push(seat);
        }
        assert_eq!(seats.len(), 12);
        seats.extend(enter(&room, &modest, Place::InLine));
        seats.extend(enter(&room, &modest, Place::InLine));
        assert_eq!(seats.len(), 14);
        assert!(enter(&room, &greedy, Place::InLine).is_err());
    }

    #[tokio::test]
    async fn turns_pass_from_one_to_the_next() {
        let room = WaitingRoom::new(9, Gauge::default());
        let (a, b) = (of_key("a"), of_key("b"));
        assert!(!room.has_line(&a));
        let seats: Vec<Seat> =
            [&a, &a, &b].into_iter().map(|route| enter(&room, route, Place::InLine).unwrap()).collect();
        assert!(room.has_line(&a) && room.has_line(&b));
        let [first, second, third] = seats.try_into().unwrap();
        assert!(first.is_next() && !second.is_next() && !third.is_next());
        first.served();
        third.called().await;
        assert!(third.is_next() && !second.is_next());
        drop(third);
        second.called().await;
        assert!(second.is_next());
        let apart = enter(&room, &a, Place::Apart).unwrap();
        assert!(apart.is_next());
        drop(second);
        assert!(!room.has_line(&a));
    }
}
