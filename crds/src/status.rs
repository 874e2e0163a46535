//! `status`: what was observed, never what is wished for.
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

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

    /// Groups that take requests: every worker is ready and the group does not drain.
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

    /// Every group that exists.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub groups: Vec<GroupStatus>,
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
}

/// One group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
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

    /// Progress of reading the checkpoint, summed over the workers. Absent once every worker is ready.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub loading: Option<LoadingStatus>,

    /// What the group waits for, or why it fails. Absent when all is well.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub message: Option<String>,
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
