//! One attempt of one worker to answer a request, as it is measured.
use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use belay_proto::inference::GenerateResponse;

use super::RevisionMeter;

/// How an attempt ended. One that the client gave up, or whose time was over, ended in none of these ways.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// Answered to the end.
    Served,
    /// Given up for a reason that lies with the worker.
    Failed,
    /// Refused as the client's fault.
    Rejected,
    /// Not taken, or handed over.
    PassedOn,
}

/// See the module.
#[derive(Debug)]
pub struct Attempt {
    meter: Arc<RevisionMeter>,
    asked: Instant,
    last: Option<Instant>,
    prompt_told: bool,
}

impl Attempt {
    /// A worker of this revision is asked now.
    pub fn new(meter: Arc<RevisionMeter>) -> Self {
        meter.touch();
        Self { meter, asked: Instant::now(), last: None, prompt_told: false }
    }

    /// A piece came from the worker.
    pub fn piece(&mut self, piece: &GenerateResponse) {
        let meter = &self.meter;
        if let Some(usage) = &piece.usage
            && !std::mem::replace(&mut self.prompt_told, true)
        {
            meter.prompt_tokens.fetch_add(usage.prompt_tokens.into(), Ordering::Relaxed);
        }
        let Ok(tokens @ 1..) = u32::try_from(piece.ids.len()) else { return };
        let now = Instant::now();
        match self.last.replace(now) {
            None => meter.first_token.observe(now - self.asked),
            Some(last) => meter.inter_token.observe((now - last) / tokens),
        }
        meter.completion_tokens.fetch_add(tokens.into(), Ordering::Relaxed);
    }

    /// It is over.
    pub fn end(self, outcome: Outcome) {
        let meter = &self.meter;
        let counter = match outcome {
            Outcome::Served => &meter.served,
            Outcome::Failed => &meter.failed,
            Outcome::Rejected => &meter.rejected,
            Outcome::PassedOn => &meter.passed_on,
        };
        counter.fetch_add(1, Ordering::Relaxed);
        meter.touch();
    }
}
