//! Finds a worker for a request, holding the request while there is none.
use std::{
    future::Future,
    sync::{Arc, atomic::Ordering},
    time::{Duration, Instant},
};

use tonic::{Status, transport::Channel};

use crate::{
    keys::{Key, Ticket},
    measure::{Attempt, Outcome, Work},
    observe::{Metrics, RetryKind},
    routing::{Affinity, Fleet, Lease, Pick, Route, Target, Unknown, View},
};

use super::{
    Caller, Failure, Patience, REVISION, Verdict,
    eta::{Known, eta},
    lost_with_request, outcome,
    room::{Place, WaitingRoom},
    room_after, verdict,
};

/// Workers that one request may lose in a row, without any progress, before it is suspected to be the cause: a
/// request that kills what serves it must not go through the whole fleet.
const MOST_LOST: u32 = 4;

const REST_WHEN_FULL: Duration = Duration::from_millis(200);

/// Bounds on requests.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Requests that may wait at one time.
    pub hold_requests: usize,
    /// Longest time without progress.
    pub hold: Duration,
    /// After how long without a token a second worker is asked.
    pub hedge_after: Option<Duration>,
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

/// What a request has been through since its last progress.
#[derive(Debug, Default)]
pub(super) struct Trials {
    /// How long it may still wait.
    patience: Patience,
    /// Workers that it will not ask again, and why.
    avoided: Vec<String>,
    refusal: Option<Failure>,
    lost: u32,
    /// The next attempt counts towards the retries of the model.
    owes_retry: bool,
}

/// What came of looking for a worker.
enum Look {
    Found(Lease),
    /// Look again at this time, or when something changes.
    Later(Option<Instant>),
}

impl Trials {
    /// The request got on: all is forgotten.
    pub(super) fn over(&mut self) {
        self.patience.progressed();
        self.avoided.clear();
        self.refusal = None;
        self.lost = 0;
        self.owes_retry = false;
    }

    /// A worker may have been lost because of the request: it must not go through the whole fleet.
    pub(super) fn note_loss(&mut self, status: &Status) -> Result<(), Failure> {
        self.lost += u32::from(lost_with_request(status));
        if self.lost >= MOST_LOST { Err(Failure::Lost(self.lost)) } else { Ok(()) }
    }

    /// When there may be budget for the retry that is due; `None`: now, or no retry is due.
    fn retry_at(&mut self, route: &Route, started: bool) -> Option<Instant> {
        if started || !self.owes_retry {
            return None;
        }
        match route.meter.retry() {
            Ok(()) => {
                self.owes_retry = false;
                None
            }
            Err(after) => Some(Instant::now() + after),
        }
    }

    fn place(&self, started: bool) -> Place {
        if started {
            Place::Started
        } else if self.owes_retry || !self.avoided.is_empty() {
            Place::Apart
        } else {
            Place::InLine
        }
    }

    fn avoid(&mut self, lease: &Lease, mut refusal: Failure) {
        self.avoided.push(lease.worker().id.clone());
        // of several full workers, the first to have room counts
        if let (Failure::Overloaded { after, .. }, Some(Failure::Overloaded { after: earlier, .. })) =
            (&mut refusal, &self.refusal)
        {
            *after = after.iter().chain(earlier).min().copied();
        }
        self.refusal = Some(refusal);
    }
}

impl Dispatcher {
    /// Ties the parts together.
    pub fn new(fleet: Arc<Fleet>, metrics: Arc<Metrics>, limits: Limits) -> Self {
        let room = WaitingRoom::new(limits.hold_requests, metrics.held.clone());
        Self { fleet, metrics, limits, room }
    }

    /// Lets a request in: finds what it asks for by `name`, which may be left empty where there is only one model. Until
    /// discovery has looked, any name may be one.
    pub fn admit(&self, caller: &Caller, name: &str, work: Work) -> Result<Route, Failure> {
        let view = self.fleet.view();
        let name = if name.is_empty() { only_model(&view)? } else { name };
        let target = Target::read(name, caller.revision.as_deref(), &view);
        let target = target.map_err(|unknown| failure(unknown, name))?;
        let ticket = caller.key.as_ref().map(|key| self.ticket(key, &target.model, work)).transpose()?;
        let meter = self.fleet.meters().model(&target.model);
        meter.request();
        Ok(Route {
            meter,
            target,
            work,
            affinity: Affinity { session: caller.session, prefix: None },
            ticket,
        })
    }

