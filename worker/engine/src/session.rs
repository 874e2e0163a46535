//! One sequence being prefilled or decoded.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use crate::chooser::{Choice, Chooser};
use crate::logprobs::token_logprobs;
use crate::observer::{End, Observer, RequestReport};
use crate::outlet::Outlet;
use crate::output::Output;
use crate::prefix_cache::{Chain, Digest};
use crate::request::{Event, FailureKind, FinishReason, TokenLogprobs, Usage};
use crate::sampler::Sampler;
use crate::schedule::Turn;
use crate::stats::Shared;
use crate::step_model::Wants;

/// A request inside the engine, without the model's decode state.
pub struct Session {
    /// Names the session within the engine; later ones are greater.
    pub key: u64,
    /// The caller's name for it, for logs.
    pub id: String,
    pub priority: i32,
    pub deadline: Option<Instant>,
    /// Prompt, then everything produced; behind that, in a step, guesses.
    pub tokens: Vec<u32>,
    /// How many of `tokens`, at the end, are guesses.
    pub guesses: usize,
    pub prompt_len: usize,
    /// Tokens that the request came with: prompt and resumed ones.
    pub given_len: usize,
    /// Tokens that were there when it was admitted last: what is to be fed before it decodes.
    pub prefill_len: usize,
    /// How many of `tokens` the model's state has taken.
    pub fed: usize,
    /// Tokens of the prompt found in the prefix cache; unknown until it is admitted.
    pub cached: Option<usize>,
    pub chain: Chain,
    /// The snapshot at the last block's end of its output so far.
    pub last_kept: Option<Digest>,
    pub chooser: Chooser,
    /// The prompt's log-probabilities, until the sink has them.
    pub scores: Option<Scores>,
    pub output: Output,
    pub outlet: Outlet,
    /// Set if the resumed tokens were the whole output already.
    pub ended: Option<FinishReason>,
    pub record: Record,
}

/// Log-probabilities of the prompt's tokens from the second on.
pub struct Scores {
    /// Likeliest tokens to tell beside each.
    pub top: u32,
    /// As far as they are known.
    pub found: Vec<TokenLogprobs>,
}

/// What a request went through, for its report.
pub struct Record {
    pub observer: Arc<dyn Observer>,
    pub submitted: Instant,
    pub admitted: Option<Instant>,
    pub first_token: Option<Instant>,
    pub last_token: Option<Instant>,
    pub preemptions: u32,
    pub drafted: u32,
    pub accepted: u32,
    reported: bool,
}

impl Record {
    pub fn new(observer: Arc<dyn Observer>) -> Self {
        Self {
            observer,
            submitted: Instant::now(),
            admitted: None,
            first_token: None,
            last_token: None,
            preemptions: 0,
            drafted: 0,
            accepted: 0,
            reported: false,
        }
    }

    fn token(&mut self) {
        let now = Instant::now();
        if let Some(before) = self.last_token {
            self.observer.token(now - before);
        }
        self.first_token.get_or_insert(now);
        self.last_token = Some(now);
    }
}

impl Session {
    /// Who is served first and preempted last: the lower, the better. No two are equal.
    pub fn rank(&self) -> (i32, u64) {
        (self.priority, self.key)
    }

    /// Tokens that are certain: prompt and output.
    pub fn len(&self) -> usize {
        self.tokens.len() - self.guesses
    }

    /// Certain tokens that the state has not taken yet: the rest of the prompt, or the token produced last.
    pub fn pending(&self) -> usize {
        self.len() - self.fed
    }

    pub fn produced(&self) -> usize {
        self.len() - self.prompt_len
    }

    /// Whether nobody asks for what comes with each token of the prompt, so that a snapshot may stand in for them.
    pub fn may_skip_tokens(&self) -> bool {
        self.scores.is_none()
    }

    /// Brings the chain up to the tokens that are certain.
    pub fn extend_chain(&mut self) {
        let len = self.len();
        self.chain.extend(&self.tokens[..len]);
    }

    /// A forward with this turn follows.
    pub fn prepare(&mut self, turn: Turn) {
        if turn.tokens == self.pending() {
            self.chooser.prepare();
        }
    }

    /// The rows of logits that it needs of a turn that feeds `tokens` certain tokens, and the guesses.
    pub fn wants(&self, tokens: usize) -> Wants {
        if self.guesses > 0 || self.scores.is_some() {
            Wants::All
        } else if tokens == self.pending() && self.output.left() > 0 {
            Wants::Last
        } else {
            Wants::Nothing
        }
    }

