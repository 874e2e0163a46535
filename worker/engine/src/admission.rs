//! Who runs, and who gives way when memory is short.
//!
//! Requests are served by rank: priority, then arrival. A request is admitted when what the running ones hold, what it
//! needs for the tokens that it has, and a block more for each fits into memory. What they need beyond that is not set
//! apart: when it is short, the prefix cache gives way first, then the running request of the lowest rank loses its
//! state, goes back to the queue, and feeds its tokens again when there is room; its output goes on with the same tokens.
//!
//! This always ends: only lower ranks give way, so the request of the best rank gets on in every step, and alone it fits,
//! because the context is cut to what the memory holds.

use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::request::FailureKind;
use crate::schedule::Turn;
use crate::session::Session;
use crate::step_loop::{Running, StepLoop};
use crate::step_model::{StateError, StepModel};

/// A turn is cut down to this many tokens before another request has to give way for it.
const MODEST_TURN: usize = 32;

impl<M: StepModel> StepLoop<'_, M> {
    /// Moves sessions from the queue to the running ones, by rank, while there is room. A request of a better priority
    /// takes the place of one of a worse.
    pub fn admit(&mut self) {
        while let Some((&(priority, _), head)) = self.waiting.first_key_value() {
            if !self.has_room(head) {
                if self.running.last().is_none_or(|last| last.session.priority <= priority) {
                    return;
                }
                self.preempt_last();
                continue;
            }
            let Some((rank, mut session)) = self.waiting.pop_first() else { return };
            match self.begin(&mut session) {
                Ok(state) => {
                    session.outlet.run();
                    session.record.admitted.get_or_insert_with(Instant::now);
                    let index = self.running.partition_point(|running| running.session.rank() < rank);
                    self.running.insert(index, Running { session, state, turn: Turn::default() });
                }
                Err(StateError::NoRoom { .. }) if !self.running.is_empty() => {
                    self.waiting.insert(rank, session);
                    return;
                }
                Err(error) => session.fail(error.to_string(), error.kind()),
            }
        }
    }

    /// A single session always has room.
    fn has_room(&self, next: &Session) -> bool {
        let running = self.running.iter().map(|running| self.needs(&running.session));
        self.running.is_empty()
            || self.running.len() < self.config.max_sessions
                && running.sum::<usize>() + self.needs(next) <= self.model.memory().limit
    }

    /// Bytes for the tokens that it has, and a block more if it may produce as many.
    fn needs(&self, session: &Session) -> usize {
        let growth = session.output.left().clamp(1, self.model.block_tokens());
        self.model.step_bytes(session.len() - 1, growth)
    }

    /// The state to begin with: what the prefix cache has of its tokens, but the last one, whose logits are needed.
    fn begin(&mut self, session: &mut Session) -> Result<M::State, StateError> {
        session.prefill_len = session.len();
        let mut found = None;
        if self.config.prefix_cache && session.may_skip_tokens() {
            session.extend_chain();
            let block = session.chain.block();
            if let Some((blocks, snapshot)) = self.cache.longest(&session.chain, (session.len() - 1) / block)
            {
                found = self.model.restore(snapshot).ok();
                session.fed = if found.is_some() { blocks * block } else { 0 };
            }
        }
        let state = match found {
            Some(state) => state,
            None => self.new_state()?,
        };
        if session.cached.is_none() {
            session.cached = Some(session.fed.min(session.prompt_len));
            if self.config.prefix_cache {
                self.shared.prefix_query_tokens.fetch_add(session.len() as u64, Ordering::Relaxed);
                self.shared.prefix_hit_tokens.fetch_add(session.fed as u64, Ordering::Relaxed);
            }
        }
        Ok(state)
    }

    fn new_state(&mut self) -> Result<M::State, StateError> {
        loop {
            match self.model.new_state() {
                Err(StateError::NoRoom { .. }) if self.cache.evict() => {}
                other => return other,
            }
        }
    }

    /// Takes the memory for every planned turn, the best rank first. Turns get smaller, and the last sessions leave, where
    /// there is too little.
    pub fn make_room(&mut self) {
        let mut index = 0;
        while index < self.running.len() {
            if self.make_room_for(index) {
                index += 1;
            }
        }
    }

    /// Returns whether the session still runs.
    fn make_room_for(&mut self, index: usize) -> bool {
        loop {
            let is_last = index + 1 == self.running.len();
            let Running { session, state, turn } = &mut self.running[index];
            if turn.tokens == 0 {
                return true;
            }
            let error = match self.model.reserve(state, turn.tokens + turn.drafts) {
                Ok(()) => return true,
                Err(error) => error,
            };
            if matches!(error, StateError::Failed(_)) {
                session.fail(error.to_string(), error.kind());
                self.running.remove(index);
                return false;
            }
            if self.cache.evict() {
                continue;
            }
            if turn.drafts > 0 {
                turn.drafts = 0;
            } else if turn.tokens > MODEST_TURN || is_last && turn.tokens > 1 {
                turn.tokens /= 2;
            } else if !is_last {
                self.preempt_last();
            } else if index > 0 {
                self.preempt_last();
                return false;
            } else {
                session.fail(error.to_string(), FailureKind::Lost);
                self.running.clear();
                return false;
            }
        }
    }

    /// The last one by rank gives up its state and goes back to the queue, before all of lower rank.
    fn preempt_last(&mut self) {
        let Some(Running { mut session, .. }) = self.running.pop() else { return };
        tracing::debug!(id = session.id, tokens = session.len(), "preempted");
        session.lose_state();
        self.shared.preemptions.fetch_add(1, Ordering::Relaxed);
        self.waiting.insert(session.rank(), session);
    }
}
