//! What is known of load and groups.
use jiff::Timestamp;

/// After so many seconds nothing is concluded from an answer any more.
const FRESH_SECONDS: i64 = 10;

/// What gateways and workers have measured, added up.
#[derive(Clone, Debug, PartialEq)]
pub struct Signals {
    /// When the oldest part of it was measured.
    pub measured: Timestamp,
    /// Whether every gateway is in it.
    pub heard: Heard,
    /// Requests that wait at gateways.
    pub held: u64,
    /// What they will take, in tokens.
    pub held_tokens: u64,
    /// Requests that workers have.
    pub outstanding: u64,
    /// What they have still to do, in tokens.
    pub outstanding_tokens: u64,
    /// Seconds since the last request arrived or ended, at whichever gateway.
    pub idle_seconds: u64,
    /// Tokens of prompts and answers that were done: a count that only grows.
    pub served_tokens: u64,
    /// Times to first tokens of the last minute.
    pub first_token: FirstToken,
    /// How full the caches of ready workers are; `None`: not known.
    pub kv_percent: Option<u64>,
}

/// Times to the first token of requests.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FirstToken {
    /// Requests that had one.
    pub samples: u64,
    /// Nine of ten had it after so many milliseconds.
    pub p90_milliseconds: u64,
}

/// Who has answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Heard {
    /// Every gateway.
    All,
    /// Some gateways: there is at least as much load as they tell.
    Some,
}

impl Signals {
    /// All tokens that groups have before them.
    pub fn tokens(&self) -> u64 {
        self.held_tokens.saturating_add(self.outstanding_tokens)
    }

    /// Whether it is new enough to go by.
    pub fn fresh(&self, now: Timestamp) -> bool {
        now.as_second() - self.measured.as_second() <= FRESH_SECONDS
    }

    /// Whether nobody is asking for anything.
    pub fn quiet(&self) -> bool {
        self.held == 0 && self.outstanding == 0
    }
}

/// The groups there are, without those that drain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Groups {
    /// Groups that serve.
    pub ready: u32,
    /// Groups that start, or load the model.
    pub loading: u32,
    /// Groups that cannot start.
    pub failing: u32,
    /// Seconds until the last of those that load is ready, at the rate so far; `None`: not known, or none loads.
    pub eta_seconds: Option<u32>,
}

impl Groups {
    /// Groups that serve or will.
    pub fn capacity(&self) -> u32 {
        self.ready + self.loading
    }
}