    /// The turn's tokens are fed, and `rows` are the logits that it wanted: chooses tokens, and tells the sink. Returns
    /// whether the session goes on, and how many guesses were right.
    pub fn take_turn(
        &mut self,
        turn: Turn,
        rows: &[f32],
        vocab: usize,
        sampler: &mut Sampler,
        shared: &Shared,
    ) -> (bool, usize) {
        let first = self.fed;
        self.fed += turn.tokens;
        let rows = match self.scores.is_some() {
            true if !self.score(first, rows, vocab) => return (false, 0),
            // What follows is chosen from those behind the last certain token, and behind the guesses.
            true => &rows[(turn.tokens - 1) * vocab..],
            false => rows,
        };
        if self.pending() > 0 {
            return (true, 0);
        }
        if self.output.left() == 0 {
            // Only the prompt was asked for.
            self.finish(FinishReason::Length);
            return (false, 0);
        }
        for counter in &shared.drafted[..self.guesses] {
            counter.fetch_add(1, Ordering::Relaxed);
        }
        self.record.drafted += count(self.guesses);
        let mut right = 0;
        for row in rows.chunks_exact(vocab) {
            let Some(choice) = self.choose(row, sampler) else { return (false, right) };
            // Before the events go out: whoever has seen a request end finds it counted.
            shared.generated_tokens.fetch_add(1, Ordering::Relaxed);
            let was_guessed = self.put(choice.token);
            if was_guessed {
                shared.accepted[right].fetch_add(1, Ordering::Relaxed);
                self.record.accepted += 1;
                right += 1;
            }
            if !self.tell(choice) {
                return (false, right);
            }
            if !was_guessed {
                break;
            }
            // The row behind the guess is the next token's.
            self.fed += 1;
        }
        (true, right)
    }

    /// Takes the rows behind the tokens from `first` on as far as they are the prompt's. Tells the sink when all are
    /// there. Returns whether the session goes on.
    fn score(&mut self, first: usize, rows: &[f32], vocab: usize) -> bool {
        let Some(scores) = &mut self.scores else { return true };
        for (row, next) in rows.chunks_exact(vocab).zip(first + 1..self.prompt_len) {
            // After a preemption, the first ones come again.
            if next <= scores.found.len() {
                continue;
            }
            match token_logprobs(row, self.tokens[next], scores.top) {
                Ok(logprobs) => scores.found.push(logprobs),
                Err(error) => {
                    self.fail(format!("prompt token {next}: {error}"), FailureKind::Broken);
                    return false;
                }
            }
        }
        if self.fed < self.prompt_len {
            return true;
        }
        let logprobs = self.scores.take().map(|scores| scores.found).unwrap_or_default();
        let listens = self.outlet.tell(Event::Prompt { logprobs });
        if !listens {
            self.report(End::Failed(FailureKind::Cancelled));
        }
        listens
    }

    fn choose(&mut self, logits: &[f32], sampler: &mut Sampler) -> Option<Choice> {
        let index = count(self.produced());
        let choice = self.chooser.choose(logits, index, sampler);
        let accepted = choice.and_then(|choice| self.chooser.accept(choice.token).map(|()| choice));
        match accepted {
            Ok(choice) => Some(choice),
            Err(error) => {
                self.fail(format!("token {index}: {error}"), FailureKind::Broken);
                None
            }
        }
    }

    /// Makes a token certain. Returns whether it was the next guess; if not, the other guesses are void.
    fn put(&mut self, token: u32) -> bool {
        let len = self.len();
        if self.tokens.get(len) == Some(&token) {
            self.guesses -= 1;
            return true;
        }
        self.tokens.truncate(len);
        self.guesses = 0;
        self.tokens.push(token);
        false
    }

    /// Tells the sink of a token. Returns whether the session goes on.
    fn tell(&mut self, Choice { token, logprobs }: Choice) -> bool {
        self.record.token();
        let mut text = String::new();
        let mut ended = self.output.push(token, &mut text);
        if ended.is_none() && self.chooser.is_complete() {
            ended = Some(self.output.complete(&mut text));
        }
        let logprobs = logprobs.into_iter().collect();
        if !self.outlet.tell(Event::Tokens { ids: vec![token], text, logprobs }) {
            self.report(End::Failed(FailureKind::Cancelled));
            return false;
        }
        let Some(reason) = ended else { return true };
        self.finish(reason);
        false
    }

    /// It gave up its state and is to feed everything again.
    pub fn lose_state(&mut self) {
        self.fed = 0;
        self.record.preemptions += 1;
        self.outlet.wait();
    }

    /// The good end.
    pub fn finish(&mut self, reason: FinishReason) {
        self.report(End::Finished(reason.clone()));
        self.outlet.end(Event::Finished { reason, usage: self.usage() });
    }

    /// The bad end.
    pub fn fail(&mut self, message: String, kind: FailureKind) {
        self.report(End::Failed(kind));
        self.outlet.end(Event::Failed { message, kind });
    }

    fn usage(&self) -> Usage {
        Usage {
            prompt_tokens: count(self.prompt_len),
            completion_tokens: count(self.produced()),
            cached_tokens: count(self.cached.unwrap_or(0)),
        }
    }

    fn report(&mut self, end: End) {
        let record = &mut self.record;
        if std::mem::replace(&mut record.reported, true) {
            return;
        }
        let now = Instant::now();
        let between = |from: Option<Instant>, to: Option<Instant>| -> Option<Duration> { Some(to? - from?) };
        let report = RequestReport {
            id: self.id.clone(),
            queued: record.admitted.unwrap_or(now) - record.submitted,
            prefill: between(record.admitted, record.first_token),
            first_token: between(Some(record.submitted), record.first_token),
            decode: between(record.first_token, record.last_token),
            total: now - record.submitted,
            produced: count(self.tokens.len() - self.guesses - self.given_len),
            preemptions: record.preemptions,
            drafted: record.drafted,
            accepted: record.accepted,
            usage: self.usage(),
            end,
        };
        self.record.observer.finished(&report);
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // A session that has ended has said so; this is the engine's own end.
        self.report(End::Failed(FailureKind::Lost));
    }
}

fn count(tokens: usize) -> u32 {
    u32::try_from(tokens).unwrap_or(u32::MAX)
}
