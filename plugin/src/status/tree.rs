//! What `status` shows. Field names are those of `-o json`: they stay.
use serde::Serialize;
use serde_json::Value;

/// A deployment.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Tree {
    /// Its name.
    pub name: String,
    /// Its namespace.
    pub namespace: String,
    /// What clients ask for.
    pub model: String,
    /// When this was seen (RFC 3339).
    pub time: String,
    /// Whether the operator has seen the newest spec.
    pub observed: bool,
    /// Groups that are wanted.
    pub desired: i64,
    /// Groups that are complete.
    pub ready: i64,
    /// Groups of the newest revision.
    pub updated: i64,
    /// How groups are replaced.
    pub strategy: String,
    /// All conditions.
    pub conditions: Vec<ConditionView>,
    /// `status.rollout` as the operator wrote it; absent if it did not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rollout: Option<Value>,
    /// Revisions that have groups or a share of requests, that of the spec first.
    pub revisions: Vec<RevisionView>,
    /// The last events, the newest first.
    pub events: Vec<EventView>,
}

/// A condition.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct ConditionView {
    /// Its type.
    #[serde(rename = "type")]
    pub kind: String,
    /// True, False or Unknown.
    pub status: String,
    /// One word.
    pub reason: String,
    /// Its message.
    pub message: String,
}

impl ConditionView {
    /// Whether somebody should do something about it.
    pub fn is_trouble(&self) -> bool {
        matches!(
            (self.kind.as_str(), self.status.as_str()),
            ("Degraded", "True") | ("ExpertsCovered" | "Available", "False")
        )
    }
}

/// A revision.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct RevisionView {
    /// Its name.
    pub name: String,
    /// What the spec makes of it.
    pub age: Age,
    /// Its share of new requests in percent; absent if no shares are set.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_percent: Option<i64>,
    /// Stable, Canary or Preview.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub traffic_role: Option<String>,
    /// Its groups.
    pub groups: Vec<GroupView>,
}

/// What the spec makes of a revision.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Age {
    /// It asks for it.
    Updated,
    /// It was rolled out completely before.
    Current,
    /// Any other.
    #[default]
    Older,
}

/// A group.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct GroupView {
    /// Its name.
    pub name: String,
    /// Workers that take requests.
    pub ready_workers: u32,
    /// Workers that it is made of.
    pub workers: u32,
    /// Since when it drains (RFC 3339); absent if it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub draining_since: Option<String>,
    /// Whether it drains; the time of it may be unknown.
    pub draining: bool,
    /// Requests that its workers have; absent if none of them tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<u64>,
    /// Reading of the checkpoint, summed over the workers that load; absent if none does.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadView>,
    /// What the operator says that it waits for.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
    /// Its pods, by worker.
    pub pods: Vec<PodView>,
}

/// Bytes that are being read.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct LoadView {
    /// That were read.
    pub bytes_done: u64,
    /// To read.
    pub bytes_total: u64,
    /// Bytes a second: since the last look, or else on average since the worker's start; absent if nothing tells.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub bytes_per_second: Option<u64>,
    /// Seconds until all are read, at that rate.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<u64>,
}

/// A pod.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct PodView {
    /// Its name.
    pub name: String,
    /// Index of its worker.
    pub worker: u32,
    /// Its node; empty while it has none.
    pub node: String,
    /// READY, LOADING, … as its worker tells; else what its pod is: Unscheduled, Pending, Running, Terminating, ...
    pub phase: String,
    /// Who told the phase.
    pub told_by: Teller,
    /// Whether it takes requests: the kubelet finds it ready, and its worker does not say otherwise.
    pub ready: bool,
    /// Whether its worker takes no new requests.
    pub draining: bool,
    /// Times that its container was restarted.
    pub restarts: i32,
    /// Requests that its worker has.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<u64>,
    /// Bytes of experts that its ranks hold.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub expert_bytes: Option<u64>,
    /// Reading of the checkpoint.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadView>,
    /// What it waits for, what is wrong with it, or why its worker was not heard.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Who told about a pod.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub enum Teller {
    /// Its worker.
    Worker,
    /// The API server alone.
    #[default]
    Pod,
}

/// An event.
#[derive(Clone, Debug, Default, PartialEq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct EventView {
    /// When it was seen last (RFC 3339).
    pub time: String,
    /// Seconds ago.
    pub age_seconds: u64,
    /// Normal or Warning.
    #[serde(rename = "type")]
    pub kind: String,
    /// One word.
    pub reason: String,
    /// What it is about: a group or a pod; empty for the deployment.
    pub subject: String,
    /// Its message.
    pub message: String,
    /// How often it was seen.
    pub count: i64,
}
