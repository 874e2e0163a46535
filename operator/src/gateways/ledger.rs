//! What gateways have counted, added up: pure.
//!
//! A gateway counts from its start. Here, what each says is compared with what it said before, and the difference is added to
//! a total that only grows: so a gateway that restarts or goes away takes nothing from it, and two looks at a total tell
//! what happened in between.
use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use belay_proto::gateway::{Histogram, Model, ReadResponse, Revision};

/// After how long without an answer a gateway does not count any more.
const GONE: Duration = Duration::from_secs(10);

/// Namespace and name of a ModelDeployment.
pub type Key = (String, String);

/// What is known of one ModelDeployment's requests, over all gateways.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Measure {
    /// Requests that wait for a worker.
    pub held: u64,
    /// What they will take, in tokens: an estimate.
    pub held_tokens: u64,
    /// Requests that workers have.
    pub outstanding: u64,
    /// What they have still to do, in tokens: an estimate.
    pub outstanding_tokens: u64,
    /// Since the last request arrived or ended, on whichever gateway; since a gateway's start, if it has had none.
    pub idle: Duration,
    /// Since the last request arrived or ended that a gateway has seen. A gateway that starts says nothing of it.
    pub asked: Option<Duration>,
    /// Counted so far.
    pub totals: Totals,
    /// How old the oldest answer in this is.
    pub age: Duration,
}

/// What was counted so far.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Totals {
    /// Requests that arrived.
    pub arrived: u64,
    /// Of those, refused because too many waited, or waited too long.
    pub refused: u64,
    /// From arrival to the first token.
    pub first_token: Histogram,
    /// Attempts, by revision.
    pub revisions: BTreeMap<String, Revision>,
}

impl Totals {
    /// What was counted since `earlier`, which is an earlier state of this.
    pub fn since(&self, earlier: &Self) -> Self {
        let mut difference = Self::default();
        difference.add(self, Some(earlier));
        difference
    }

    /// Adds what `now` has and `before` had not.
    fn add(&mut self, now: &Self, before: Option<&Self>) {
        let before = before.cloned().unwrap_or_default();
        self.arrived += now.arrived.saturating_sub(before.arrived);
        self.refused += now.refused.saturating_sub(before.refused);
        add_histogram(&mut self.first_token, &now.first_token, &before.first_token);
        for (name, revision) in &now.revisions {
            let total = self
                .revisions
                .entry(name.clone())
                .or_insert_with(|| Revision { revision: name.clone(), ..Revision::default() });
            add_revision(total, revision, before.revisions.get(name));
        }
    }
}

fn add_revision(total: &mut Revision, now: &Revision, before: Option<&Revision>) {
    let none = Revision::default();
    let before = before.unwrap_or(&none);
    let counters = [
        (&mut total.served, now.served, before.served),
        (&mut total.failed, now.failed, before.failed),
        (&mut total.rejected, now.rejected, before.rejected),
        (&mut total.passed_on, now.passed_on, before.passed_on),
        (&mut total.prompt_tokens, now.prompt_tokens, before.prompt_tokens),
        (&mut total.completion_tokens, now.completion_tokens, before.completion_tokens),
    ];
    for (total, now, before) in counters {
        *total += now.saturating_sub(before);
    }
    for (total, now, before) in [
        (&mut total.first_token, &now.first_token, &before.first_token),
        (&mut total.inter_token, &now.inter_token, &before.inter_token),
    ] {
        if let Some(now) = now {
            let empty = Histogram::default();
            let before = before.as_ref().unwrap_or(&empty);
            add_histogram(total.get_or_insert_default(), now, before);
        }
    }
}

/// Gateways of two versions may cut their buckets in two ways: what does not fit is left out.
fn add_histogram(total: &mut Histogram, now: &Histogram, before: &Histogram) {
    if total.counts.is_empty() {
        (total.first, total.factor) = (now.first, now.factor);
    }
    if (total.first, total.factor) != (now.first, now.factor) {
        return;
    }
    if total.counts.len() < now.counts.len() {
        total.counts.resize(now.counts.len(), 0);
    }
    for (i, (total, now)) in total.counts.iter_mut().zip(&now.counts).enumerate() {
        *total += now.saturating_sub(before.counts.get(i).copied().unwrap_or(0));
    }
    total.sum += (now.sum - before.sum).max(0.0);
}

