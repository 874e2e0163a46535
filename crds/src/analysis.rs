//! `spec.rollout.analysis`.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// What is looked at before a canary or preview gets more, and what takes it back. The new revision is compared with the
/// old one over the same time, by what the gateways measure.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct AnalysisSpec {
    /// Rollback: a bad verdict takes the new revision back. Report: verdicts are told in status and events, and change nothing.
    #[serde(default)]
    pub policy: AnalysisPolicy,

    /// How often a verdict is given.
    #[serde(default = "default_interval_seconds")]
    #[schemars(range(min = 1, max = 3600))]
    pub interval_seconds: i32,

    /// Requests that the new revision must have answered in a step before it counts as looked at.
    #[serde(default = "default_min_requests")]
    #[schemars(range(min = 0, max = 1000000))]
    pub min_requests: i32,

    /// How long a step waits for them after its hold, and for more where a check is undecided. Then it goes on with what else is
    /// known: readiness, restarts, parity, queries. 0: it waits for as long as it takes.
    #[serde(default = "default_wait_for_requests_seconds")]
    #[schemars(range(min = 0, max = 604800))]
    pub wait_for_requests_seconds: i32,

    /// Share of requests that the new revision may fail. It is bad if it fails more than that and more than the old one, both
    /// beyond chance.
    #[serde(default = "default_max_error_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub max_error_percent: i32,

    /// By how much the time to the first token may be longer than the old revision's, in percent. It is bad if it is longer
    /// than that beyond chance.
    #[serde(default = "default_max_increase_percent")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_time_to_first_token_increase_percent: i32,

    /// The same for the time between two tokens.
    #[serde(default = "default_max_increase_percent")]
    #[schemars(range(min = 0, max = 10000))]
    pub max_inter_token_increase_percent: i32,

    /// How often workers of the new revision may be restarted in a rollout.
    #[serde(default)]
    #[schemars(range(min = 0, max = 1000))]
    pub max_restarts: i32,

    /// Prompts that both revisions are asked, before the new one gets any share.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub parity: Option<ParitySpec>,

    /// Measures of your own, asked of a Prometheus.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 20))]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub queries: Vec<QuerySpec>,
}

/// What a bad verdict leads to.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AnalysisPolicy {
    /// The new revision is taken back.
    #[default]
    Rollback,
    /// It is told.
    Report,
}

/// Prompts that both revisions answer greedily, and how much the answers may differ.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ParitySpec {
    /// What is asked, as plain text: nothing is added to it.
    #[schemars(length(min = 1, max = 100))]
    pub prompts: Vec<String>,

    /// Tokens of each answer.
    #[serde(default = "default_max_tokens")]
    #[schemars(range(min = 1, max = 1024))]
    pub max_tokens: i32,

    /// Share of the tokens, over all prompts, that must be the same. Of an answer, what follows the first difference does not
    /// count as the same.
    #[serde(default = "default_min_same_percent")]
    #[schemars(range(min = 0, max = 100))]
    pub min_same_percent: i32,

    /// By how much log-probabilities of tokens that are the same may differ on average, in thousandths. Absent: any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100000))]
    pub max_logprob_difference_thousandths: Option<i32>,
}

/// A measure of your own: a PromQL query whose result is one number.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("has(self.min) || has(self.max)")
        .message("min or max must be set: without a bound nothing is decided").field_path(".max")
)]
pub struct QuerySpec {
    /// What it is called in status and events.
    #[schemars(length(min = 1, max = 63))]
    pub name: String,

    /// Address of the Prometheus: http://HOST:PORT, and a path if it has one.
    #[schemars(regex(pattern = "^http://[^ /]+(/[^ ]*)?$"), length(max = 512))]
    pub address: String,

    /// The query. {{revision}}, {{stable}}, {{namespace}} and {{name}} stand for the new and the old revision and for the
    /// ModelDeployment.
    #[schemars(length(min = 1, max = 4096))]
    pub query: String,

    /// Bad below this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^-?[0-9]{1,15}(\\.[0-9]{1,9})?$"))]
    pub min: Option<String>,

    /// Bad above this number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(regex(pattern = "^-?[0-9]{1,15}(\\.[0-9]{1,9})?$"))]
    pub max: Option<String>,
}

impl Default for AnalysisSpec {
    fn default() -> Self {
        Self {
            policy: AnalysisPolicy::default(),
            interval_seconds: default_interval_seconds(),
            min_requests: default_min_requests(),
            wait_for_requests_seconds: default_wait_for_requests_seconds(),
            max_error_percent: default_max_error_percent(),
            max_time_to_first_token_increase_percent: default_max_increase_percent(),
            max_inter_token_increase_percent: default_max_increase_percent(),
            max_restarts: 0,
            parity: None,
            queries: vec![],
        }
    }
}

fn default_interval_seconds() -> i32 {
    15
}

fn default_min_requests() -> i32 {
    30
}

fn default_wait_for_requests_seconds() -> i32 {
    600
}

fn default_max_error_percent() -> i32 {
    1
}

fn default_max_increase_percent() -> i32 {
    20
}

fn default_max_tokens() -> i32 {
    64
}

fn default_min_same_percent() -> i32 {
    100
}
