//! The analysis of a canary or preview: what it is like, beside the revision before.
//!
//! What gateways count is compared over the same time for both: from when the step's share was given, or from when this process
//! first looked, whichever is later. So another leader looks anew, and a step then takes longer; it never decides on less.
mod judge;
mod parity;
mod queries;
mod statistics;

use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use belay_crds::{AnalysisPolicy, AnalysisSpec, CheckStatus, ParitySpec, Reason};
use belay_proto::gateway::Revision;
use k8s_openapi::jiff::Timestamp;
use tracing::warn;

pub use self::judge::{Check, Verdict};
use self::queries::Words;
use crate::{
    gateways::{Measure, Totals},
    group::Group,
    reconcile::{plan::Prospect, validate::Validated},
    rollout::{Evidence, Gate, Strategy},
};

/// How often a new revision may fail to answer a prompt before that counts as its answer.
const PARITY_TRIES: u32 = 3;

/// After how long a deployment that nobody asks about is forgotten.
const FORGET: Duration = Duration::from_secs(600);

/// Everything that is being looked at.
#[derive(Debug, Default)]
pub struct Analyses {
    known: Mutex<BTreeMap<(String, String), Memory>>,
}

/// What is remembered of one rollout.
#[derive(Debug)]
struct Memory {
    /// Number of the revision, step, and whether it has its share.
    place: (i64, u32, bool),
    looked: Instant,
    /// What had been counted when the step got its share.
    baseline: Option<Totals>,
    restarts: BTreeMap<String, u32>,
    judged: Option<Instant>,
    checks: Vec<Check>,
    /// The checks are of all that the step had to wait for, not of what there was some time before.
    is_final: bool,
    parity: Shared,
    queries: Shared,
}

/// Results of questions that take a while: filled in by a task of its own.
type Shared = Arc<Mutex<Asked>>;

#[derive(Debug, Default)]
struct Asked {
    is_under_way: bool,
    tries: u32,
    checks: Vec<Check>,
}

impl Analyses {
    /// What is known about the new revision now. Starts what takes a while, and never waits for it.
    pub fn look(
        &self,
        wanted: &Validated,
        prospect: &Prospect,
        groups: &[Group],
        gateways: Option<Option<Measure>>,
        now: Timestamp,
    ) -> Evidence {
        let key = (wanted.namespace.clone(), wanted.name.clone());
        let state = &prospect.state;
        let is_over = state.promoted.is_some() || state.rejected.is_some();
        let (Some(spec), Some(stable), false) = (&wanted.analysis, &prospect.before, is_over) else {
            lock(&self.known).remove(&key);
            return Evidence::default();
        };
        let mut known = lock(&self.known);
        known.retain(|_, memory| memory.looked.elapsed() < FORGET);
        let place = (state.number, state.step, state.since.is_some());
        let memory = known.entry(key).or_insert_with(|| Memory::new(place));
        if memory.place != place {
            memory.moves_to(place);
        }
        memory.looked = Instant::now();
        let subject = Subject { wanted, spec, prospect, stable: &stable.revision, groups, now };
        let mut evidence = Evidence { before_share: subject.parity(memory), ..Evidence::default() };
        let measure = gateways.as_ref().map(Option::as_ref);
        if state.since.is_some() {
            evidence.in_step = subject.step(memory, measure);
        } else {
            memory.restarts = subject.restarts();
        }
        evidence.checks = subject.all(memory).iter().map(CheckStatus::from).collect();
        if spec.policy == AnalysisPolicy::Report {
            // it is told; nobody is held up by it
            evidence.before_share = Gate::Open;
            evidence.in_step = Gate::Open;
        }
        evidence
    }
}

impl Memory {
    fn new(place: (i64, u32, bool)) -> Self {
        Self {
            place,
            looked: Instant::now(),
            baseline: None,
            restarts: BTreeMap::new(),
            judged: None,
            checks: vec![],
            is_final: false,
            parity: Shared::default(),
            queries: Shared::default(),
        }
    }

    /// Another step: what was counted before does not count. Another revision: nothing does.
    fn moves_to(&mut self, place: (i64, u32, bool)) {
        let fresh = Self::new(place);
        if self.place.0 == place.0 {
            let (parity, restarts) = (self.parity.clone(), std::mem::take(&mut self.restarts));
            *self = Self { parity, restarts, ..fresh };
        } else {
            *self = fresh;
        }
    }
}

