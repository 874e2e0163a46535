//! `spec.experts`.
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// Copies of the routed experts, and when they move. No part of a revision: a change moves experts, never pods.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ExpertsSpec {
    /// Copies of every expert, each on another worker of the group; at most group.workers. With 2 or more the loss of
    /// a worker costs no expert.
    #[serde(default = "default_min_copies")]
    #[schemars(range(min = 1, max = 256))]
    pub min_copies: i32,

    /// Copies in each layer beyond those, for the experts with most load.
    #[serde(default)]
    #[schemars(range(min = 0, max = 4096))]
    pub redundant: i32,

    /// When load is spread anew over the ranks.
    #[serde(default)]
    pub rebalance: RebalanceSpec,
}

/// When load is spread anew over the ranks of a group.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct RebalanceSpec {
    /// OnImbalance: by itself, when the busiest ranks have clearly more to do than others and a move pays. Manual: only
    /// when the annotation serving.belay.dev/rebalance of the ModelDeployment changes. Off: never.
    #[serde(default)]
    pub policy: RebalancePolicy,

    /// Imbalance from which a move is considered, in percent: what the busiest rank of each layer has to do, compared
    /// with the mean rank. 100 is even.
    #[serde(default = "default_threshold_percent")]
    #[schemars(range(min = 101, max = 10000))]
    pub threshold_percent: i32,

    /// Seconds between two rebalances of a group at least.
    #[serde(default = "default_min_interval_seconds")]
    #[schemars(range(min = 5, max = 86400))]
    pub min_interval_seconds: i32,
}

/// When load is spread anew.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum RebalancePolicy {
    /// Never.
    Off,
    /// When it is worth it.
    #[default]
    OnImbalance,
    /// When the annotation changes.
    Manual,
}

impl Default for ExpertsSpec {
    fn default() -> Self {
        Self { min_copies: default_min_copies(), redundant: 0, rebalance: RebalanceSpec::default() }
    }
}

impl Default for RebalanceSpec {
    fn default() -> Self {
        Self {
            policy: RebalancePolicy::default(),
            threshold_percent: default_threshold_percent(),
            min_interval_seconds: default_min_interval_seconds(),
        }
    }
}

fn default_min_copies() -> i32 {
    1
}

fn default_threshold_percent() -> i32 {
    130
}

fn default_min_interval_seconds() -> i32 {
    300
}