/// See the module.
#[derive(Debug, Default)]
pub struct Ledger {
    instances: BTreeMap<String, Instance>,
    totals: BTreeMap<Key, Totals>,
}

#[derive(Debug)]
struct Instance {
    at: Instant,
    models: BTreeMap<Key, Gauges>,
    counted: BTreeMap<Key, Totals>,
}

/// What a gateway has at the moment.
#[derive(Clone, Copy, Debug, Default)]
struct Gauges {
    held: u64,
    held_tokens: u64,
    outstanding: u64,
    outstanding_tokens: u64,
    idle: Duration,
    asked: Option<Duration>,
}

impl Ledger {
    /// Takes an answer over.
    pub fn take(&mut self, answer: &ReadResponse, now: Instant) {
        let before = self.instances.remove(&answer.instance);
        let mut instance = Instance { at: now, models: BTreeMap::new(), counted: BTreeMap::new() };
        for model in answer.models.iter().filter(|model| !model.deployment.is_empty()) {
            let key = (model.namespace.clone(), model.deployment.clone());
            // a rollout may rename a model: then a deployment has two for a while
            add_gauges(&mut instance.models, &key, model);
            instance.counted.entry(key).or_default().add(&totals(model), None);
        }
        for (key, now) in &instance.counted {
            let before = before.as_ref().and_then(|before| before.counted.get(key));
            self.totals.entry(key.clone()).or_default().add(now, before);
        }
        // what the gateway has forgotten meanwhile may come back with the same count
        for (key, counted) in before.map(|before| before.counted).unwrap_or_default() {
            instance.counted.entry(key).or_insert(counted);
        }
        self.instances.insert(answer.instance.clone(), instance);
        self.instances.retain(|_, instance| now.duration_since(instance.at) < GONE);
    }

    /// What is known of a deployment; `None` if no gateway has told anything of it lately.
    pub fn measure(&self, key: &Key, now: Instant) -> Option<Measure> {
        let mut sum: Option<Measure> = None;
        for instance in self.instances.values() {
            let age = now.duration_since(instance.at);
            let Some(gauges) = instance.models.get(key).filter(|_| age < GONE) else { continue };
            let sum = sum.get_or_insert_with(|| Measure { idle: Duration::MAX, ..Measure::default() });
            sum.held += gauges.held;
            sum.held_tokens += gauges.held_tokens;
            sum.outstanding += gauges.outstanding;
            sum.outstanding_tokens += gauges.outstanding_tokens;
            sum.idle = sum.idle.min(gauges.idle + age);
            sum.asked = earlier(sum.asked, gauges.asked.map(|asked| asked + age));
            sum.age = sum.age.max(age);
        }
        let mut sum = sum?;
        sum.totals = self.totals.get(key).cloned().unwrap_or_default();
        Some(sum)
    }

    /// Deployments with requests that wait.
    pub fn held(&self) -> Vec<Key> {
        let waiting = |instance: &Instance| -> Vec<Key> {
            instance.models.iter().filter(|(_, gauges)| gauges.held > 0).map(|(key, _)| key.clone()).collect()
        };
        let mut keys: Vec<Key> = self.instances.values().flat_map(waiting).collect();
        keys.sort();
        keys.dedup();
        keys
    }

    /// Forgets a deployment that is gone.
    pub fn forget(&mut self, key: &Key) {
        self.totals.remove(key);
        for instance in self.instances.values_mut() {
            instance.models.remove(key);
        }
    }
}

fn add_gauges(models: &mut BTreeMap<Key, Gauges>, key: &Key, model: &Model) {
    let idle = Duration::from_millis(model.idle_milliseconds);
    let gauges = models.entry(key.clone()).or_insert(Gauges { idle, ..Gauges::default() });
    gauges.held += model.held;
    gauges.held_tokens += model.held_tokens;
    gauges.outstanding += model.outstanding;
    gauges.outstanding_tokens += model.outstanding_tokens;
    gauges.idle = gauges.idle.min(idle);
    gauges.asked = earlier(gauges.asked, (model.arrived > 0).then_some(idle));
}

/// The shorter time of those that there are.
fn earlier(one: Option<Duration>, other: Option<Duration>) -> Option<Duration> {
    one.into_iter().chain(other).min()
}

