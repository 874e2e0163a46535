//! A circle from the inside: rounds in one order for all ranks, and what askers have for them.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use belay_backend::{FabricError, RoundAnswer, RoundAsk};

use super::line::Line;
use crate::sync::lock;
use crate::wire::Word;

/// How long calling the others to a round may take.
const RING_WITHIN: Duration = Duration::from_secs(1);

/// Ranks of several workers that do rounds together.
pub(crate) struct Circle {
    pub number: u64,
    /// Its workers, ascending; ranks are numbered in this order.
    pub members: Vec<u32>,
    pub ranks_per_worker: u32,
    /// To the other workers.
    lines: Vec<Arc<Line>>,
    state: Mutex<State>,
    changed: Condvar,
    /// Rounds that the first rank here has finished.
    pub rounds: AtomicU64,
    is_open: AtomicBool,
}

#[derive(Default)]
struct State {
    /// Own ranks that have joined.
    joined: u32,
    /// The last round that somebody wants.
    wanted: u64,
    /// The round that the first rank here enters next, less one.
    entered: u64,
    asks: VecDeque<Arc<Slot>>,
    closed: Option<String>,
}

/// An ask on its way through a round.
pub(crate) struct Slot {
    pub ask: RoundAsk,
    outcome: Mutex<Option<Result<RoundAnswer, FabricError>>>,
    done: Condvar,
}

impl Slot {
    fn finish(&self, outcome: Result<RoundAnswer, FabricError>) {
        lock(&self.outcome).get_or_insert(outcome);
        self.done.notify_all();
    }

    /// Waits for the answer; `None` at `until`.
    pub(crate) fn wait(&self, until: Instant) -> Option<Result<RoundAnswer, FabricError>> {
        let mut outcome = lock(&self.outcome);
        loop {
            if let Some(outcome) = outcome.take() {
                return Some(outcome);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            outcome = self.done.wait_timeout(outcome, left).unwrap_or_else(PoisonError::into_inner).0;
        }
    }
}

impl Circle {
    pub(crate) fn new(
        number: u64,
        members: Vec<u32>,
        ranks_per_worker: u32,
        lines: Vec<Arc<Line>>,
    ) -> Arc<Self> {
        Arc::new(Self {
            number,
            members,
            ranks_per_worker,
            lines,
            state: Mutex::default(),
            changed: Condvar::new(),
            rounds: AtomicU64::new(0),
            is_open: AtomicBool::new(false),
        })
    }

    /// Number of a worker's first rank.
    pub(crate) fn first_rank(&self, worker: u32) -> Option<u32> {
        let position = self.members.binary_search(&worker).ok()?;
        Some(position as u32 * self.ranks_per_worker)
    }

    /// Whether a worker with this uid may be the one that sits here; those that don't sit here may.
    pub(super) fn sat(&self, worker: u32, uid: Option<&str>) -> bool {
        let line = self.lines.iter().find(|line| line.worker == worker);
        line.is_none_or(|line| Some(&*line.uid) == uid)
    }

    pub(crate) fn ranks(&self) -> u32 {
        self.members.len() as u32 * self.ranks_per_worker
    }

    /// All own ranks have joined, and none has failed.
    pub(crate) fn is_open(&self) -> bool {
        self.is_open.load(Ordering::Acquire)
    }

    pub(crate) fn is_closed(&self) -> bool {
        lock(&self.state).closed.is_some()
    }

    /// Why it is of no more use.
    pub(crate) fn reason(&self) -> String {
        lock(&self.state).closed.clone().unwrap_or_default()
    }

    /// An own rank has joined; true if it is the last one.
    pub(super) fn joined(&self) -> bool {
        let mut state = lock(&self.state);
        state.joined += 1;
        let all = state.joined == self.ranks_per_worker;
        if all && state.closed.is_none() {
            self.is_open.store(true, Ordering::Release);
        }
        all
    }

    /// Ends it: whoever waits is told. True the first time.
    pub(super) fn close(&self, reason: &str) -> bool {
        let asks = {
            let mut state = lock(&self.state);
            if state.closed.is_some() {
                return false;
            }
            state.closed = Some(reason.to_owned());
            self.is_open.store(false, Ordering::Release);
            std::mem::take(&mut state.asks)
        };
        self.changed.notify_all();
        asks.iter().for_each(|slot| slot.finish(Err(FabricError::Local(reason.to_owned()))));
        true
    }

    /// Rounds up to this one are wanted by somebody.
    pub(crate) fn rung(&self, round: u64) {
        let mut state = lock(&self.state);
        if round > state.wanted {
            state.wanted = round;
            drop(state);
            self.changed.notify_all();
        }
    }

    /// Puts an ask into the next round, and calls everybody to it.
    pub(crate) fn submit(&self, ask: RoundAsk) -> Result<Arc<Slot>, FabricError> {
        let slot = Arc::new(Slot { ask, outcome: Mutex::default(), done: Condvar::new() });
        let ring = {
            let mut state = lock(&self.state);
            if let Some(reason) = &state.closed {
                return Err(FabricError::Local(reason.clone()));
            }
            state.asks.push_back(Arc::clone(&slot));
            self.want_next(&mut state)
        };
        self.ring(ring);
        Ok(slot)
    }

    /// Wants the round after the one that was entered last; gives its number if nobody did so before.
    fn want_next(&self, state: &mut State) -> Option<u64> {
        let next = state.entered + 1;
        let is_news = state.wanted < next;
        if is_news {
            state.wanted = next;
            self.changed.notify_all();
        }
        is_news.then_some(next)
    }

    fn ring(&self, round: Option<u64>) {
        let Some(round) = round else { return };
        let until = Instant::now() + RING_WITHIN;
        for line in &self.lines {
            if let Err(reason) = line.say(&Word::Ring { circle: self.number, round }, until) {
                self.close(&format!("worker {}: {reason}", line.worker));
            }
        }
    }

    /// Waits until somebody wants round `round`, and enters it with what the first rank has to ask. `None` when the circle
    /// is closed.
    pub(super) fn enter(&self, own_rank: u32, round: u64) -> Option<Option<Arc<Slot>>> {
        let (slot, ring) = {
            let mut state = lock(&self.state);
            while state.closed.is_none() && state.wanted < round {
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
            }
            if state.closed.is_some() {
                return None;
            }
            if own_rank > 0 {
                return Some(None);
            }
            state.entered = round;
            let slot = state.asks.pop_front();
            let more = !state.asks.is_empty();
            (slot, if more { self.want_next(&mut state) } else { None })
        };
        self.ring(ring);
        Some(slot)
    }

    /// A round is over for an own rank.
    pub(super) fn leave(
        &self,
        own_rank: u32,
        slot: Option<Arc<Slot>>,
        outcome: Result<Option<RoundAnswer>, FabricError>,
    ) -> bool {
        if own_rank == 0 {
            self.rounds.fetch_add(1, Ordering::Relaxed);
        }
        let failed = outcome.as_ref().err().cloned();
        if let Some(slot) = slot {
            let none = || FabricError::Local("a round gave no answer".into());
            slot.finish(outcome.and_then(|answer| answer.ok_or_else(none)));
        }
        if let Some(error) = &failed {
            self.close(&error.to_string());
        }
        failed.is_none()
    }
}