struct Subject<'a> {
    wanted: &'a Validated,
    spec: &'a AnalysisSpec,
    prospect: &'a Prospect,
    stable: &'a str,
    groups: &'a [Group],
    now: Timestamp,
}

impl Subject<'_> {
    fn new_revision(&self) -> &str {
        &self.prospect.target.revision
    }

    /// A worker of a revision that takes requests.
    fn worker(&self, revision: &str) -> Option<String> {
        let groups = self.groups.iter().filter(|group| group.revision == revision && !group.draining());
        let mut pods = groups.flat_map(Group::pods).filter(|(_, pod)| pod.serves());
        pods.find_map(|(_, pod)| pod.ip.clone())
    }

    /// Whether the prompts are answered alike. Asked once, before the new revision gets any share.
    fn parity(&self, memory: &mut Memory) -> Gate {
        let state = &self.prospect.state;
        let Some(spec) = self.spec.parity.as_ref().filter(|_| state.step == 0 && state.since.is_none())
        else {
            return Gate::Open;
        };
        let mut asked = lock(&memory.parity);
        if let Some(check) = asked.checks.first().filter(|check| check.verdict != Verdict::Pending) {
            return match check.verdict {
                Verdict::Bad(reason) => Gate::Bad(reason, check.message.clone()),
                _ => Gate::Open,
            };
        }
        let workers = self.worker(self.new_revision()).zip(self.worker(self.stable));
        match workers {
            Some((new, stable)) if !asked.is_under_way => {
                asked.is_under_way = true;
                tokio::spawn(ask_both(new, stable, spec.clone(), memory.parity.clone()));
            }
            _ => {}
        }
        Gate::Wait("both revisions are asked the prompts of spec.rollout.analysis.parity".to_owned())
    }

    /// Whether the step may go on, by what was seen since it got its share.
    fn step(&self, memory: &mut Memory, gateways: Option<Option<&Measure>>) -> Gate {
        let interval = Duration::from_secs(u64::try_from(self.spec.interval_seconds).unwrap_or(1));
        let measure = gateways.flatten();
        if memory.baseline.is_none() {
            memory.baseline = measure.map(|measure| measure.totals.clone());
            if memory.restarts.is_empty() {
                memory.restarts = self.restarts();
            }
            memory.judged.get_or_insert_with(Instant::now);
            self.ask_queries(memory);
        }
        let enough = self.enough(memory, gateways);
        let is_complete = self.is_past(0) && enough == Gate::Open;
        let is_due = memory.judged.is_none_or(|judged| judged.elapsed() >= interval);
        if is_due || (is_complete && !memory.is_final && !memory.checks.is_empty()) {
            memory.judged = Some(Instant::now());
            memory.is_final = is_complete;
            let none = Revision::default();
            let counted = measure.zip(memory.baseline.as_ref()).map(|(now, then)| now.totals.since(then));
            memory.checks = match &counted {
                Some(counted) => {
                    let of = |revision: &str| counted.revisions.get(revision).unwrap_or(&none);
                    judge::compare(self.spec, of(self.new_revision()), of(self.stable))
                }
                None => vec![],
            };
            memory.checks.push(self.restarted(memory));
            self.ask_queries(memory);
        }
        let checks = [memory.checks.clone(), lock(&memory.queries).checks.clone()].concat();
        let enough = match memory.checks.is_empty() {
            true => Gate::Wait("the first look is yet to come".to_owned()),
            false => enough,
        };
        judge::gate(&checks, enough, !self.is_out_of_patience())
    }

    /// Whether the step's hold and some seconds are over.
    fn is_past(&self, seconds: i64) -> bool {
        let state = &self.prospect.state;
        let hold = match &self.wanted.rules.strategy {
            Strategy::Canary { steps } => {
                usize::try_from(state.step).ok().and_then(|step| steps.get(step)).map_or(0, |step| step.1)
            }
            Strategy::RollingUpdate { .. } | Strategy::BlueGreen { .. } => 0,
        };
        let since = state.since.unwrap_or(self.now);
        self.now.as_second() - since.as_second() >= hold + seconds
    }

    /// Whether answers were waited for as long as they may be.
    fn is_out_of_patience(&self) -> bool {
        let patience = i64::from(self.spec.wait_for_requests_seconds);
        patience > 0 && self.is_past(patience)
    }

    /// Whether enough requests were answered; not asked for any more after a while.
    fn enough(&self, memory: &Memory, gateways: Option<Option<&Measure>>) -> Gate {
        let preview =
            matches!(self.wanted.rules.strategy, Strategy::BlueGreen { .. }) && self.prospect.state.step == 0;
        // without gateways there is nothing to wait for; a preview gets no requests but by name
        let Some(measure) = gateways.filter(|_| !preview) else { return Gate::Open };
        if self.is_out_of_patience() {
            return Gate::Open;
        }
        let counted = measure.zip(memory.baseline.as_ref()).map(|(now, then)| now.totals.since(then));
        let new = counted.and_then(|mut counted| counted.revisions.remove(self.new_revision()));
        match judge::enough(self.spec, &new.unwrap_or_default()) {
            Ok(()) => Gate::Open,
            // not the number: a status that changes with each request would be written with each
            Err(_) => Gate::Wait(format!("fewer than {} requests are answered", self.spec.min_requests)),
        }
    }

    /// Restarts so far, by pod.
    fn restarts(&self) -> BTreeMap<String, u32> {
        let groups = self.groups.iter().filter(|group| group.revision == self.new_revision());
        groups.flat_map(Group::pods).map(|(_, pod)| (pod.uid.clone(), pod.restarts)).collect()
    }

    fn restarted(&self, memory: &Memory) -> Check {
        let before = |uid: &String| memory.restarts.get(uid).copied().unwrap_or(0);
        let restarts: u32 =
            self.restarts().iter().map(|(uid, restarts)| restarts.saturating_sub(before(uid))).sum();
        let limit = u32::try_from(self.spec.max_restarts).unwrap_or(0);
        let verdict = if restarts > limit { Verdict::Bad(Reason::WorkersRestarted) } else { Verdict::Good };
        Check::new("Restarts", verdict, format!("{restarts} (at most {limit})"))
    }

    fn ask_queries(&self, memory: &Memory) {
        let mut asked = lock(&memory.queries);
        if self.spec.queries.is_empty() || asked.is_under_way {
            return;
        }
        asked.is_under_way = true;
        let words = Words {
            revision: self.new_revision().to_owned(),
            stable: self.stable.to_owned(),
            namespace: self.wanted.namespace.clone(),
            name: self.wanted.name.clone(),
        };
        let (queries, shared) = (self.spec.queries.clone(), memory.queries.clone());
        tokio::spawn(async move {
            let mut checks = Vec::with_capacity(queries.len());
            for query in &queries {
                checks.push(queries::check(query, &words).await);
            }
            let mut asked = lock(&shared);
            (asked.checks, asked.is_under_way) = (checks, false);
        });
    }

    fn all(&self, memory: &Memory) -> Vec<Check> {
        let mut checks = lock(&memory.parity).checks.clone();
        checks.extend(memory.checks.iter().cloned());
        checks.extend(lock(&memory.queries).checks.iter().cloned());
        checks
    }
}

/// Asks a worker of each revision, and leaves what came of it.
async fn ask_both(new: String, stable: String, spec: ParitySpec, shared: Shared) {
    let (of_new, of_stable) = tokio::join!(parity::ask(&new, &spec), parity::ask(&stable, &spec));
    let mut asked = lock(&shared);
    asked.is_under_way = false;
    let check = match (of_new, of_stable) {
        (Ok(new), Ok(stable)) => parity::compare(&spec, &new, &stable),
        (_, Err(error)) => {
            warn!(%error, "the stable revision does not answer; it is asked again");
            Check::new(parity::NAME, Verdict::Pending, format!("the stable revision: {error}"))
        }
        (Err(error), Ok(_)) => {
            asked.tries += 1;
            let verdict = if asked.tries >= PARITY_TRIES {
                Verdict::Bad(Reason::AnswersDiffer)
            } else {
                Verdict::Pending
            };
            Check::new(parity::NAME, verdict, format!("the new revision: {error}"))
        }
    };
    asked.checks = vec![check];
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
