//! One answer, piece by piece, from as many workers as it takes.
use std::{
    collections::VecDeque,
    time::{Duration, Instant},
};

use belay_proto::inference::{FinishReason, GenerateResponse};
use belay_telemetry::Span;
use tokio::time::timeout_at;
use tonic::Status;

use crate::{
    measure::Work,
    observe::RetryKind,
    routing::{Affinity, Route},
    telemetry,
};

use super::{
    Call, Dispatcher, Failure,
    attempt::Attempt,
    dispatcher::Trials,
    hedge::{Ahead, Hedge},
    prefix,
};

/// See the module. Nothing runs unless it is polled; dropping it drops the worker call, which cancels it there.
#[derive(Debug)]
pub struct Generation {
    dispatcher: Dispatcher,
    route: Route,
    /// Its `resume_ids` are the tokens produced so far: always ready to be asked of the next worker.
    call: Call,
    attempt: Option<Attempt>,
    /// When a second attempt is made, if there is no token before.
    hedge_at: Option<Instant>,
    hedge: Option<Hedge>,
    /// Pieces that came, and were not looked at yet.
    ready: VecDeque<GenerateResponse>,
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
            hedge_at: None,
            hedge: None,
            ready: VecDeque::new(),
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
        self.attempt.as_ref().map(|attempt| attempt.worker().revision.as_str())
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
                    self.hedge = None;
                    return Some(Err(failure));
                }
            }
        }
        None
    }

    /// One step: ask a worker, or read its next piece. `None`: nothing for the client yet.
    async fn advance(&mut self) -> Result<Option<GenerateResponse>, Failure> {
        if let Some(piece) = self.ready.pop_front() {
            return Ok(self.take(piece));
        }
        let Some(attempt) = &mut self.attempt else {
            self.ask().await?;
            return Ok(None);
        };
        let event = match (&mut self.hedge, self.hedge_at) {
            (None, None) => Event::Piece(attempt.piece().await),
            (Some(hedge), _) => tokio::select! {
                biased;
                piece = attempt.piece() => Event::Piece(piece),
                ahead = hedge.ahead() => Event::Hedge(ahead),
            },
            (None, Some(at)) => tokio::select! {
                biased;
                piece = attempt.piece() => Event::Piece(piece),
                () = tokio::time::sleep_until(at.into()) => Event::Late,
            },
        };
        match event {
            Event::Piece(Ok(piece)) => Ok(self.take(piece)),
            Event::Piece(Err(status)) => self.lose(&status).await,
            Event::Hedge(ahead) => {
                self.hedge = None;
                if let Some(ahead) = ahead {
                    self.overtake(ahead);
                }
                Ok(None)
            }
            Event::Late => {
                self.hedge_at = None;
                self.hedge =
                    Hedge::start(&self.dispatcher, &self.route, &self.call, attempt.worker(), &self.span);
                Ok(None)
            }
        }
    }

    async fn ask(&mut self) -> Result<(), Failure> {
        let Self { dispatcher, route, call, trials, revision, deadline, span, .. } = self;
        let lease = dispatcher.worker(route, revision.as_deref(), trials).await?;
        if let Some(deadline) = deadline {
            call.set_timeout(deadline.saturating_duration_since(Instant::now()));
        }
        let mut attempt = Attempt::new(route, lease);
        match attempt.ask(call, span).await {
            Ok(()) => {
                let late = dispatcher.limits.hedge_after.filter(|_| revision.is_none());
                self.hedge_at = late.map(|after: Duration| Instant::now() + after);
                self.attempt = Some(attempt);
                Ok(())
            }
            Err(status) => self.refused(attempt, &status),
        }
    }

    /// The worker broke off after it had accepted. A second attempt that is under way takes its place.
    async fn lose(&mut self, status: &Status) -> Result<Option<GenerateResponse>, Failure> {
        self.hedge_at = None;
        if let Some(attempt) = self.attempt.take() {
            match self.hedge.take() {
                Some(mut hedge) => {
                    attempt.give_up(status);
                    match hedge.ahead().await {
                        Some(ahead) => self.overtake(ahead),
                        None => self.trials.note_loss(status)?,
                    }
                }
                None => self.refused(attempt, status)?,
            }
        }
        Ok(None)
    }

    fn overtake(&mut self, (attempt, pieces): Ahead) {
        self.attempt = Some(attempt);
        self.hedge_at = None;
        self.ready = pieces;
    }

    fn refused(&mut self, attempt: Attempt, status: &Status) -> Result<(), Failure> {
        // what has come already must be read again
        self.route.work = Work::of(&self.call);
        let kind = if self.revision.is_some() { RetryKind::Resume } else { RetryKind::Retry };
        let Self { dispatcher, route, call, trials, .. } = self;
        let mut lease = attempt.fail(status);
        dispatcher.attempt_failed(route, call.request_id(), &mut lease, status, trials, kind)
    }

    /// Keeps the ids, and passes on what the client has not been told yet.
    fn take(&mut self, mut piece: GenerateResponse) -> Option<GenerateResponse> {
        let is_last = piece.finish_reason != FinishReason::Unspecified as i32;
        if is_last || !piece.ids.is_empty() {
            self.trials.over();
            self.hedge_at = None;
            self.hedge = None;
            if let Some(attempt) = &self.attempt
                && self.revision.as_ref() != Some(&attempt.worker().revision)
            {
                self.revision = Some(attempt.worker().revision.clone());
            }
        }
        self.call.produced().extend_from_slice(&piece.ids);
        if is_last {
            self.ended = true;
            if let Some(attempt) = self.attempt.take() {
                attempt.finish();
            }
            self.route.meter.pace.tick(Instant::now());
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

enum Event {
    Piece(Result<GenerateResponse, Status>),
    Hedge(Option<Ahead>),
    /// The first token has not come in time.
    Late,
}
