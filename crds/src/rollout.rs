//! `spec.rollout`.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

use crate::AnalysisSpec;

/// How a changed spec reaches the groups that run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!((self.maxSurge == 0 || self.maxSurge == '0%') && (self.maxUnavailable == 0 || self.maxUnavailable == '0%'))")
        .message("maxSurge and maxUnavailable must not both be 0: no group could ever be replaced").field_path(".maxSurge"),
    validation = Rule::new("self.strategy != 'Canary' || !(self.maxSurge == 0 || self.maxSurge == '0%')")
        .message("maxSurge must not be 0 with strategy Canary: a canary is a group more").field_path(".maxSurge"),
    validation = Rule::new("!has(self.canary) || self.strategy == 'Canary'")
        .message("canary goes with strategy Canary only").field_path(".canary"),
    validation = Rule::new("!has(self.blueGreen) || self.strategy == 'BlueGreen'")
        .message("blueGreen goes with strategy BlueGreen only").field_path(".blueGreen"),
    validation = Rule::new("!has(self.analysis) || self.strategy != 'RollingUpdate'")
        .message("analysis compares two revisions side by side: it goes with strategy Canary or BlueGreen").field_path(".analysis"),
    validation = Rule::new("self.partition == 0 || self.strategy == 'RollingUpdate'")
        .message("partition goes with strategy RollingUpdate only; a canary has steps").field_path(".partition")
)]
pub struct RolloutSpec {
    /// RollingUpdate: groups of the new revision are started, and once they are ready groups of the old one are
    /// drained and removed, within maxSurge and maxUnavailable. Canary: the new revision gets a growing share of the requests,
    /// and of the groups, step by step. BlueGreen: all groups of the new revision are started beside the old ones, which takes
    /// twice the devices; then all requests go over at once.
    #[serde(default)]
    pub strategy: RolloutStrategy,

    /// How many groups there may be on top of spec.replicas during a rollout: a number, or a percentage of
    /// spec.replicas (rounded up). Groups that drain count, because they still hold their devices. With strategy BlueGreen
    /// there may be as many more as spec.replicas in any case.
    #[serde(default = "default_max_surge")]
    #[schemars(schema_with = "groups_or_percent")]
    pub max_surge: IntOrString,

    /// How many of spec.replicas may be missing during a rollout: a number, or a percentage of spec.replicas
    /// (rounded down; if it and maxSurge both come to 0, it counts as 1).
    #[serde(default = "default_max_unavailable")]
    #[schemars(schema_with = "groups_or_percent")]
    pub max_unavailable: IntOrString,

    /// How many groups stay with the revision before while the others are replaced: a rollout to some, for as long as
    /// somebody wants to look at it. Lower it to go on; raise it to spec.replicas to take the rollout back.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub partition: i32,

    /// Automatic: a rollout goes on as groups get ready. Paused: it stays where it is; groups that are lost or that
    /// spec.replicas asks for are made from the revision before, while groups of it are left. A canary or preview that is
    /// paused keeps its share, and is still analysed.
    #[serde(default)]
    pub progress: RolloutProgress,

    /// After how many seconds in which no group of the new revision has got ready the rollout counts as stuck: the condition
    /// Progressing says so, and a canary or preview that is analysed with policy Rollback is taken back. 0: never.
    #[serde(default = "default_progress_deadline_seconds")]
    #[schemars(range(min = 0, max = 604800))]
    pub progress_deadline_seconds: i32,

    /// The steps of strategy Canary.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub canary: Option<CanarySpec>,

    /// The times of strategy BlueGreen.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blue_green: Option<BlueGreenSpec>,

    /// What is looked at before a canary or preview gets more, and what takes it back. Absent: only time and readiness count.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub analysis: Option<AnalysisSpec>,

    /// How many seconds requests under way get to finish before a group is removed. A group without requests is
    /// removed at once. A request that is cut off is continued on another group by the gateway.
    #[serde(default = "default_drain_seconds")]
    #[schemars(range(min = 0, max = 86400))]
    pub drain_seconds: i32,
}

