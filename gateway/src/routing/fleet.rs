//! The live workers of every model.
use std::{
    collections::BTreeMap,
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use tokio::sync::{Notify, watch};

use crate::{
    discovery::{Role, Share, Table, Worker},
    measure::{Meters, Work},
};

use super::{
    Affinity, Candidate, ConnectOptions, Due, Gate, Lease, Policy, Route, Target, Turns, Unknown, Wanted,
    live::Live, progress::Progress, shares,
};

/// Every live worker by model. Replaced as a whole when discovery has news.
#[derive(Debug, Default)]
pub struct View {
    /// Whether discovery has finished its first look; before that nothing is unknown.
    pub synced: bool,
    /// By served model name.
    pub models: BTreeMap<String, ModelState>,
}

/// A model and its live workers.
#[derive(Debug, Default)]
pub struct ModelState {
    /// As in [`crate::discovery::Model`].
    pub created: i64,
    /// As in [`crate::discovery::Model`].
    pub known: usize,
    /// As in [`crate::discovery::Model`].
    pub namespace: String,
    /// As in [`crate::discovery::Model`].
    pub deployment: String,
    workers: Vec<Arc<Live>>,
    shares: Vec<Share>,
    /// When the next group will have read its checkpoint, if that is known.
    pub loaded_at: Option<Instant>,
    /// Stays when the rest is replaced.
    turns: Arc<Mutex<Turns>>,
    /// Stays when the rest is replaced.
    progress: Arc<Mutex<Progress>>,
}

impl ModelState {
    /// Workers that take requests, as discovery sees it.
    pub fn ready(&self) -> usize {
        self.workers.len()
    }

    /// Whether there is such a revision: one that the rollout names, or that a ready worker has.
    pub fn has_revision(&self, revision: &str) -> bool {
        self.shares.iter().any(|share| share.revision == revision)
            || self.workers.iter().any(|live| live.info.revision == revision)
    }

    /// Whether there is something of what is wanted, ready or not.
    pub fn has(&self, wanted: &Wanted) -> bool {
        match wanted {
            Wanted::Any => true,
            // without a rollout there is nothing new
            Wanted::Role(Role::Stable) if self.shares.is_empty() => true,
            Wanted::Role(role) => self.shares.iter().any(|share| share.role == *role),
            Wanted::Revision(revision) => self.has_revision(revision),
        }
    }

    fn allows(&self, wanted: &Wanted, revision: &str) -> bool {
        match wanted {
            Wanted::Any => true,
            Wanted::Role(Role::Stable) if self.shares.is_empty() => true,
            Wanted::Role(role) => {
                self.shares.iter().any(|share| share.role == *role && share.revision == revision)
            }
            Wanted::Revision(wanted) => wanted == revision,
        }
    }

    /// The revision whose turn it is, or the session's. `None`: any will do, since no revision that has a share is among
    /// these workers.
    fn revision(&self, open: &[&Arc<Live>], session: Option<u64>) -> Option<&str> {
        let is_able = |revision: &str| open.iter().any(|live| live.info.revision == revision);
        let able = shares::able(&self.shares, is_able);
        match session {
            Some(session) => shares::of_session(session, &able),
            None => self.turns.lock().unwrap_or_else(PoisonError::into_inner).next(&able),
        }
    }
}

/// The live workers and the policy. One per gateway.
pub struct Fleet {
    view: watch::Sender<Arc<View>>,
    policy: Box<dyn Policy>,
    options: ConnectOptions,
    meters: Meters,
    /// Held from reading loads to raising one, so that two requests never take the same last place.
    picking: Mutex<()>,
    /// A worker failed.
    failure: Notify,
}

/// What came of looking for a worker.
#[derive(Debug)]
pub enum Pick {
    /// This one; it counts the request until the lease is dropped.
    Worker(Lease),
    /// None now. Look again when the view changes or at this time.
    Wait(Option<Instant>),
    /// Every ready worker is among those to avoid.
    Exhausted,
    /// No such model, or nothing of the revision asked for.
    Unknown(Unknown),
}

impl Fleet {
    /// A fleet without workers.
    pub fn new(policy: Box<dyn Policy>, options: ConnectOptions) -> Arc<Self> {
        Arc::new(Self {
            view: watch::Sender::default(),
            policy,
            options,
            meters: Meters::default(),
            picking: Mutex::default(),
            failure: Notify::new(),
        })
    }

    /// What was measured of every model.
    pub fn meters(&self) -> &Meters {
        &self.meters
    }

    /// The way of a request to any revision of `model`, without affinity.
    pub fn route(&self, model: &str, work: Work) -> Route {
        let target = Target { model: model.to_owned(), wanted: Wanted::Any };
        Route { target, meter: self.meters.model(model), work, affinity: Affinity::default(), ticket: None }
    }

    /// What is known now; marked as changed whenever a waiting request should look again.
    pub fn subscribe(&self) -> watch::Receiver<Arc<View>> {
        self.view.subscribe()
    }

    /// What is known now.
    pub fn view(&self) -> Arc<View> {
        self.view.borrow().clone()
    }

    /// Takes over what discovery found. Workers that stay keep their channel, load and circuit; requests that run
    /// on a worker that left go on.
    pub fn update(&self, table: &Table) {
        let old = self.view();
        let mut models = BTreeMap::new();
        for (name, model) in &table.models {
            let old = old.models.get(name);
            let current = old.map(|state| state.workers.as_slice()).unwrap_or_default();
            let workers = model.ready.iter().filter_map(|info| self.live(current, info)).collect();
            let progress = old.map(|state| state.progress.clone()).unwrap_or_default();
            let loaded_at = progress
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .observe(Instant::now(), &model.loading);
            let state = ModelState {
                created: model.created,
                known: model.known,
                namespace: model.namespace.clone(),
                deployment: model.deployment.clone(),
                workers,
                shares: model.shares.clone(),
                loaded_at,
                progress,
                turns: old.map(|state| state.turns.clone()).unwrap_or_default(),
            };
            models.insert(name.clone(), state);
        }
        self.view.send_replace(Arc::new(View { synced: true, models }));
    }

    fn live(&self, current: &[Arc<Live>], info: &Worker) -> Option<Arc<Live>> {
        if let Some(same) = current.iter().find(|live| live.info == *info) {
            return Some(same.clone());
        }
        Live::new(info.clone(), self.options)
            .inspect_err(|error| tracing::warn!(worker = info.name, address = info.address, %error, "not a usable address"))
            .ok()
            .map(Arc::new)
    }

    /// Picks a worker for `route`, none of those in `avoid`. `begun` is the revision of an answer that has begun: it is
    /// kept if it can be, and must be kept if a revision was asked for.
    pub fn pick(self: &Arc<Self>, route: &Route, avoid: &[String], begun: Option<&str>) -> Pick {
        let view = self.view();
        let Some(state) = view.models.get(&route.target.model) else {
            return if view.synced { Pick::Unknown(Unknown::Model) } else { Pick::Wait(None) };
        };
        let pinned = begun.filter(|_| route.target.wanted != Wanted::Any);
        let pinned = pinned.map(|begun| Wanted::Revision(begun.to_owned()));
        let wanted = pinned.as_ref().unwrap_or(&route.target.wanted);
        if !state.has(wanted) {
            return Pick::Unknown(Unknown::of(&route.target));
        }
        let (mut allowed, mut eligible) = (0, 0);
        let mut open = Vec::with_capacity(state.workers.len());
        let mut rested = Vec::new();
        let mut again: Option<Instant> = None;
        let now = Instant::now();
        let _picking = self.picking.lock().unwrap_or_else(PoisonError::into_inner);
        for live in state.workers.iter().filter(|live| state.allows(wanted, &live.info.revision)) {
            allowed += 1;
            if avoid.contains(&live.info.id) {
                continue;
            }
            eligible += 1;
            match live.circuit().gate(now) {
                Gate::Open => open.push(live),
                Gate::Rested => rested.push(live),
                Gate::Resting(until) => again = Some(again.map_or(until, |other| other.min(until))),
                Gate::Probing => {}
            }
        }
        if eligible == 0 && allowed > 0 {
            return Pick::Exhausted;
        }
        if open.is_empty() {
            // better than waiting until the gateway has found out how they are
            open = rested;
        }
        let begun = begun.filter(|begun| open.iter().any(|live| live.info.revision == *begun));
        let revision = match begun {
            None if *wanted == Wanted::Any => state.revision(&open, route.affinity.session),
            begun => begun,
        };
        if let Some(revision) = revision {
            open.retain(|live| live.info.revision == revision);
        }
        let candidates: Vec<Candidate> = open
            .iter()
            .map(|live| Candidate {
                requests: live.load.requests(),
                tokens: live.load.tokens(),
                identity: live.identity,
            })
            .collect();
        match self.policy.pick(&candidates, route.affinity) {
            Some(index) => Pick::Worker(Lease::new(self.clone(), open[index].clone(), route)),
            None => Pick::Wait(again),
        }
    }

    pub(super) fn wake_waiting(&self) {
        self.view.send_modify(|_| {});
    }

    /// A worker failed: it has to be asked how it is when it has rested.
    pub(super) fn notice_failure(&self) {
        self.failure.notify_one();
    }

    /// Ends when a worker has failed since the last time.
    pub(super) async fn failure(&self) {
        self.failure.notified().await;
    }

    /// Workers to ask now, each with the epoch of its circuit, and when to look again.
    pub(super) fn due(&self, now: Instant) -> (Vec<(Arc<Live>, u64)>, Option<Instant>) {
        let (mut due, mut next) = (Vec::new(), None::<Instant>);
        for live in self.view().models.values().flat_map(|state| &state.workers) {
            match live.circuit().due(now) {
                Due::Not => {}
                Due::At(at) => next = Some(next.map_or(at, |other| other.min(at))),
                Due::Now(epoch) => due.push((live.clone(), epoch)),
            }
        }
        (due, next)
    }
}

impl std::fmt::Debug for Fleet {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Fleet").field("view", &self.view()).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    use crate::routing::PolicyName;

    fn fleet(workers: &[(&str, &str)]) -> Arc<Fleet> {
        let seconds = Duration::from_secs(1);
        let fleet = Fleet::new(
            PolicyName::LeastLoad.build(),
            ConnectOptions { connect: seconds, keep_alive: seconds },
        );
        fleet.update(&table(workers));
        fleet
    }

    fn table(workers: &[(&str, &str)]) -> Table {
        let mut table = Table::default();
        let ready = workers.iter().map(|(id, revision)| Worker {
            id: (*id).into(),
            name: (*id).into(),
            address: "127.0.0.1:1".into(),
            revision: (*revision).into(),
        });
        table.models.entry("m".into()).or_default().ready.extend(ready);
        table
    }

    fn lease(fleet: &Arc<Fleet>, avoid: &[&str], revision: Option<&str>) -> Lease {
        let avoid: Vec<String> = avoid.iter().map(|id| (*id).to_owned()).collect();
        match fleet.pick(&fleet.route("m", Work::default()), &avoid, revision) {
            Pick::Worker(lease) => lease,
            other => panic!("{other:?}"),
        }
    }

    #[tokio::test]
    async fn load_is_spread_and_given_back() {
        let fleet = fleet(&[("a", ""), ("b", "")]);
        let first = lease(&fleet, &[], None);
        let second = lease(&fleet, &[], None);
        assert_ne!(first.worker().id, second.worker().id);
        let freed = first.worker().id.clone();
        drop(first);
        assert_eq!(lease(&fleet, &[], None).worker().id, freed);
    }

    #[tokio::test]
    async fn a_model_without_workers_is_waited_for_and_an_unknown_one_is_not() {
        let fleet = fleet(&[]);
        assert!(matches!(fleet.pick(&fleet.route("m", Work::default()), &[], None), Pick::Wait(None)));
        assert!(matches!(
            fleet.pick(&fleet.route("other", Work::default()), &[], None),
            Pick::Unknown(Unknown::Model)
        ));
    }

    #[tokio::test]
    async fn before_the_first_look_no_model_is_unknown() {
        let options = ConnectOptions { connect: Duration::ZERO, keep_alive: Duration::ZERO };
        let fleet = Fleet::new(PolicyName::LeastLoad.build(), options);
        assert!(matches!(fleet.pick(&fleet.route("m", Work::default()), &[], None), Pick::Wait(None)));
    }

    #[tokio::test]
    async fn avoided_workers_are_not_picked_and_avoiding_all_is_told() {
        let fleet = fleet(&[("a", ""), ("b", "")]);
        assert_eq!(lease(&fleet, &["a"], None).worker().id, "b");
        assert!(matches!(
            fleet.pick(&fleet.route("m", Work::default()), &["a".into(), "b".into()], None),
            Pick::Exhausted
        ));
    }

    #[tokio::test]
    async fn a_resume_prefers_its_revision_but_takes_another() {
        let fleet = fleet(&[("a", "r1"), ("b", "r2"), ("c", "r2")]);
        for _ in 0..4 {
            assert_eq!(lease(&fleet, &[], Some("r1")).worker().id, "a");
        }
        assert_eq!(lease(&fleet, &["b"], Some("r3")).worker().id, "a");
    }

    #[tokio::test]
    async fn a_revision_asked_for_is_waited_for_and_nothing_else_will_do() {
        let fleet = fleet(&[("a", "r1"), ("b", "r2")]);
        let asking = |name: &str| Route {
            target: Target::read(name, None, &fleet.view()).unwrap(),
            ..fleet.route("m", Work::default())
        };
        let (of_r2, stable) = (asking("m@r2"), asking("m@stable"));
        let Pick::Worker(lease) = fleet.pick(&of_r2, &[], None) else { panic!("b takes requests") };
        assert_eq!(lease.worker().id, "b");
        assert!(matches!(fleet.pick(&of_r2, &["b".into()], None), Pick::Exhausted));
        assert!(matches!(fleet.pick(&stable, &[], None), Pick::Worker(_)), "without shares all are stable");
        let unknown = |name: &str| Target::read(name, None, &fleet.view()).unwrap_err();
        assert_eq!(unknown("other@r2"), Unknown::Model);
        let revision = |revision: &str| Unknown::Revision { model: "m".into(), revision: revision.into() };
        assert_eq!((unknown("m@canary"), unknown("m@r3")), (revision("canary"), revision("r3")));
        // the rollout knows of it, but its workers are not there: it is worth waiting
        let mut without = table(&[("a", "r1")]);
        let share = Share { revision: "r2".into(), weight_percent: 0, role: Role::Preview };
        without.models.entry("m".into()).or_default().shares.push(share);
        fleet.update(&without);
        assert!(matches!(fleet.pick(&of_r2, &[], None), Pick::Wait(None)));
        assert!(matches!(fleet.pick(&of_r2, &[], Some("r1")), Pick::Worker(_)), "one that began there stays");
        fleet.update(&table(&[("a", "r1")]));
        assert!(matches!(fleet.pick(&of_r2, &[], None), Pick::Unknown(Unknown::Revision { .. })));
    }

    #[tokio::test]
    async fn a_model_with_an_at_in_its_name_is_found_by_it() {
        let fleet = fleet(&[("a", "r1")]);
        let mut both = table(&[("a", "r1")]);
        both.models.insert("m@r1".into(), both.models["m"].clone());
        fleet.update(&both);
        let target = Target::read("m@r1", None, &fleet.view()).unwrap();
        assert_eq!((target.model.as_str(), target.wanted), ("m@r1", Wanted::Any));
        let target = Target::read("m@r1@r1", None, &fleet.view()).unwrap();
        assert_eq!((target.model.as_str(), target.wanted), ("m@r1", Wanted::Revision("r1".into())));
        // beside such a name a revision may be asked for, beside one with a revision not
        let target = Target::read("m@r1", Some("r1"), &fleet.view()).unwrap();
        assert_eq!((target.model.as_str(), target.wanted), ("m@r1", Wanted::Revision("r1".into())));
        assert_eq!(Target::read("m@r1@r1", Some("r1"), &fleet.view()), Err(Unknown::Twice));
    }

    #[tokio::test]
    async fn every_outcome_of_a_probe_makes_the_waiting_look_again() {
        let outcomes: [fn(Lease); 3] = [|mut probe| probe.accepted(), |mut probe| probe.failed(), drop];
        for outcome in outcomes {
            let fleet = fleet(&[("a", "")]);
            lease(&fleet, &[], None).failed();
            let Pick::Wait(Some(rested)) = fleet.pick(&fleet.route("m", Work::default()), &[], None) else {
                panic!("it must rest")
            };
            tokio::time::sleep_until(rested.into()).await;
            let probe = lease(&fleet, &[], None);
            let mut waiting = fleet.subscribe();
            waiting.borrow_and_update();
            assert!(matches!(fleet.pick(&fleet.route("m", Work::default()), &[], None), Pick::Wait(None)));
            outcome(probe);
            assert!(waiting.has_changed().unwrap());
        }
    }

    #[tokio::test]
    async fn a_worker_that_has_rested_is_the_last_choice_until_it_has_answered() {
        let fleet = fleet(&[("a", ""), ("b", "")]);
        lease(&fleet, &["b"], None).failed();
        let (none, Some(rested)) = fleet.due(Instant::now()) else { panic!("it must rest") };
        assert!(none.is_empty());
        tokio::time::sleep_until(rested.into()).await;
        let busy: Vec<Lease> = (0..3).map(|_| lease(&fleet, &[], None)).collect();
        assert!(busy.iter().all(|lease| lease.worker().id == "b"), "however much it has to do");
        let (due, None) = fleet.due(Instant::now()) else { panic!("nothing comes later") };
        let [(asked, epoch)] = due.as_slice() else { panic!("{due:?}") };
        assert_eq!(asked.info.id, "a");
        let probe = lease(&fleet, &["b"], None);
        assert_eq!(probe.worker().id, "a", "there is no other choice");
        drop(probe);
        asked.circuit().answered(*epoch);
        assert_eq!(lease(&fleet, &[], None).worker().id, "a", "it has the least to do");
    }

    #[tokio::test]
    async fn a_failed_worker_rests_and_keeps_resting_over_news_from_discovery() {
        let fleet = fleet(&[("a", "")]);
        lease(&fleet, &[], None).failed();
        fleet.update(&table(&[("a", "")]));
        assert!(matches!(fleet.pick(&fleet.route("m", Work::default()), &[], None), Pick::Wait(Some(_))));
        fleet.update(&table(&[("another life of a", "")]));
        lease(&fleet, &[], None);
    }
}
