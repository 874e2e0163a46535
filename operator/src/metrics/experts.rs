//! Metrics of experts: coverage, placement, operations.
use std::sync::{Arc, Mutex, PoisonError};

use belay_crds::{GroupStatus, ModelDeploymentStatus};
use belay_epoch::Operation;
use k8s_openapi::jiff::Timestamp;
use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge, histogram::Histogram},
    registry::Registry,
};

use crate::reconcile::plan::Experts;

#[derive(Clone, Debug, Hash, PartialEq, Eq, PartialOrd, Ord, EncodeLabelSet)]
struct GroupLabels {
    namespace: String,
    name: String,
    group: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct KindLabels {
    kind: String,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct InvariantLabels {
    invariant: String,
}

type Gauges = Family<GroupLabels, Gauge>;

/// A name, what it says, and how it is read from a group's status.
type Row = (&'static str, &'static str, fn(&GroupStatus) -> Option<i64>);

/// Gauges of a group.
const ROWS: [Row; 7] = [
    ("experts_uncovered", "Experts of a group without a live copy", |line| {
        line.experts.as_ref().map(|experts| experts.total - experts.covered)
    }),
    ("experts_min_live_copies", "Live copies of the expert of a group that has the fewest", |line| {
        line.experts.as_ref().map(|experts| experts.min_live_copies)
    }),
    ("expert_imbalance_percent", "Load of the busiest ranks of a group, in percent of the mean", |line| {
        line.experts.as_ref()?.imbalance_percent
    }),
    ("placement_epoch", "Epoch of the placement of a group that is in force", |line| line.placement_epoch),
    ("operation_phase", "Change of placement of a group: 0 none, 1 prepare, 2 commit, 3 retire", |line| {
        Some(match line.operation.as_ref().map(|operation| operation.phase.as_str()) {
            None => 0,
            Some("Prepare") => 1,
            Some("Commit") => 2,
            Some(_) => 3,
        })
    }),
    ("operation_bytes_done", "Bytes of experts that were loaded for the change of placement", |line| {
        Some(line.operation.as_ref().map_or(0, |operation| operation.bytes_done))
    }),
    ("operation_bytes_total", "Bytes of experts to load for the change of placement", |line| {
        Some(line.operation.as_ref().map_or(0, |operation| operation.bytes_total))
    }),
];

/// Metrics of experts.
#[derive(Clone)]
pub struct ExpertMetrics {
    gauges: [Gauges; ROWS.len()],
    operations: Family<KindLabels, Counter>,
    seconds: Family<KindLabels, Histogram>,
    violations: Family<InvariantLabels, Counter>,
    known: Arc<Mutex<Vec<GroupLabels>>>,
}

impl ExpertMetrics {
    /// Registers them.
    pub fn register(registry: &mut Registry) -> Self {
        let this = Self {
            gauges: ROWS.map(|(name, help, _)| {
                let gauges = Gauges::default();
                registry.register(name, help, gauges.clone());
                gauges
            }),
            operations: Family::default(),
            seconds: Family::new_with_constructor(|| {
                Histogram::new([0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 60.0, 120.0, 300.0, 600.0, 1800.0])
            }),
            violations: Family::default(),
            known: Arc::default(),
        };
        registry.register(
            "operations",
            "Changes of placement that were completed, by kind",
            this.operations.clone(),
        );
        registry.register(
            "operation_seconds",
            "Duration of changes of placement, by kind",
            this.seconds.clone(),
        );
        registry.register(
            "invariant_violations",
            "Violations of what must hold in a group, by invariant: a fault of Belay",
            this.violations.clone(),
        );
        this
    }

    /// Groups of a deployment as its status has them; those that it had before and not now are forgotten.
    pub fn observe(&self, namespace: &str, name: &str, status: &ModelDeploymentStatus) {
        let labels = |group: &str| GroupLabels {
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            group: group.to_owned(),
        };
        let now: Vec<GroupLabels> = status.groups.iter().map(|line| labels(&line.name)).collect();
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|old| {
            let gone = old.namespace == namespace && old.name == name && !now.contains(old);
            if gone {
                self.gauges.iter().for_each(|gauges| _ = gauges.remove(old));
            }
            !gone
        });
        for (line, labels) in status.groups.iter().zip(now) {
            for (gauges, (_, _, read)) in self.gauges.iter().zip(ROWS) {
                match read(line) {
                    Some(value) => _ = gauges.get_or_create(&labels).set(value),
                    None => _ = gauges.remove(&labels),
                }
            }
            if !known.contains(&labels) {
                known.push(labels);
            }
        }
    }

    /// An intent was written: counts the operation that it ends.
    pub fn operation(&self, before: Option<&Operation>, after: &Experts, now: Timestamp) {
        let Some(before) = before else { return };
        let committed =
            after.intent.in_force.as_ref().is_some_and(|placement| placement.epoch == before.epoch);
        if !committed
            || after.intent.operation.as_ref().is_some_and(|operation| operation.epoch == before.epoch)
        {
            return;
        }
        let labels = KindLabels { kind: format!("{:?}", before.kind) };
        self.operations.get_or_create(&labels).inc();
        if let Ok(started) = before.started.parse::<Timestamp>() {
            let seconds = now.as_second().saturating_sub(started.as_second());
            self.seconds.get_or_create(&labels).observe(seconds as f64);
        }
    }

    /// What must hold does not.
    pub fn violation(&self, invariant: &str) {
        self.violations.get_or_create(&InvariantLabels { invariant: invariant.to_owned() }).inc();
    }
}
