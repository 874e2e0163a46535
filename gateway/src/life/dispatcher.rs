//! Finds a worker for a request, holding the request while there is none.
use std::{
    future::Future,
    sync::Arc,
    time::{Duration, Instant},
};

use tonic::{Status, transport::Channel};

use crate::{
    observe::{Metrics, RetryKind},
    routing::{Fleet, Lease, Pick},
};

use super::{Failure, Patience, Verdict, WaitingRoom, verdict};

/// Workers that one request may lose in a row, without any progress, before it is suspected to be the cause.
pub(super) const MOST_LOST: u32 = 4;

const REST_WHEN_FULL: Duration = Duration::from_millis(200);

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that may wait at one time.
    pub hold_requests: usize,
    /// Longest time without progress.
    pub hold: Duration,
    /// Largest message to and from workers, bytes.
    pub message_bytes: usize,
}

/// What every request shares.
#[derive(Clone, Debug)]
pub struct Dispatcher {
    /// The live workers.
    pub fleet: Arc<Fleet>,
    /// Where outcomes are counted.
    pub metrics: Arc<Metrics>,
    /// Bounds.
    pub limits: Limits,
    room: WaitingRoom,
}

/// Workers that a request will not ask again, and why.
#[derive(Debug, Default)]
pub(super) struct Avoided {
    ids: Vec<String>,
    last: Option<Failure>,
}

impl Avoided {
    pub(super) fn add(&mut self, lease: &Lease, failure: Failure) {
        self.ids.push(lease.worker().id.clone());
        self.last = Some(failure);
    }
}

impl Dispatcher {
    /// Ties the parts together.
    pub fn new(fleet: Arc<Fleet>, metrics: Arc<Metrics>, limits: Limits) -> Self {
        let room = WaitingRoom::new(limits.hold_requests, metrics.held.clone());
        Self { fleet, metrics, limits, room }
    }

    /// The name of the model asked for: the only one there is when `name` is empty.
    pub fn model(&self, name: &str) -> Result<String, Failure> {
        if !name.is_empty() {
            return Ok(name.to_owned());
        }
        let view = self.fleet.view();
        match view.models.keys().collect::<Vec<_>>().as_slice() {
            [only] => Ok((*only).clone()),
            _ => {
                Err(Failure::Invalid("model: must be named, this gateway does not serve exactly one".into()))
            }
        }
    }

    /// Whether anybody serves this model, ready or not. Until discovery has looked, it may be.
    pub fn knows(&self, model: &str) -> bool {
        let view = self.fleet.view();
        !view.synced || view.models.contains_key(model)
    }

    /// A worker for the request; waits for one within bounds. `revision` is that of the tokens streamed so far:
    /// set, the request has started, and gives up only when its patience ends.
    pub(super) async fn worker(
        &self,
        model: &str,
        revision: Option<&str>,
        avoided: &mut Avoided,
        patience: &mut Patience,
    ) -> Result<Lease, Failure> {
        let started = revision.is_some();
        let mut changes = self.fleet.subscribe();
        loop {
            changes.borrow_and_update();
            let again = match self.fleet.pick(model, &avoided.ids, revision) {
                Pick::Worker(lease) => {
                    patience.found();
                    return Ok(lease);
                }
                Pick::Wait(again) => again,
                Pick::UnknownModel if started => None,
                Pick::UnknownModel => return Err(Failure::UnknownModel(model.to_owned())),
                Pick::Exhausted => {
                    let failure = std::mem::take(avoided).last;
                    match failure {
                        Some(failure) if !started => return Err(failure),
                        _ => Some(Instant::now() + REST_WHEN_FULL),
                    }
                }
            };
            let end = patience
                .wait(&self.room, self.limits.hold, started)
                .map_err(|held| Failure::HoldFull { model: model.to_owned(), held })?;
            if Instant::now() >= end {
                return Err(Failure::HoldTimeout { model: model.to_owned(), waited: patience.waited() });
            }
            let next_look = again.map_or(end, |again| again.min(end));
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(next_look.into()) => {}
            }
        }
    }

    /// Decides what an unsuccessful attempt means. `Ok`: try again. `Err`: the request fails.
    pub(super) fn attempt_failed(
        &self,
        model: &str,
        lease: &mut Lease,
        status: &Status,
        avoided: &mut Avoided,
        kind: RetryKind,
    ) -> Result<(), Failure> {
        let verdict = verdict(status);
        let worker = &lease.worker().name;
        let (code, message) = (status.code(), status.message());
        tracing::info!(worker, ?code, message, ?verdict, "attempt failed");
        match verdict {
            Verdict::Elsewhere => lease.failed(),
            Verdict::Full => {
                let failure = Failure::Overloaded { model: model.to_owned(), reason: message.to_owned() };
                avoided.add(lease, failure);
            }
            Verdict::Stranger => avoided.add(lease, Failure::Worker(message.to_owned())),
            Verdict::Unsound => return Err(Failure::Invalid(message.to_owned())),
            Verdict::Broken => return Err(Failure::Worker(format!("{code:?}: {message}"))),
        }
        self.metrics.retry(model, kind);
        Ok(())
    }

    /// A call with one answer: asked of one worker after the other until one answers.
    pub async fn unary<T, F>(&self, model: &str, ask: impl Fn(Channel) -> F) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut avoided = Avoided::default();
        let mut patience = Patience::default();
        let mut lost = 0;
        loop {
            let mut lease = self.worker(model, None, &mut avoided, &mut patience).await?;
            match ask(lease.channel()).await {
                Ok(answer) => {
                    lease.served();
                    return Ok(answer);
                }
                Err(status) => {
                    self.attempt_failed(model, &mut lease, &status, &mut avoided, RetryKind::Retry)?;
                    // a worker that could not be reached was not lost by this request
                    if std::error::Error::source(&status).is_some()
                        && status.code() != tonic::Code::Unavailable
                    {
                        lost += 1;
                    }
                    if lost >= MOST_LOST {
                        return Err(Failure::Lost(lost));
                    }
                }
            }
        }
    }
}
