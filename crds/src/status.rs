//! `status`: what was observed, never what is wished for.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::AutoscalingStatus;

/// What the operator has seen.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ModelDeploymentStatus {
    /// The metadata.generation that this status is about.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub observed_generation: Option<i64>,

    /// Groups that exist, also those that start or drain.
    #[serde(default)]
    pub replicas: i32,

    /// Complete groups: every worker is ready and the group does not drain. Further groups may take requests: Available
    /// tells.
    #[serde(default)]
    pub ready_replicas: i32,

    /// Groups of the newest revision that do not drain.
    #[serde(default)]
    pub updated_replicas: i32,

    /// Selects one pod of each group, so that an autoscaler that counts pods counts groups.
    #[serde(default)]
    pub selector: String,

    /// The revision that is completely rolled out: during a rollout the one that is being replaced.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current_revision: Option<String>,

    /// The revision of the present spec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub updated_revision: Option<String>,

    /// Available, Progressing, ExpertsCovered and Degraded.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["type".into()]))]
    pub conditions: Vec<Condition>,

    /// Copies of the experts, over all groups that do not drain.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<ExpertsStatus>,

    /// How gateways share new requests among revisions. Absent: a worker is as good as another, whatever its revision.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["revision".into()]))]
    pub traffic: Vec<TrafficStatus>,

    /// The rollout that is under way, or that was the last one.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rollout: Option<RolloutStatus>,
    /// What autoscaling makes of what it sees. Absent without spec.autoscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub autoscaling: Option<AutoscalingStatus>,

    /// Every group that exists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub groups: Vec<GroupStatus>,
}

/// What a revision gets of new requests.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct TrafficStatus {
    /// The revision.
    pub revision: String,

    /// Its share. Shares of all revisions add up to 100. A revision that is not listed gets none; one whose workers all take
    /// no requests leaves its share to the others.
    pub weight_percent: i32,

    /// Stable, Canary or Preview. Clients may ask for it by name: MODEL@stable, MODEL@canary, MODEL@preview.
    pub role: TrafficRole,
}

/// What a revision is in a rollout.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum TrafficRole {
    /// What was there before, or what has been promoted.
    #[default]
    Stable,
    /// New, and given a growing share.
    Canary,
    /// New, and reached only by those who ask for it, until it takes over at once.
    Preview,
}

/// A rollout.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct RolloutStatus {
    /// The new revision.
    pub revision: String,

    /// The one that it is compared with, and that is gone back to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub stable_revision: Option<String>,

    /// Complete, Replacing, Starting, Holding, WaitingForPromotion, Paused, Partitioned, Stuck or RolledBack.
    pub phase: String,

    /// Which step of a canary it is at, from 1.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub step: Option<i32>,

    /// How many steps there are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub steps: Option<i32>,

    /// Share of new requests that the new revision has, in percent. Absent: as many as its groups take.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub weight_percent: Option<i32>,

    /// Since when the step's groups are ready and have its share (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,

    /// What it waits for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,

    /// What the last look at the new revision has found.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub analysis: Vec<CheckStatus>,

    /// The last revision that was taken back.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rollback: Option<LastRollback>,
}

/// One thing that was looked at.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CheckStatus {
    /// Errors, FirstToken, InterToken, Restarts, Parity, or the name of a query.
    pub name: String,

    /// Good, Bad, Undecided (it looks worse, perhaps by chance), TooFew (not enough to tell) or Pending.
    pub verdict: String,

    /// The numbers behind it.
    pub message: String,
}

/// A revision that was taken back.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct LastRollback {
    /// The revision.
    pub revision: String,

    /// Why, in a word.
    pub reason: String,

    /// Why, with numbers.
    pub message: String,

    /// When (RFC 3339).
    pub time: String,
}

/// Copies of the experts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExpertsStatus {
    /// Routed experts of the model: layers times experts in a layer.
    pub total: i64,

    /// Copies that live on some rank of a loaded worker, over all groups.
    pub copies: i64,

    /// Live copies of the expert that has the fewest, over all groups.
    pub min_live_copies: i64,

    /// Imbalance of the group that is farthest from even, in percent: what the busiest rank of each layer has to do,
    /// compared with the mean rank. 100 is even. Absent while too few tokens were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imbalance_percent: Option<i64>,

    /// Highest epoch of a placement in force.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_epoch: Option<i64>,
}

