//! Rounds in memory: ranks of one process lay what they ask on a board, where devices would send it.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use belay_backend::{Collective, ExpertCompute, FabricError, RoundAnswer, RoundAsk, Seat, Sitting};

use super::{HIDDEN, Toys};

/// All boards of a test, by root.
#[derive(Default)]
pub struct Boards {
    open: Mutex<HashMap<Vec<u8>, Arc<Board>>>,
    made: AtomicU32,
    /// While set, rounds fail.
    pub broken: AtomicBool,
    /// While set, joining takes long.
    pub slow: AtomicBool,
    joining: AtomicU32,
}

impl Boards {
    /// How many circles were begun.
    pub fn made(&self) -> u32 {
        self.made.load(Ordering::Relaxed)
    }

    /// How many ranks began to join.
    pub fn joining(&self) -> u32 {
        self.joining.load(Ordering::Relaxed)
    }
}

/// The ranks of one worker.
pub struct InMemory {
    pub boards: Arc<Boards>,
    pub toys: Arc<Toys>,
}

#[derive(Default)]
struct Board {
    state: Mutex<State>,
    changed: Condvar,
}

#[derive(Default)]
struct State {
    joined: u32,
    left: bool,
    /// Times that everybody has come to the same point.
    meetings: u64,
    here: u32,
    asks: HashMap<u32, RoundAsk>,
    /// By (asker, rank).
    results: HashMap<(u32, u32), (Vec<f32>, Option<u32>)>,
}

struct AtBoard {
    boards: Arc<Boards>,
    board: Arc<Board>,
    seat: Seat,
    toys: Arc<Toys>,
    own: usize,
}

fn local(cause: &str) -> FabricError {
    FabricError::Local(cause.into())
}

impl Collective for InMemory {
    fn root(&self) -> Result<Vec<u8>, FabricError> {
        let number = self.boards.made.fetch_add(1, Ordering::Relaxed);
        let root = number.to_le_bytes().to_vec();
        self.boards.open.lock().unwrap().insert(root.clone(), Arc::default());
        Ok(root)
    }

    fn join(&self, rank: u32, seat: &Seat) -> Result<Box<dyn Sitting>, FabricError> {
        self.boards.joining.fetch_add(1, Ordering::Relaxed);
        let begun = Instant::now();
        while self.boards.slow.load(Ordering::Relaxed) && begun.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        let board = self.boards.open.lock().unwrap().get(&seat.root).cloned();
        let board = board.ok_or_else(|| local("no such root"))?;
        let (toys, boards) = (Arc::clone(&self.toys), Arc::clone(&self.boards));
        let sitting = AtBoard { boards, board, seat: seat.clone(), toys, own: rank as usize };
        let mut state = sitting.board.state.lock().unwrap();
        state.joined += 1;
        sitting.board.changed.notify_all();
        let limit = Duration::from_secs(5);
        let all = |state: &mut State| state.joined < seat.ranks && !state.left;
        let (state, waited) = sitting.board.changed.wait_timeout_while(state, limit, all).unwrap();
        let alone = waited.timed_out() || state.left;
        drop(state);
        if alone { Err(local("somebody did not come")) } else { Ok(Box::new(sitting)) }
    }
}

impl AtBoard {
    /// Waits until all ranks have come here.
    fn meet(&self, goes_on: &dyn Fn() -> bool) -> Result<MutexGuard<'_, State>, FabricError> {
        let mut state = self.board.state.lock().unwrap();
        state.here += 1;
        let before = state.meetings;
        if state.here == self.seat.ranks {
            (state.here, state.meetings) = (0, before + 1);
            self.board.changed.notify_all();
        }
        while state.meetings == before {
            if state.left {
                return Err(local("somebody left"));
            }
            drop(state);
            if !goes_on() {
                return Err(local("given up"));
            }
            state = self.board.state.lock().unwrap();
            let moment = Duration::from_millis(3);
            state = self.board.changed.wait_timeout(state, moment).unwrap().0;
        }
        Ok(state)
    }
}

impl Sitting for AtBoard {
    fn round(
        &mut self,
        ask: Option<&RoundAsk>,
        goes_on: &dyn Fn() -> bool,
    ) -> Result<Option<RoundAnswer>, FabricError> {
        let me = self.seat.rank;
        if let Some(ask) = ask {
            self.board.state.lock().unwrap().asks.insert(me, ask.clone());
        }
        let asks = self.meet(goes_on)?.asks.clone();
        if self.boards.broken.load(Ordering::Relaxed) {
            return Err(local("broken by the test"));
        }
        let toy = &self.toys.ranks[self.own];
        for (asker, ask) in &asks {
            let routes = &ask.routes[me as usize];
            let missing =
                routes.iter().map(|route| route.expert).find(|&expert| !toy.holds(ask.layer, expert));
            let mut y = vec![f32::NAN; routes.len() * HIDDEN];
            if missing.is_none() {
                toy.compute(ask.layer, &ask.x, routes, &mut y)?;
            }
            self.board.state.lock().unwrap().results.insert((*asker, me), (y, missing));
        }
        let mut state = self.meet(goes_on)?;
        if ask.is_none() {
            return Ok(None);
        }
        state.asks.remove(&me);
        let mut answer = RoundAnswer::default();
        for rank in 0..self.seat.ranks {
            let (y, missing) = state.results.remove(&(me, rank)).unwrap();
            answer.y.extend(y);
            answer.missing.push(missing);
        }
        drop(state);
        Ok(Some(answer))
    }
}

impl Drop for AtBoard {
    fn drop(&mut self) {
        self.board.state.lock().unwrap().left = true;
        self.board.changed.notify_all();
    }
}
