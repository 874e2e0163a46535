//! The live workers: what discovery found, joined with what this gateway knows of each (channel, load, circuit).
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicUsize, Ordering},
    },
    time::{Duration, Instant},
};

use tokio::sync::watch;
use tonic::transport::{Channel, Endpoint};

use crate::discovery::{Table, Worker};

use super::{Candidate, Circuit, Gate, Policy};

/// Bytes of one answer that a worker may send ahead of its reader.
const STREAM_WINDOW: u32 = 64 << 10;

/// Bytes of all answers of a worker. So large that readers who have stopped reading cannot use it up: the others share
/// the connection with them.
const CONNECTION_WINDOW: u32 = 1 << 30;

/// How to connect to workers.
#[derive(Clone, Copy, Debug)]
pub struct ConnectOptions {
    /// Longest time to connect.
    pub connect: Duration,
    /// Interval of HTTP/2 pings, and how long an answer may take.
    pub keep_alive: Duration,
}

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
    workers: Vec<Arc<Live>>,
}

impl ModelState {
    /// Workers that take requests, as discovery sees it.
    pub fn ready(&self) -> usize {
        self.workers.len()
    }
}

#[derive(Debug)]
struct Live {
    info: Worker,
    channel: Channel,
    outstanding: AtomicUsize,
    circuit: Mutex<Circuit>,
}

impl Live {
    fn new(info: Worker, options: ConnectOptions) -> Result<Self, tonic::transport::Error> {
        let endpoint = Endpoint::from_shared(format!("http://{}", info.address))?
            .connect_timeout(options.connect)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(options.keep_alive)
            .keep_alive_timeout(options.keep_alive)
            .keep_alive_while_idle(true)
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW);
        Ok(Self {
            info,
            channel: endpoint.connect_lazy(),
            outstanding: AtomicUsize::new(0),
            circuit: Mutex::default(),
        })
    }

    fn circuit(&self) -> MutexGuard<'_, Circuit> {
        self.circuit.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The live workers and the policy. One per gateway.
pub struct Fleet {
    view: watch::Sender<Arc<View>>,
    policy: Box<dyn Policy>,
    options: ConnectOptions,
    /// Held from reading loads to raising one, so that two requests never take the same last place.
    picking: Mutex<()>,
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
    /// No such model.
    UnknownModel,
}

impl Fleet {
    /// A fleet without workers.
    pub fn new(policy: Box<dyn Policy>, options: ConnectOptions) -> Arc<Self> {
        Arc::new(Self { view: watch::Sender::default(), policy, options, picking: Mutex::default() })
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
            let current = old.models.get(name).map(|state| state.workers.as_slice()).unwrap_or_default();
            let workers = model.ready.iter().filter_map(|info| self.live(current, info)).collect();
            models.insert(name.clone(), ModelState { created: model.created, known: model.known, workers });
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

    /// Picks a worker of `model`, none of those in `avoid`; one of `revision` if it can.
    pub fn pick(self: &Arc<Self>, model: &str, avoid: &[String], revision: Option<&str>) -> Pick {
        let view = self.view();
        let Some(state) = view.models.get(model) else {
            return if view.synced { Pick::UnknownModel } else { Pick::Wait(None) };
        };
        let eligible: Vec<&Arc<Live>> =
            state.workers.iter().filter(|live| !avoid.contains(&live.info.id)).collect();
        if eligible.is_empty() && !avoid.is_empty() && !state.workers.is_empty() {
            return Pick::Exhausted;
        }
        let now = Instant::now();
        let _picking = self.picking.lock().unwrap_or_else(PoisonError::into_inner);
        let mut open = Vec::with_capacity(eligible.len());
        let mut again: Option<Instant> = None;
        for live in eligible {
            match live.circuit().gate(now) {
                Gate::Open => open.push(live),
                Gate::Resting(until) => again = Some(again.map_or(until, |other| other.min(until))),
                Gate::Probing => {}
            }
        }
        if let Some(revision) = revision
            && open.iter().any(|live| live.info.revision == revision)
        {
            open.retain(|live| live.info.revision == revision);
        }
        let candidates: Vec<Candidate> = open
            .iter()
            .map(|live| Candidate { outstanding: live.outstanding.load(Ordering::Relaxed) })
            .collect();
        match self.policy.pick(&candidates) {
            Some(index) => Pick::Worker(Lease::new(self.clone(), open[index].clone())),
            None => Pick::Wait(again),
        }
    }

    fn wake_waiting(&self) {
        self.view.send_modify(|_| {});
    }
}

/// One request on one worker. Counts towards its load until dropped.
pub struct Lease {
    fleet: Arc<Fleet>,
    worker: Arc<Live>,
    epoch: u64,
    stage: Stage,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stage {
    Asked,
    Accepted,
    Served,
    Failed,
}

impl Lease {
    fn new(fleet: Arc<Fleet>, worker: Arc<Live>) -> Self {
        worker.outstanding.fetch_add(1, Ordering::Relaxed);
        let epoch = worker.circuit().take();
        Self { fleet, worker, epoch, stage: Stage::Asked }
    }