    fn ticket(&self, key: &Arc<Key>, model: &str, work: Work) -> Result<Arc<Ticket>, Failure> {
        if !key.allows(model) {
            return Err(Failure::Forbidden(model.to_owned()));
        }
        let ticket = key.admit(work.total()).map_err(|refusal| {
            self.metrics.limited(&key.name, refusal.reason);
            Failure::Limited(refusal)
        })?;
        Ok(Arc::new(ticket))
    }

    /// A worker for the request; waits for one within bounds. `begun` is the revision of the tokens streamed so far:
    /// set, the request has started, and gives up only when its patience ends.
    pub(super) async fn worker(
        &self,
        route: &Route,
        begun: Option<&str>,
        trials: &mut Trials,
    ) -> Result<Lease, Failure> {
        let found = self.find(route, begun, trials).await;
        if let Err(Failure::HoldFull { .. } | Failure::HoldTimeout { .. } | Failure::Overloaded { .. }) =
            &found
        {
            route.meter.refused.fetch_add(1, Ordering::Relaxed);
        }
        found
    }

    async fn find(&self, route: &Route, begun: Option<&str>, trials: &mut Trials) -> Result<Lease, Failure> {
        let mut changes = self.fleet.subscribe();
        loop {
            changes.borrow_and_update();
            let retry_at = trials.retry_at(route, begun.is_some());
            let place = trials.place(begun.is_some());
            let others_first = match trials.patience.seat() {
                Some(seat) => !seat.is_next(),
                None => place == Place::InLine && self.room.has_line(route),
            };
            let again = if retry_at.is_some() {
                retry_at
            } else if others_first {
                None
            } else {
                match self.look(route, begun, trials)? {
                    Look::Found(lease) => {
                        trials.patience.found();
                        return Ok(lease);
                    }
                    Look::Later(again) => again,
                }
            };
            let end = trials.patience.wait(&self.room, route, self.limits.hold, place).map_err(|held| {
                Failure::HoldFull { model: route.target.model.clone(), held, after: self.eta(route) }
            })?;
            if Instant::now() >= end {
                return Err(Failure::HoldTimeout {
                    model: route.target.model.clone(),
                    waited: trials.patience.waited(),
                    after: self.eta(route),
                });
            }
            let next_look = again.map_or(end, |again| again.min(end));
            let Some(seat) = trials.patience.seat() else { continue };
            if others_first {
                if !seat.is_next() {
                    let _ = tokio::time::timeout_at(end.into(), seat.called()).await;
                }
                continue;
            }
            tokio::select! {
                _ = changes.changed() => {}
                () = tokio::time::sleep_until(next_look.into()) => {}
            }
        }
    }

    /// Looks for a worker once.
    fn look(&self, route: &Route, begun: Option<&str>, trials: &mut Trials) -> Result<Look, Failure> {
        let started = begun.is_some();
        Ok(match self.fleet.pick(route, &trials.avoided, begun) {
            Pick::Worker(lease) => Look::Found(lease),
            Pick::Wait(again) => match &trials.refusal {
                // the rest of the fleet is full, and those that are down would not have helped: say so at once
                Some(full @ Failure::Overloaded { .. }) if !started => return Err(full.clone()),
                _ => Look::Later(again),
            },
            Pick::Unknown(Unknown::Model) if started => Look::Later(None),
            Pick::Unknown(unknown) => return Err(failure(unknown, &route.target.model)),
            Pick::Exhausted => {
                trials.avoided.clear();
                match trials.refusal.take() {
                    Some(refusal) if !started => return Err(refusal),
                    _ => Look::Later(Some(Instant::now() + REST_WHEN_FULL)),
                }
            }
        })
    }