/// How groups are replaced.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutStrategy {
    /// Group by group, within maxSurge and maxUnavailable.
    #[default]
    RollingUpdate,
    /// A growing share of the requests goes to the new revision.
    Canary,
    /// All requests go over at once, when all groups of the new revision are ready.
    BlueGreen,
}

/// Whether a rollout goes on.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RolloutProgress {
    /// As groups get ready.
    #[default]
    Automatic,
    /// It stays where it is.
    Paused,
}

/// The steps of a canary.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.steps.map(s, s.weightPercent).isSorted() && self.steps.all(s, self.steps.exists_one(t, t.weightPercent == s.weightPercent))")
        .message("weightPercent must grow from step to step").field_path(".steps")
)]
pub struct CanarySpec {
    /// One after the other; after the last one the new revision replaces the old one.
    #[serde(default = "default_steps")]
    #[schemars(length(min = 1, max = 20))]
    pub steps: Vec<CanaryStep>,
}

/// A step of a canary.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct CanaryStep {
    /// Share of new requests that goes to the new revision. So many percent of spec.replicas, rounded up, are groups of it.
    #[schemars(range(min = 1, max = 100))]
    pub weight_percent: i32,

    /// How long the step lasts, counted from when its groups are ready and have their share. Longer if spec.rollout.analysis
    /// has not seen enough yet.
    #[serde(default = "default_hold_seconds")]
    #[schemars(range(min = 0, max = 604800))]
    pub hold_seconds: i32,
}

/// The times of a blue/green rollout.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct BlueGreenSpec {
    /// Automatic: requests go over when the preview is ready and has been there for previewSeconds. Manual: somebody has to
    /// say so, with kubectl belay rollout promote.
    #[serde(default)]
    pub promotion: Promotion,

    /// How long the new revision is only reached by those who ask for it (as model NAME@preview) once all its groups are
    /// ready.
    #[serde(default)]
    #[schemars(range(min = 0, max = 604800))]
    pub preview_seconds: i32,

    /// How long groups of the old revision are kept after requests have gone over, to go back at once.
    #[serde(default = "default_keep_old_seconds")]
    #[schemars(range(min = 0, max = 604800))]
    pub keep_old_seconds: i32,
}

/// Who decides that a preview takes over.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Promotion {
    /// The operator.
    #[default]
    Automatic,
    /// A person.
    Manual,
}

impl Default for CanarySpec {
    fn default() -> Self {
        Self { steps: default_steps() }
    }
}

impl Default for BlueGreenSpec {
    fn default() -> Self {
        Self {
            promotion: Promotion::default(),
            preview_seconds: 0,
            keep_old_seconds: default_keep_old_seconds(),
        }
    }
}

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            max_surge: default_max_surge(),
            max_unavailable: default_max_unavailable(),
            partition: 0,
            progress: RolloutProgress::default(),
            progress_deadline_seconds: default_progress_deadline_seconds(),
            canary: None,
            blue_green: None,
            analysis: None,
            drain_seconds: default_drain_seconds(),
        }
    }
}

fn default_max_surge() -> IntOrString {
    IntOrString::Int(1)
}

fn default_max_unavailable() -> IntOrString {
    IntOrString::Int(0)
}

fn default_progress_deadline_seconds() -> i32 {
    3600
}

fn default_steps() -> Vec<CanaryStep> {
    [10, 50].map(|weight_percent| CanaryStep { weight_percent, hold_seconds: default_hold_seconds() }).into()
}

fn default_hold_seconds() -> i32 {
    60
}

fn default_keep_old_seconds() -> i32 {
    60
}

fn default_drain_seconds() -> i32 {
    300
}

/// A count of groups, or a percentage from 0% to 100%.
fn groups_or_percent(_: &mut SchemaGenerator) -> Schema {
    json_schema!({
        "x-kubernetes-int-or-string": true,
        "minimum": 0,
        "maximum": 1000,
        "pattern": "^(100|[1-9]?[0-9])%$",
    })
}