    /// The worker's channel.
    pub fn channel(&self) -> Channel {
        self.worker.channel.clone()
    }

    /// The worker.
    pub fn worker(&self) -> &Worker {
        &self.worker.info
    }

    /// Whether the worker took the request.
    pub fn is_accepted(&self) -> bool {
        matches!(self.stage, Stage::Accepted | Stage::Served)
    }

    /// The worker took the request.
    pub fn accepted(&mut self) {
        if self.stage == Stage::Asked {
            self.stage = Stage::Accepted;
            if self.worker.circuit().accepted(self.epoch) {
                self.fleet.wake_waiting();
            }
        }
    }

    /// The worker answered something useful.
    pub fn served(&mut self) {
        self.accepted();
        if self.stage == Stage::Accepted {
            self.stage = Stage::Served;
            self.worker.circuit().served(self.epoch);
        }
    }

    /// The worker is not able to serve: it rests.
    pub fn failed(&mut self) {
        self.stage = Stage::Failed;
        if self.worker.circuit().failed(self.epoch, Instant::now()) {
            self.fleet.wake_waiting();
        }
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.worker.outstanding.fetch_sub(1, Ordering::Relaxed);
        if self.stage == Stage::Asked && self.worker.circuit().abandoned(self.epoch) {
            self.fleet.wake_waiting();
        }
    }
}

impl std::fmt::Debug for Lease {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Lease").field("worker", &self.worker.info.name).field("stage", &self.stage).finish()
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
        match fleet.pick("m", &avoid, revision) {
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
        assert!(matches!(fleet.pick("m", &[], None), Pick::Wait(None)));
        assert!(matches!(fleet.pick("other", &[], None), Pick::UnknownModel));
    }

    #[tokio::test]
    async fn before_the_first_look_no_model_is_unknown() {
        let options = ConnectOptions { connect: Duration::ZERO, keep_alive: Duration::ZERO };
        let fleet = Fleet::new(PolicyName::LeastLoad.build(), options);
        assert!(matches!(fleet.pick("m", &[], None), Pick::Wait(None)));
    }

    #[tokio::test]
    async fn avoided_workers_are_not_picked_and_avoiding_all_is_told() {
        let fleet = fleet(&[("a", ""), ("b", "")]);
        assert_eq!(lease(&fleet, &["a"], None).worker().id, "b");
        assert!(matches!(fleet.pick("m", &["a".into(), "b".into()], None), Pick::Exhausted));
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
    async fn every_outcome_of_a_probe_makes_the_waiting_look_again() {
        let outcomes: [fn(Lease); 3] = [|mut probe| probe.accepted(), |mut probe| probe.failed(), drop];
        for outcome in outcomes {
            let fleet = fleet(&[("a", "")]);
            lease(&fleet, &[], None).failed();
            let Pick::Wait(Some(rested)) = fleet.pick("m", &[], None) else { panic!("it must rest") };
            tokio::time::sleep_until(rested.into()).await;
            let probe = lease(&fleet, &[], None);
            let mut waiting = fleet.subscribe();
            waiting.borrow_and_update();
            assert!(matches!(fleet.pick("m", &[], None), Pick::Wait(None)));
            outcome(probe);
            assert!(waiting.has_changed().unwrap());
        }
    }

    #[tokio::test]
    async fn a_failed_worker_rests_and_keeps_resting_over_news_from_discovery() {
        let fleet = fleet(&[("a", "")]);
        lease(&fleet, &[], None).failed();
        fleet.update(&table(&[("a", "")]));
        assert!(matches!(fleet.pick("m", &[], None), Pick::Wait(Some(_))));
        fleet.update(&table(&[("another life of a", "")]));
        lease(&fleet, &[], None);
    }
}
