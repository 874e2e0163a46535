//! Counters of every model and revision that this gateway has to do with.
use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError, RwLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use super::{Histogram, Load, Pace, RetryBudget};

/// How long what is gone is remembered: longer than a reader may be away.
pub const MEMORY: Duration = Duration::from_secs(3600);

/// See the module. Everything since the start; counters only grow.
#[derive(Debug)]
pub struct Meters {
    start: Instant,
    models: RwLock<BTreeMap<String, Arc<ModelMeter>>>,
}

impl Default for Meters {
    fn default() -> Self {
        Self { start: Instant::now(), models: RwLock::default() }
    }
}

/// A served model.
#[derive(Debug)]
pub struct ModelMeter {
    start: Instant,
    /// Requests that wait for a worker.
    pub held: Arc<Load>,
    /// Requests that workers have.
    pub outstanding: Arc<Load>,
    /// Requests that named it.
    pub arrived: AtomicU64,
    /// Of those, refused because too many waited, or waited too long.
    pub refused: AtomicU64,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// Of answers.
    pub pace: Pace,
    retries: Mutex<RetryBudget>,
    revisions: RwLock<BTreeMap<String, Arc<RevisionMeter>>>,
    /// Milliseconds from the start to the last arrival or end.
    active: AtomicU64,
}

/// Attempts to have a revision answer.
#[derive(Debug)]
pub struct RevisionMeter {
    start: Instant,
    /// Answered to the end.
    pub served: AtomicU64,
    /// Given up for a reason that lies with the worker.
    pub failed: AtomicU64,
    /// Refused as the client's fault.
    pub rejected: AtomicU64,
    /// Not taken, or handed over.
    pub passed_on: AtomicU64,
    /// From being asked to the first token of the attempt.
    pub first_token: Histogram,
    /// Between two pieces with tokens, divided by the tokens of the later one.
    pub inter_token: Histogram,
    /// As workers counted them.
    pub prompt_tokens: AtomicU64,
    /// Tokens that came.
    pub completion_tokens: AtomicU64,
    active: AtomicU64,
}

fn milliseconds(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}

/// Finds or makes an entry; the lock for writing is taken only to make one.
fn entry<T>(map: &RwLock<BTreeMap<String, Arc<T>>>, name: &str, make: impl FnOnce() -> T) -> Arc<T> {
    if let Some(found) = map.read().unwrap_or_else(PoisonError::into_inner).get(name) {
        return found.clone();
    }
    let mut map = map.write().unwrap_or_else(PoisonError::into_inner);
    map.entry(name.to_owned()).or_insert_with(|| Arc::new(make())).clone()
}

fn entries<T>(map: &RwLock<BTreeMap<String, Arc<T>>>) -> Vec<(String, Arc<T>)> {
    let map = map.read().unwrap_or_else(PoisonError::into_inner);
    map.iter().map(|(name, entry)| (name.clone(), entry.clone())).collect()
}

impl Meters {
    /// Of this model.
    pub fn model(&self, name: &str) -> Arc<ModelMeter> {
        entry(&self.models, name, || ModelMeter::new(self.start))
    }

    /// All of them, by name.
    pub fn models(&self) -> Vec<(String, Arc<ModelMeter>)> {
        entries(&self.models)
    }

    /// Forgets models and revisions that `exists` does not know and that nobody asked for in [`MEMORY`]. A request under
    /// way keeps its own. `exists` is asked about a model with `None`, and about its revisions.
    pub fn forget(&self, now: Instant, exists: impl Fn(&str, Option<&str>) -> bool) {
        let old = |active: &AtomicU64| {
            let active = Duration::from_millis(active.load(Ordering::Relaxed));
            now.saturating_duration_since(self.start).saturating_sub(active) >= MEMORY
        };
        let mut models = self.models.write().unwrap_or_else(PoisonError::into_inner);
        models.retain(|name, model| {
            let mut revisions = model.revisions.write().unwrap_or_else(PoisonError::into_inner);
            revisions.retain(|revision, meter| {
                exists(name, Some(revision)) || Arc::strong_count(meter) > 1 || !old(&meter.active)
            });
            exists(name, None) || Arc::strong_count(model) > 1 || !revisions.is_empty() || !old(&model.active)
        });
    }
}

