//! `spec.rollout`.
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::KubeSchema;
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};

/// How a changed spec reaches the groups that run.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("!((self.maxSurge == 0 || self.maxSurge == '0%') && (self.maxUnavailable == 0 || self.maxUnavailable == '0%'))")
        .message("maxSurge and maxUnavailable must not both be 0: no group could ever be replaced").field_path(".maxSurge")
)]
pub struct RolloutSpec {
    /// RollingUpdate: groups of the new revision are started, and once they are ready groups of the old one are
    /// drained and removed, within maxSurge and maxUnavailable.
    #[serde(default)]
    pub strategy: RolloutStrategy,

    /// How many groups there may be on top of spec.replicas during a rollout: a number, or a percentage of
    /// spec.replicas (rounded up). Groups that drain count, because they still hold their devices.
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
    /// spec.replicas asks for are made from the revision before, while groups of it are left.
    #[serde(default)]
    pub progress: RolloutProgress,

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

impl Default for RolloutSpec {
    fn default() -> Self {
        Self {
            strategy: RolloutStrategy::default(),
            max_surge: default_max_surge(),
            max_unavailable: default_max_unavailable(),
            partition: 0,
            progress: RolloutProgress::default(),
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