/// One group.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GroupStatus {
    /// Name of the group; its pods are called <name>-<worker>.
    pub name: String,

    /// Revision that its pods are made from.
    pub revision: String,

    /// Workers that take requests.
    pub ready_workers: i32,

    /// Workers that the group is made of.
    pub workers: i32,

    /// Whether the group takes no new requests because it is about to be removed.
    #[serde(default)]
    pub draining: bool,

    /// Requests under way, while the group drains.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub requests_in_flight: Option<i64>,

    /// Increases with every change of where the group's experts are. Absent until the first placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub placement_epoch: Option<i64>,

    /// Copies of the experts in this group. Absent until the first placement.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub experts: Option<GroupExpertsStatus>,

    /// Workers of the placement that are lost: by index. Their ranks are the devicesPerWorker ones from index times
    /// devicesPerWorker on.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub lost_workers: Vec<i32>,

    /// The change of placement that is under way.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub operation: Option<OperationStatus>,

    /// The last time that load was spread anew.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_rebalance: Option<LastRebalance>,

    /// What each rank holds, as its worker says. Left out for groups of more than 64 ranks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["rank".into()]))]
    pub ranks: Vec<RankStatus>,

    /// Progress of reading the checkpoint, summed over the workers. Absent once every worker is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadingStatus>,

    /// What the group waits for, or why it fails. Absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
}

/// Copies of the experts in a group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct GroupExpertsStatus {
    /// Experts (of all layers) with a live copy.
    pub covered: i64,

    /// Experts of the model: layers times experts in a layer.
    pub total: i64,

    /// Live copies of the expert that has the fewest.
    pub min_live_copies: i64,

    /// Copies that workers hold for lost ranks, beyond the placement.
    #[serde(default)]
    pub adopted: i64,

    /// Copies that spec.experts asks for and that the placement does not have, because workers or room are missing.
    #[serde(default)]
    pub missing_copies: i64,

    /// What the busiest rank of each layer has to do, compared with the mean rank, in percent. Absent while too few
    /// tokens were counted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub imbalance_percent: Option<i64>,
}

/// A change of placement that is under way.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct OperationStatus {
    /// Recover, Rebalance, Evacuate or Respecify.
    pub kind: String,

    /// Prepare: copies are loaded. Commit: workers take the new placement over. Retire: copies go.
    pub phase: String,

    /// Epoch that it leads to.
    pub epoch: i64,

    /// Why.
    pub reason: String,

    /// When it began (RFC 3339).
    pub started: String,

    /// Bytes of experts that were loaded for it.
    pub bytes_done: i64,

    /// Bytes of experts to load for it.
    pub bytes_total: i64,

    /// Seconds until everything is loaded, at the rate so far.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub eta_seconds: Option<i64>,

    /// Whom it waits for, and why.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub waiting_for: Option<String>,
}

/// The last time that load was spread anew over the ranks of a group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LastRebalance {
    /// When the new placement came into force (RFC 3339).
    pub time: String,

    /// Imbalance before, in percent.
    pub before_percent: i64,

    /// Imbalance after, as expected from the load before, in percent.
    pub after_percent: i64,

    /// Imbalance that was measured some minutes later, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub measured_percent: Option<i64>,

    /// Bytes of experts that were loaded for it.
    pub moved_bytes: i64,

    /// OnImbalance, or the value of the annotation that asked for it.
    pub reason: String,
}

/// What one rank holds.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RankStatus {
    /// Its number in the group.
    pub rank: i32,

    /// Index of its worker.
    pub worker: i32,

    /// Copies of experts.
    pub experts: i64,

    /// Their bytes.
    pub expert_bytes: i64,
}

/// Progress of reading the checkpoint.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct LoadingStatus {
    /// Bytes that were read.
    pub bytes_done: i64,

    /// Bytes to read.
    pub bytes_total: i64,
}
