//! One answer, piece by piece, from as many workers as it takes.
use std::time::Instant;

use belay_proto::inference::{FinishReason, GenerateResponse};
use belay_telemetry::Span;
use tokio::time::timeout_at;
use tonic::{Status, Streaming};

use crate::{
    measure::{self, Outcome, Work},
    observe::RetryKind,
    routing::{Affinity, Lease, Route},
    telemetry,
};

use super::{
    Call, Dispatcher, Failure,
    dispatcher::{Trials, attempt},
    outcome, prefix,
};

/// See the module. Nothing runs unless it is polled; dropping it drops the worker call, which cancels it there.
#[derive(Debug)]
pub struct Generation {
    dispatcher: Dispatcher,
    route: Route,
    /// Its `resume_ids` are the tokens produced so far: always ready to be asked of the next worker.
    call: Call,
    attempt: Option<Attempt>,
    /// Revision of the worker that produced the last token.
    revision: Option<String>,
    trials: Trials,
    /// When the client's time for it is over.
    deadline: Option<Instant>,
    prompt_told: bool,
    ended: bool,
    /// Open as long as this lives.
    span: Span,
}

#[derive(Debug)]
struct Attempt {
    lease: Lease,
    pieces: Streaming<GenerateResponse>,
    measured: measure::Attempt,
}

impl Generation {
    /// Starts the life of a request for one answer; its model is known and its seed fixed.
    pub fn new(dispatcher: Dispatcher, route: Route, call: Call, deadline: Option<Instant>) -> Self {
        let affinity = Affinity { prefix: prefix(&call), ..route.affinity };
        let route = Route { work: Work::of(&call), affinity, ..route };
        Self {
            dispatcher,
            route,
            call,
            attempt: None,
            revision: None,
            trials: Trials::default(),
            deadline,
            prompt_told: false,
            ended: false,
            span: telemetry::span(),
        }
    }

    /// Revision of the worker that serves it now.
    pub fn revision(&self) -> Option<&str> {
        self.attempt.as_ref().map(|attempt| attempt.lease.worker().revision.as_str())
    }

    /// The next piece; `None` after the one with the finish reason or after a failure. Every token comes once,
    /// whichever workers it took.
    pub async fn next(&mut self) -> Option<Result<GenerateResponse, Failure>> {
        while !self.ended {
            let step = match self.deadline {
                Some(deadline) => {
                    timeout_at(deadline.into(), self.advance()).await.unwrap_or(Err(Failure::Deadline))
                }
                None => self.advance().await,
            };
            match step {
                Ok(Some(piece)) => return Some(Ok(piece)),
                Ok(None) => {}
                Err(failure) => {
                    self.ended = true;
                    self.attempt = None;
                    return Some(Err(failure));
                }
            }
        }
        None
    }

    /// One step: ask a worker, or read its next piece. `None`: nothing for the client yet.
    async fn advance(&mut self) -> Result<Option<GenerateResponse>, Failure> {
        let Some(attempt) = &mut self.attempt else {
            self.ask().await?;
            return Ok(None);
        };
        match attempt.pieces.message().await {
            Ok(Some(piece)) => {
                attempt.lease.served();
                attempt.lease.produced(piece.ids.len());
                attempt.measured.piece(&piece);
                Ok(self.take(piece))
            }
            Ok(None) => self.lose(&Status::unavailable("the stream ended without a finish reason")),
            Err(status) => self.lose(&status),
        }
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let Self { dispatcher, route, call, trials, revision, deadline, span, .. } = self;
        let mut lease = dispatcher.worker(route, revision.as_deref(), trials).await?;
        let measured = attempt(route, &lease);
        if let Some(deadline) = deadline {
            call.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        match call.ask(lease.channel(), span).await {
            Ok(pieces) => {
                lease.accepted();
                span.event("asked", "worker", lease.worker().name.clone());
                tracing::debug!(request = call.request_id(), worker = lease.worker().name, "asked");
                self.attempt = Some(Attempt { lease, pieces, measured });
                Ok(())
            }
            Err(status) => self.refused(lease, measured, &status),
        }
    }

    /// The worker broke off after it had accepted.
    fn lose(&mut self, status: &Status) -> Result<Option<GenerateResponse>, Failure> {
        if let Some(Attempt { lease, measured, .. }) = self.attempt.take() {
            self.refused(lease, measured, status)?;
        }
        Ok(None)
    }

    fn refused(
        &mut self,
        mut lease: Lease,
        measured: measure::Attempt,
        status: &Status,
    ) -> Result<(), Failure> {
        if let Some(outcome) = outcome(status) {
            measured.end(outcome);
        }
        // what has come already must be read again
        self.route.work = Work::of(&self.call);
        let kind = if self.revision.is_some() { RetryKind::Resume } else { RetryKind::Retry };
        let Self { dispatcher, call, trials, .. } = self;
        dispatcher.attempt_failed(call.model(), call.request_id(), &mut lease, status, trials, kind)
    }

    /// Keeps the ids, and passes on what the client has not been told yet.
    fn take(&mut self, mut piece: GenerateResponse) -> Option<GenerateResponse> {
        let is_last = piece.finish_reason != FinishReason::Unspecified as i32;
        if is_last || !piece.ids.is_empty() {
            self.trials.over();
            if let Some(Attempt { lease, .. }) = &self.attempt
                && self.revision.as_ref() != Some(&lease.worker().revision)
            {
                self.revision = Some(lease.worker().revision.clone());
            }
        }
        self.call.produced().extend_from_slice(&piece.ids);
        if is_last {
            self.ended = true;
            if let Some(Attempt { measured, .. }) = self.attempt.take() {
                measured.end(Outcome::Served);
            }
        } else if self.prompt_told {
            // a worker that resumes counts the prompt again
            piece.usage = None;
        }
        if self.prompt_told {
            piece.prompt_logprobs.clear();
            piece.prompt_text.clear();
        }
        self.prompt_told |= piece.usage.is_some();
        let is_empty = piece.ids.is_empty()
            && piece.text.is_empty()
            && piece.reasoning.is_empty()
            && piece.tool_calls.is_empty()
            && piece.usage.is_none();
        (is_last || !is_empty).then_some(piece)
    }
}
