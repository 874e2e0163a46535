//! One step: plan, guess, forward, choose.
//!
//! A turn with guesses feeds the token that is certain and the guesses behind it, and gets a row of logits behind each.
//! Tokens are then chosen from these rows one after the other, exactly as without guesses, for as long as the choice is
//! what was guessed: only then is the next row the right one. The rows behind are taken back. So guesses change how many
//! tokens a step gives, and never which.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::Ordering;
use std::time::Instant;

use crate::observer::StepReport;
use crate::prefix_cache::{PrefixCache, is_landmark};
use crate::request::FailureKind;
use crate::schedule::{self, Candidate};
use crate::session::Session;
use crate::step_loop::{Running, StepLoop, panic_message};
use crate::step_model::{Draft, Segment, StepError, StepModel};

/// Rows of logits of one prompt in a step at most, if it wants one behind each token: a row is long.
const SCORED_ROWS: usize = 64;

impl<M: StepModel> StepLoop<'_, M> {
    /// One step of all running sessions.
    pub fn step(&mut self, began: Instant) {
        if self.running.is_empty() {
            return;
        }
        let candidates: Vec<Candidate> =
            self.running.iter().map(|running| self.candidate(&running.session)).collect();
        let turns = schedule::plan(&candidates, self.config.step_tokens);
        for (running, turn) in self.running.iter_mut().zip(turns) {
            running.turn = turn;
        }
        self.make_room();
        if self.running.is_empty() {
            return;
        }
        let mut report = StepReport::default();
        let planned = Instant::now();
        report.plan = planned - began;
        for running in &mut self.running {
            running.session.prepare(running.turn);
        }
        let drafted = self.draft();
        let guessed = Instant::now();
        report.draft = guessed - planned;
        self.count(&mut report);
        let result = drafted.and_then(|()| self.forward());
        let computed = Instant::now();
        report.forward = computed - guessed;
        match result {
            Ok(()) => self.choose(&mut report),
            Err(error) => {
                report.lost = true;
                self.lose(&error);
            }
        }
        report.choose = computed.elapsed();
        report.running = self.running.len();
        report.waiting = self.waiting.len();
        self.observer.step(&report);
    }

    fn candidate(&self, session: &Session) -> Candidate {
        let pending = session.pending();
        let mut most = usize::MAX;
        let mut drafts = 0;
        if pending == 1 && session.fed > 0 {
            let model = self.model.max_drafts().min(self.config.draft_tokens);
            drafts = model.min(session.output.left().saturating_sub(1));
        }
        if self.config.prefix_cache {
            let block = session.chain.block();
            // Every block's end of an output is a place for a snapshot.
            drafts = drafts.min(block - session.fed % block - 1);
            most = self.until_snapshot(session);
        }
        if session.scores.is_some() {
            most = most.min(SCORED_ROWS);
        }
        Candidate { priority: session.priority, pending, most, drafts }
    }

    /// Tokens of a prompt up to the next end of a block that is worth a snapshot and has none.
    fn until_snapshot(&self, session: &Session) -> usize {
        let block = session.chain.block();
        let end = session.prefill_len.min(session.fed + self.config.step_tokens + 1);
        (session.fed / block + 1..)
            .take_while(|blocks| blocks * block < end)
            .find(|&blocks| self.is_worth(session, blocks))
            .map_or(usize::MAX, |blocks| blocks * block - session.fed)
    }

    fn is_worth(&self, session: &Session, blocks: usize) -> bool {
        let is_last = blocks == (session.prefill_len - 1) / session.chain.block();
        (is_last || is_landmark(blocks))
            && session.chain.get(blocks).is_none_or(|digest| !self.cache.contains(&digest))
    }

    /// Puts guesses behind the tokens of the sessions that check some. Without guesses, the step goes on without them.
    fn draft(&mut self) -> Result<(), StepError> {
        self.drafts.clear();
        let mut segments: Vec<Draft<'_, M::State>> = Vec::new();
        let mut expected = 0;
        for Running { session, state, turn } in &mut self.running {
            if let Some(&token) = session.tokens.last().filter(|_| turn.drafts > 0) {
                segments.push(Draft { state, token, count: turn.drafts });
                expected += turn.drafts;
            }
        }
        if segments.is_empty() {
            return Ok(());
        }
        let (model, drafts) = (self.model, &mut self.drafts);
        let result = caught("the step", || model.draft(&mut segments, drafts))?;
        let found = self.drafts.len();
        let result = result.and_then(|()| match found == expected {
            true => Ok(()),
            false => {
                Err(StepError { message: format!("{found} guesses, expected {expected}"), retryable: true })
            }
        });
        if let Err(error) = &result {
            tracing::warn!(%error, "no guesses in this step");
        }
        let mut drafts = self.drafts.iter().copied();
        for Running { session, turn, .. } in &mut self.running {
            if result.is_err() {
                turn.drafts = 0;
            }
            session.guesses = turn.drafts;
            session.tokens.extend(drafts.by_ref().take(turn.drafts));
        }
        Ok(())
    }

    fn count(&self, report: &mut StepReport) {
        for Running { session, turn, .. } in &self.running {
            if session.pending() > 1 {
                report.prefill_rows += turn.tokens;
            } else {
                report.decode_rows += turn.tokens + turn.drafts;
            }
            report.drafted += turn.drafts;
        }
    }

    /// One forward; a panic inside it is an error of the step.
    fn forward(&mut self) -> Result<(), StepError> {
        let mut segments = Vec::with_capacity(self.running.len());
        let mut rows = 0;
        for Running { session, state, turn } in &mut self.running {
            if turn.tokens == 0 {
                continue;
            }
            let wants = session.wants(turn.tokens);
            let tokens = &session.tokens[session.fed..session.fed + turn.tokens + session.guesses];
            rows += wants.rows(tokens.len());
            segments.push(Segment { state, tokens, wants, rewindable: session.guesses > 0 });
        }
        self.logits.clear();
        if segments.is_empty() {
            return Ok(());
        }
        let (model, logits) = (self.model, &mut self.logits);
        caught("the step", || model.forward(&mut segments, logits))??;
        let expected = rows * self.model.vocab_size();
        if self.logits.len() != expected {
            let message = format!("the step gave {} logits, expected {expected}", self.logits.len());
            return Err(StepError { message, retryable: true });
        }
        Ok(())
    }

    /// Gives each session that has fed all its tokens its next ones; drops those that end.
    fn choose(&mut self, report: &mut StepReport) {
        let Self { running, cache, sampler, logits, model, config, shared, waiting, last_end, .. } = self;
        // Before the events go out: whoever has seen a request end finds it counted.
        let prefilled = running.iter().filter(|running| running.session.fed < running.session.prefill_len);
        let prefilled: usize = prefilled.map(|running| running.turn.tokens).sum();
        shared.prefilled_tokens.fetch_add(prefilled as u64, Ordering::Relaxed);
        shared.steps.fetch_add(1, Ordering::Relaxed);
        let vocab = model.vocab_size();
        let before = running.len();
        let mut rest = logits.as_slice();
        running.retain_mut(|Running { session, state, turn }| {
            if turn.tokens == 0 {
                return true;
            }
            let wants = session.wants(turn.tokens);
            let (rows, others) = rest.split_at(wants.rows(turn.tokens + session.guesses) * vocab);
            rest = others;
            let position = session.fed + turn.tokens + session.guesses;
            let taken = caught("choosing a token", || session.take_turn(*turn, rows, vocab, sampler, shared));
            let (goes_on, right) = taken.unwrap_or_else(|error| {
                // One request's bug must not take the others down.
                session.fail(error.message, FailureKind::Broken);
                (false, 0)
            });
            report.accepted += right;
            if goes_on
                && session.fed < position
                && let Err(error) = model.rewind(state, session.fed)
            {
                session.fail(error.to_string(), error.kind());
                return false;
            }
            if config.prefix_cache && (goes_on || session.fed == position) {
                keep(*model, cache, session, state);
            }
            goes_on
        });
        let ended = before - running.len();
        if waiting.is_empty() {
            *last_end = None;
        } else if ended > 0 {
            let now = Instant::now();
            if let Some(last) = last_end.replace(now) {
                for _ in 0..ended {
                    shared.pace.note((now - last) / u32::try_from(ended).unwrap_or(u32::MAX));
                }
            }
        }
    }

    /// The states that took part are undefined: their sessions end, the others stay.
    fn lose(&mut self, error: &StepError) {
        tracing::warn!(%error, "a step is lost");
        self.shared.failed_steps.fetch_add(1, Ordering::Relaxed);
        self.running.retain_mut(|Running { session, turn, .. }| {
            let took_part = turn.tokens > 0;
            if took_part {
                tracing::debug!(id = session.id, "request lost with its step");
                session.fail(error.message.clone(), error.kind());
            }
            !took_part
        });
    }
}

