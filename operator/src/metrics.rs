//! What `/metrics` shows.
mod experts;

use std::{fmt, sync::Arc, time::Duration};

use belay_crds::ModelDeploymentStatus;
use belay_epoch::Operation;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    encoding::{EncodeLabelSet, text::encode},
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use self::experts::ExpertMetrics;
use crate::reconcile::plan::Experts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct ErrorLabels {
    class: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct RequestLabels {
    verb: String,
    resource: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct GroupLabels {
    namespace: String,
    name: String,
    state: String,
}

/// Bounds of the histogram of reconciles. Close to each other below 0.1 s, which 99 of 100 should not exceed.
const SECONDS: [f64; 18] = [
    0.001, 0.0025, 0.005, 0.01, 0.02, 0.03, 0.04, 0.05, 0.06, 0.08, 0.1, 0.15, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Counters and gauges of the operator.
#[derive(Clone)]
pub struct Metrics {
    registry: Arc<Registry>,
    reconciles: Counter,
    errors: Family<ErrorLabels, Counter>,
    put_off: Counter,
    seconds: Histogram,
    requests: Family<RequestLabels, Counter>,
    groups: Family<GroupLabels, Gauge>,
    leader: Gauge,
    experts: ExpertMetrics,
}

impl Default for Metrics {
    fn default() -> Self {
        let mut registry = Registry::with_prefix("belay_operator");
        let reconciles = Counter::default();
        let errors = Family::default();
        let put_off = Counter::default();
        let seconds = Histogram::new(SECONDS);
        let requests = Family::default();
        let groups = Family::default();
        let leader = Gauge::default();
        registry.register("reconciles", "Reconciles that were begun", reconciles.clone());
        registry.register("reconcile_errors", "Reconciles that failed, by class of error", errors.clone());
        registry.register(
            "put_off",
            "Reconciles that were put off: the watches had yet to tell what this process wrote",
            put_off.clone(),
        );
        registry.register("reconcile_seconds", "Duration of a reconcile in seconds", seconds.clone());
        registry.register("api_requests", "Calls to the API server, by verb and resource", requests.clone());
        registry.register("groups", "Groups of a ModelDeployment, by state", groups.clone());
        registry.register("leader", "1 if this process leads, else 0", leader.clone());
        let experts = ExpertMetrics::register(&mut registry);
        Self {
            registry: Arc::new(registry),
            reconciles,
            errors,
            put_off,
            seconds,
            requests,
            groups,
            leader,
            experts,
        }
    }
}

impl Metrics {
    /// A reconcile has ended after `elapsed`; `class` names the error, if there was one.
    pub fn observe_reconcile(&self, elapsed: Duration, class: Option<&str>) {
        self.reconciles.inc();
        self.seconds.observe(elapsed.as_secs_f64());
        if let Some(class) = class {
            self.errors.get_or_create(&ErrorLabels { class: class.to_owned() }).inc();
        }
    }

    /// A reconcile was put off until the watches have told more.
    pub fn put_off(&self) {
        self.put_off.inc();
    }

    /// The API server is called.
    pub fn observe_request(&self, verb: &'static str, resource: &str) {
        let labels = RequestLabels { verb: verb.to_owned(), resource: resource.to_owned() };
        self.requests.get_or_create(&labels).inc();
    }

    /// Groups of a deployment, as its status has them.
    pub fn observe_status(&self, namespace: &str, name: &str, desired: u32, status: &ModelDeploymentStatus) {
        for (state, count) in self.states(desired, status) {
            self.groups.get_or_create(&labels(namespace, name, state)).set(count);
        }
        self.experts.observe(namespace, name, status);
    }

    /// The intent of a group was written: what was under way before, and what is intended now.
    pub fn observe_operation(&self, before: Option<&Operation>, after: &Experts, now: Timestamp) {
        self.experts.operation(before, after, now);
    }

    /// Something that must hold does not.
    pub fn observe_violation(&self, invariant: &str) {
        self.experts.violation(invariant);
    }

    /// A deployment is gone.
    pub fn forget(&self, namespace: &str, name: &str) {
        for (state, _) in self.states(0, &ModelDeploymentStatus::default()) {
            self.groups.remove(&labels(namespace, name, state));
        }
        self.experts.observe(namespace, name, &ModelDeploymentStatus::default());
    }

    /// Whether this process leads.
    pub fn set_leader(&self, leads: bool) {
        self.leader.set(i64::from(leads));
    }

    /// Everything, in the text format of OpenMetrics.
    ///
    /// # Errors
    /// When formatting fails.
    pub fn text(&self) -> Result<String, fmt::Error> {
        let mut text = String::new();
        encode(&mut text, &self.registry)?;
        Ok(text)
    }

    fn states(&self, desired: u32, status: &ModelDeploymentStatus) -> [(&'static str, i64); 4] {
        [
            ("desired", i64::from(desired)),
            ("existing", i64::from(status.replicas)),
            ("ready", i64::from(status.ready_replicas)),
            ("updated", i64::from(status.updated_replicas)),
        ]
    }
}

fn labels(namespace: &str, name: &str, state: &str) -> GroupLabels {
    GroupLabels { namespace: namespace.to_owned(), name: name.to_owned(), state: state.to_owned() }
}

#[cfg(test)]
mod tests {
    use belay_crds::GroupStatus;

    use super::*;

    #[test]
    fn groups_of_a_deleted_deployment_are_forgotten() {
        let metrics = Metrics::default();
        let mut status = ModelDeploymentStatus { ready_replicas: 2, ..ModelDeploymentStatus::default() };
        status.groups.push(GroupStatus {
            name: "nano-0".into(),
            placement_epoch: Some(7),
            ..GroupStatus::default()
        });
        metrics.observe_status("ns", "nano", 3, &status);
        let line = r#"belay_operator_groups{namespace="ns",name="nano",state="ready"} 2"#;
        assert!(metrics.text().unwrap().contains(line));
        let line = r#"belay_operator_placement_epoch{namespace="ns",name="nano",group="nano-0"} 7"#;
        assert!(metrics.text().unwrap().contains(line));
        metrics.forget("ns", "nano");
        assert!(!metrics.text().unwrap().contains("nano"));
    }
}