fn totals(model: &Model) -> Totals {
    Totals {
        arrived: model.arrived,
        refused: model.refused,
        first_token: model.first_token.clone().unwrap_or_default(),
        revisions: model
            .revisions
            .iter()
            .map(|revision| (revision.revision.clone(), revision.clone()))
            .collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(instance: &str, served: u64, held: u64, counts: &[u64]) -> ReadResponse {
        let histogram = Histogram { first: 0.5, factor: 2.0, counts: counts.to_vec(), sum: served as f64 };
        let revision = Revision {
            revision: "r1".into(),
            served,
            first_token: Some(histogram.clone()),
            ..Revision::default()
        };
        let model = Model {
            name: "m".into(),
            namespace: "ns".into(),
            deployment: "d".into(),
            held,
            arrived: served + 1,
            idle_milliseconds: 500,
            first_token: Some(histogram),
            revisions: vec![revision],
            ..Model::default()
        };
        ReadResponse { instance: instance.into(), models: vec![model] }
    }

    fn key() -> Key {
        ("ns".into(), "d".into())
    }

    #[test]
    fn totals_grow_over_restarts_and_gateways_and_differences_tell_what_happened() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.take(&answer("a", 10, 2, &[4, 6]), now);
        ledger.take(&answer("b", 1, 1, &[1]), now);
        let first = ledger.measure(&key(), now).unwrap();
        assert_eq!((first.held, first.totals.arrived, first.totals.revisions["r1"].served), (3, 13, 11));
        assert_eq!(first.totals.first_token.counts, [5, 6]);
        ledger.take(&answer("a", 12, 0, &[5, 7]), now);
        ledger.take(&answer("a2", 3, 0, &[0, 3]), now);
        let second = ledger.measure(&key(), now).unwrap();
        let between = second.totals.since(&first.totals);
        assert_eq!(between.revisions["r1"].served, 5, "2 of the first, 3 of the one that restarted");
        assert_eq!(between.first_token.counts, [1, 4]);
        assert_eq!(second.held, 1);
        assert_eq!(ledger.held(), [key()]);
    }

    #[test]
    fn a_gateway_that_is_silent_has_no_requests_but_what_it_counted_stays() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.take(&answer("a", 10, 2, &[10]), now);
        assert_eq!(ledger.measure(&key(), now + GONE), None);
        ledger.take(&answer("b", 1, 0, &[1]), now + GONE);
        let measure = ledger.measure(&key(), now + GONE + Duration::from_secs(1)).unwrap();
        assert_eq!((measure.held, measure.totals.revisions["r1"].served), (0, 11));
        assert_eq!(measure.idle, Duration::from_millis(1500));
        assert_eq!(measure.age, Duration::from_secs(1));
        ledger.forget(&key());
        assert_eq!(ledger.measure(&key(), now + GONE), None);
    }

    #[test]
    fn a_gateway_that_starts_says_nothing_of_the_last_request() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        let mut fresh = answer("b", 0, 0, &[]);
        (fresh.models[0].arrived, fresh.models[0].idle_milliseconds) = (0, 100);
        ledger.take(&fresh, now);
        let measure = ledger.measure(&key(), now).unwrap();
        assert_eq!((measure.idle, measure.asked), (Duration::from_millis(100), None));
        ledger.take(&answer("a", 10, 0, &[10]), now);
        let measure = ledger.measure(&key(), now + Duration::from_secs(1)).unwrap();
        assert_eq!(measure.idle, Duration::from_millis(1100));
        assert_eq!(measure.asked, Some(Duration::from_millis(1500)));
    }

    #[test]
    fn buckets_that_are_cut_otherwise_are_left_out() {
        let now = Instant::now();
        let mut ledger = Ledger::default();
        ledger.take(&answer("a", 2, 0, &[1, 1]), now);
        let mut other = answer("b", 5, 0, &[5]);
        other.models[0].first_token.as_mut().unwrap().factor = 3.0;
        ledger.take(&other, now);
        let measure = ledger.measure(&key(), now).unwrap();
        assert_eq!(measure.totals.first_token.counts, [1, 1]);
        assert_eq!(measure.totals.revisions["r1"].served, 7);
    }
}