/// Puts a snapshot into the cache if the state stands where one is worth it.
fn keep<M: StepModel>(
    model: &M,
    cache: &mut PrefixCache<M::Snapshot>,
    session: &mut Session,
    state: &M::State,
) {
    let block = session.chain.block();
    if session.fed == 0 || !session.fed.is_multiple_of(block) {
        return;
    }
    let blocks = session.fed / block;
    let is_output = session.fed >= session.prefill_len;
    if !is_output && !is_landmark(blocks) && blocks != (session.prefill_len - 1) / block {
        return;
    }
    session.extend_chain();
    let Some(digest) = session.chain.get(blocks).filter(|digest| !cache.contains(digest)) else { return };
    match model.snapshot(state) {
        Ok(snapshot) => cache.insert(digest, snapshot),
        // The output does not depend on it.
        Err(error) => return tracing::debug!(id = session.id, %error, "no snapshot"),
    }
    if is_output {
        let kept = (!is_landmark(blocks)).then_some(digest);
        if let Some(before) = std::mem::replace(&mut session.last_kept, kept) {
            cache.remove_unused(&before);
        }
    }
}

/// What `work` returns; a panic is an error.
fn caught<T>(what: &str, work: impl FnOnce() -> T) -> Result<T, StepError> {
    catch_unwind(AssertUnwindSafe(work)).map_err(|panic| StepError {
        message: format!("{what} panicked: {}", panic_message(&*panic)),
        retryable: true,
    })
}