impl ModelMeter {
    fn new(start: Instant) -> Self {
        Self {
            start,
            held: Arc::default(),
            outstanding: Arc::default(),
            arrived: AtomicU64::default(),
            refused: AtomicU64::default(),
            first_token: Histogram::default(),
            pace: Pace::default(),
            retries: Mutex::default(),
            revisions: RwLock::default(),
            active: AtomicU64::default(),
        }
    }

    /// Of this revision; empty when it has no name.
    pub fn revision(&self, name: &str) -> Arc<RevisionMeter> {
        entry(&self.revisions, name, || RevisionMeter::new(self.start))
    }

    /// All of them, by name.
    pub fn revisions(&self) -> Vec<(String, Arc<RevisionMeter>)> {
        entries(&self.revisions)
    }

    /// A request named this model.
    pub fn arrive(&self) {
        self.arrived.fetch_add(1, Ordering::Relaxed);
        self.touch();
    }

    /// A request arrived or ended.
    pub fn touch(&self) {
        self.active.fetch_max(milliseconds(self.start.elapsed()), Ordering::Relaxed);
    }

    /// A request was let in: it adds to the retries that there may be.
    pub fn request(&self) {
        self.retries.lock().unwrap_or_else(PoisonError::into_inner).request(self.start.elapsed());
    }

    /// Takes one retry; `Err` says when it may be worth trying again.
    pub fn retry(&self) -> Result<(), Duration> {
        self.retries.lock().unwrap_or_else(PoisonError::into_inner).retry(self.start.elapsed())
    }

    /// Since the last request arrived or ended, or since the start.
    pub fn idle(&self) -> Duration {
        let active = Duration::from_millis(self.active.load(Ordering::Relaxed));
        self.start.elapsed().saturating_sub(active)
    }
}

impl RevisionMeter {
    fn new(start: Instant) -> Self {
        Self {
            start,
            served: AtomicU64::default(),
            failed: AtomicU64::default(),
            rejected: AtomicU64::default(),
            passed_on: AtomicU64::default(),
            first_token: Histogram::default(),
            inter_token: Histogram::default(),
            prompt_tokens: AtomicU64::default(),
            completion_tokens: AtomicU64::default(),
            active: AtomicU64::default(),
        }
    }

    /// An attempt began or ended.
    pub fn touch(&self) {
        self.active.fetch_max(milliseconds(self.start.elapsed()), Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(meters: &Meters) -> Vec<String> {
        meters.models().into_iter().map(|(name, _)| name).collect()
    }

    #[test]
    fn the_same_name_is_the_same_meter() {
        let meters = Meters::default();
        meters.model("m").arrive();
        meters.model("m").arrive();
        assert_eq!(meters.model("m").arrived.load(Ordering::Relaxed), 2);
        meters.model("m").revision("r").served.fetch_add(1, Ordering::Relaxed);
        assert_eq!(meters.model("m").revision("r").served.load(Ordering::Relaxed), 1);
    }

    #[test]
    fn what_is_gone_is_forgotten_after_a_while_unless_it_is_in_use() {
        let meters = Meters::default();
        let in_use = meters.model("used").revision("r");
        meters.model("gone").revision("r");
        meters.model("known").revision("old");
        meters.model("known").revision("new");
        let exists = |model: &str, revision: Option<&str>| model == "known" && revision != Some("old");
        meters.forget(Instant::now(), exists);
        assert_eq!(names(&meters), ["gone", "known", "used"], "not at once");
        let later = Instant::now() + MEMORY;
        meters.forget(later, exists);
        assert_eq!(names(&meters), ["known", "used"]);
        let revisions: Vec<_> = meters.model("known").revisions().into_iter().map(|(name, _)| name).collect();
        assert_eq!(revisions, ["new"]);
        drop(in_use);
        meters.forget(later, exists);
        assert_eq!(names(&meters), ["known"]);
    }
}
