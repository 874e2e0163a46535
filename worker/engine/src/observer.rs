//! What the engine tells whoever measures it.

use std::time::Duration;

use crate::request::{FailureKind, FinishReason, Usage};

/// Hears of every step and of every request's end. Called on the engine's thread: it must neither block nor panic.
pub trait Observer: Send + Sync + 'static {
    /// A step is over, well or not.
    fn step(&self, report: &StepReport) {
        let _ = report;
    }

    /// A request got a token, `gap` after the one before.
    fn token(&self, gap: Duration) {
        let _ = gap;
    }

    /// A request has ended. Called before its sink hears so.
    fn finished(&self, report: &RequestReport) {
        let _ = report;
    }
}

/// Hears nothing.
pub struct Silent;

impl Observer for Silent {}

/// One step.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct StepReport {
    /// Choosing who takes part, and finding room for it.
    pub plan: Duration,
    /// Guessing.
    pub draft: Duration,
    /// The forward.
    pub forward: Duration,
    /// Choosing tokens and passing them on.
    pub choose: Duration,
    /// Rows of sequences of which more than one token was to be fed.
    pub prefill_rows: usize,
    /// Rows of sequences that decode, guesses included.
    pub decode_rows: usize,
    /// Guesses that were checked.
    pub drafted: usize,
    /// Guesses that were right and part of the output.
    pub accepted: usize,
    /// Requests that run, after the step.
    pub running: usize,
    /// Requests that wait, after the step.
    pub waiting: usize,
    /// Whether the step was lost with its requests.
    pub lost: bool,
}

/// One request, as a whole.
#[derive(Clone, Debug, PartialEq)]
pub struct RequestReport {
    /// The caller's name for it.
    pub id: String,
    /// From submission until it first ran; until its end, if it never did.
    pub queued: Duration,
    /// From there until its first token.
    pub prefill: Option<Duration>,
    /// From submission until its first token.
    pub first_token: Option<Duration>,
    /// From its first token to its last.
    pub decode: Option<Duration>,
    /// From submission to its end.
    pub total: Duration,
    /// Tokens in and out.
    pub usage: Usage,
    /// Tokens produced here: without those it was resumed with.
    pub produced: u32,
    /// How often it lost its state to others and had to feed its tokens again.
    pub preemptions: u32,
    /// Guesses that were checked for it.
    pub drafted: u32,
    /// Those that became part of its output.
    pub accepted: u32,
    /// How it ended.
    pub end: End,
}

impl RequestReport {
    /// Mean time between its tokens; `None` with fewer than two.
    #[must_use]
    pub fn inter_token(&self) -> Option<Duration> {
        self.decode.filter(|_| self.produced > 1).map(|decode| decode / (self.produced - 1))
    }
}

/// How a request ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// Well.
    Finished(FinishReason),
    /// Not well, or because nobody listened any more ([`FailureKind::Cancelled`]).
    Failed(FailureKind),
}