    /// A second worker beside the one with this id, if there is one now and the retries of the model allow it.
    pub(super) fn another(&self, route: &Route, id: &str) -> Option<Lease> {
        let Pick::Worker(lease) = self.fleet.pick(route, &[id.to_owned()], None) else { return None };
        route.meter.retry().ok()?;
        self.metrics.retry(&route.target.model, RetryKind::Hedge);
        Some(lease)
    }

    /// When it is worth asking again.
    fn eta(&self, route: &Route) -> Duration {
        let now = Instant::now();
        let view = self.fleet.view();
        let state = view.models.get(&route.target.model);
        let loading = state.filter(|state| state.ready() == 0).and_then(|state| state.loaded_at);
        eta(Known {
            ahead: usize::try_from(route.meter.held.requests()).unwrap_or(usize::MAX),
            per_second: route.meter.pace.per_second(now),
            loading: loading.map(|at| at.saturating_duration_since(now)),
        })
    }

    /// Decides what an unsuccessful attempt means. `Ok`: try again. `Err`: the request fails.
    pub(super) fn attempt_failed(
        &self,
        route: &Route,
        request: &str,
        lease: &mut Lease,
        status: &Status,
        trials: &mut Trials,
        kind: RetryKind,
    ) -> Result<(), Failure> {
        let verdict = verdict(status);
        let worker = &lease.worker().name;
        let (code, reason) = (status.code(), status.message());
        tracing::info!(request, worker, ?code, reason, ?verdict, "attempt failed");
        match verdict {
            Verdict::Elsewhere => lease.failed(),
            Verdict::Full => {
                let (model, reason) = (route.target.model.clone(), reason.to_owned());
                trials.avoid(lease, Failure::Overloaded { model, reason, after: room_after(status) });
            }
            Verdict::Stranger => trials.avoid(lease, Failure::Worker(reason.to_owned())),
            Verdict::Unsound => return Err(Failure::Invalid(reason.to_owned())),
            Verdict::Late => return Err(Failure::Deadline),
            Verdict::Broken => return Err(Failure::Worker(format!("{code:?}: {reason}"))),
        }
        trials.note_loss(status)?;
        // what was streamed must go on, and a worker that passes a request on has not failed at it
        trials.owes_retry = kind == RetryKind::Retry && outcome(status) == Some(Outcome::Failed);
        self.metrics.retry(&route.target.model, kind);
        Ok(())
    }

    /// A call with one answer: asked of one worker after the other until one answers. `request` is its id for logs. Its
    /// attempts are measured if they are for an answer of the model, which is what it is judged by.
    pub async fn unary<T, F>(
        &self,
        route: &Route,
        request: &str,
        purpose: Purpose,
        ask: impl Fn(Channel) -> F,
    ) -> Result<T, Failure>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut trials = Trials::default();
        loop {
            let mut lease = self.worker(route, None, &mut trials).await?;
            let measured = (purpose == Purpose::Answer)
                .then(|| Attempt::new(route.meter.revision(&lease.worker().revision)));
            match ask(lease.channel()).await {
                Ok(answer) => {
                    lease.served();
                    route.meter.pace.tick(Instant::now());
                    if let Some(measured) = measured {
                        measured.end(Outcome::Served);
                    }
                    return Ok(answer);
                }
                Err(status) => {
                    if let (Some(measured), Some(outcome)) = (measured, outcome(&status)) {
                        measured.end(outcome);
                    }
                    self.attempt_failed(route, request, &mut lease, &status, &mut trials, RetryKind::Retry)?;
                }
            }
        }
    }
}

/// What a call with one answer is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The model's answer.
    Answer,
    /// Something about the model, or about texts.
    Aside,
}

fn only_model(view: &View) -> Result<&str, Failure> {
    let mut names = view.models.keys();
    match (names.next(), names.next()) {
        (Some(only), None) => Ok(only),
        _ => Err(Failure::Invalid("model: must be named, this gateway does not serve exactly one".into())),
    }
}

fn failure(unknown: Unknown, name: &str) -> Failure {
    match unknown {
        Unknown::Model => Failure::UnknownModel(name.to_owned()),
        Unknown::Revision { model, revision } => Failure::UnknownRevision { model, revision },
        Unknown::Twice => {
            Failure::Invalid(format!("model: '{name}' names a revision, and so does the header {REVISION}"))
        }
    }
}
