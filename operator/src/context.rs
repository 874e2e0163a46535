//! What every reconcile has at hand.
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node;
use kube::{
    Client,
    runtime::{events::Recorder, reflector::Store},
};

use crate::{
    analysis::Analyses, attendance::Attendance, autoscaler::Autoscaler, backoff::Backoff, cache::Cache,
    faults::Faults, gateways::Gateways, loads::Loads, metrics::Metrics, warnings::Warnings,
    worker_client::WorkerClient,
};

/// Decisions of whoever runs the operator.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Worker image of specs that name none.
    pub worker_image: Option<String>,
    /// Seconds without a sign of life after which a node's pods are given up.
    pub node_lost_seconds: i64,
}

/// What every reconcile has at hand.
pub struct Context {
    /// The API server.
    pub client: Client,
    /// What deployments own, kept up to date by watches.
    pub cache: Cache,
    /// The nodes, kept up to date by a watch.
    pub nodes: Store<Node>,
    /// The workers' admin service.
    pub workers: WorkerClient,
    /// Since when slots have a worker or lack one.
    pub attendance: Attendance,
    /// Faults of devices that their nodes report.
    pub faults: Faults,
    /// Load of the experts, as last asked for.
    pub loads: Loads,
    /// What gateways measure.
    pub gateways: Arc<Gateways>,
    /// What autoscaling remembers.
    pub autoscaler: Autoscaler,
    /// What is being looked at of new revisions.
    pub analyses: Analyses,
    /// Warnings about pods that do not start, as last asked for.
    pub warnings: Warnings,
    /// Settings.
    pub settings: Settings,
    /// Publishes events.
    pub recorder: Recorder,
    /// What `/metrics` shows.
    pub metrics: Metrics,
    /// How long to leave a failing deployment alone.
    pub backoff: Backoff,
}
