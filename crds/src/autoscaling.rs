//! `spec.autoscaling`, and what the status says about it.
use kube::KubeSchema;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How spec.replicas follows what clients ask for.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("self.minReplicas <= self.maxReplicas")
        .message("autoscaling.minReplicas must be at most autoscaling.maxReplicas").field_path(".minReplicas"),
    validation = Rule::new("!has(self.idleSecondsToZero) || self.minReplicas == 0")
        .message("autoscaling.idleSecondsToZero needs autoscaling.minReplicas 0: otherwise there is no way to zero").field_path(".idleSecondsToZero"),
    validation = Rule::new("!has(self.schedule) || self.schedule.all(w, (has(w.minReplicas) ? w.minReplicas : self.minReplicas) <= (has(w.maxReplicas) ? w.maxReplicas : self.maxReplicas))")
        .message("autoscaling.schedule: minReplicas must be at most maxReplicas in each window, also where one of them comes from outside of it").field_path(".schedule")
)]
pub struct AutoscalingSpec {
    /// Automatic: spec.replicas is set. Report: status.autoscaling only says what it would be set to.
    #[serde(default)]
    pub mode: AutoscalingMode,

    /// Fewest groups. 0: all groups are removed after idleSecondsToZero without a request, and the first request that
    /// comes afterwards waits at the gateway while one is started.
    #[serde(default = "default_min_replicas")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: i32,

    /// Most groups.
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: i32,

    /// How many tokens may wait at gateways for each group: prompts, and answers as far as they can be foreseen. Of several
    /// targets the one that asks for most groups counts.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000000))]
    pub target_queued_tokens_per_replica: Option<i64>,

    /// How many tokens each group may have before it, those that wait at gateways included. 16384 if there is no target at
    /// all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000000000))]
    pub target_outstanding_tokens_per_replica: Option<i64>,

    /// Nine of ten requests of the last minute should have had their first token after so many milliseconds. A longer
    /// time asks for at most twice the groups that are ready; one below four fifths of it lets groups go.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 3600000))]
    pub target_time_to_first_token_milliseconds: Option<i64>,

    /// How full the caches of the ready groups' workers may be with running requests, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 100))]
    pub target_kv_use_percent: Option<i32>,

    /// How fast it may go up and down: as in a HorizontalPodAutoscaler.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub behavior: Option<ScalingBehavior>,

    /// Seconds without any request at any gateway after which all groups are removed, if minReplicas is 0. Default: 600.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 604800))]
    pub idle_seconds_to_zero: Option<i32>,

    /// Times with other bounds. Where windows overlap, the largest minReplicas and the largest maxReplicas count.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 32))]
    pub schedule: Vec<ScheduleWindow>,

    /// Whether spec.replicas also follows the load while groups of an old revision are being replaced. Hold: only bounds,
    /// and a request that waits while there is no group, change it meanwhile.
    #[serde(default)]
    pub during_rollout: DuringRollout,
}

/// Whether spec.replicas is set.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AutoscalingMode {
    /// It is.
    #[default]
    Automatic,
    /// It is only said what it would be set to.
    Report,
}

/// What becomes of autoscaling during a rollout.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DuringRollout {
    /// It goes on.
    #[default]
    Continue,
    /// It waits for the end of the rollout.
    Hold,
}

/// How fast it may go up and down.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingBehavior {
    /// Up. Default: at once, by 100 percent or 4 groups in 15 seconds, whichever is more.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_up: Option<ScalingRules>,

    /// Down. Default: to the largest number of groups that was asked for within 300 seconds, by up to 100 percent in 15
    /// seconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub scale_down: Option<ScalingRules>,
}

/// How fast it may go in one direction.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingRules {
    /// Of everything that was asked for within so many seconds, what changes least is done. Default: 0 up, 300 down.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 3600))]
    pub stabilization_window_seconds: Option<i32>,

    /// Most that may change in a while. Default: see above.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 16))]
    pub policies: Vec<ScalingPolicy>,

    /// Which of the policies counts. Disabled: it never goes in this direction.
    #[serde(default)]
    pub select_policy: SelectPolicy,

    /// By how many percent a measurement must differ from its target before anything is done about it. Default: 10.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 100))]
    pub tolerance_percent: Option<i32>,
}

/// Most that may change in a while.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingPolicy {
    /// What value counts.
    #[serde(rename = "type")]
    pub kind: ScalingPolicyType,

    /// So many groups, or so many percent of the groups at the beginning of the period (rounded up).
    #[schemars(range(min = 1, max = 100000))]
    pub value: i32,

    /// Within any so many seconds.
    #[schemars(range(min = 1, max = 1800))]
    pub period_seconds: i32,
}

/// What the value of a policy counts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
pub enum ScalingPolicyType {
    /// Groups.
    Groups,
    /// Percent of the groups at the beginning of the period.
    Percent,
}

/// Which of several policies counts.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum SelectPolicy {
    /// The one that lets most change.
    #[default]
    Max,
    /// The one that lets least change.
    Min,
    /// None: nothing changes in this direction.
    Disabled,
}

/// A time with other bounds. It comes again on each of its days.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
#[x_kube(
    cel,
    validation = Rule::new("has(self.minReplicas) || has(self.maxReplicas)")
        .message("a window of autoscaling.schedule must set minReplicas or maxReplicas")
)]
pub struct ScheduleWindow {
    /// Days on which it begins. Default: every day.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 7))]
    pub days: Vec<Weekday>,

    /// When it begins: hours and minutes of the day, as 07:30. If clocks are set forward over it, as much later as they are
    /// set; if they are set back over it, the first time.
    #[schemars(regex(pattern = "^([01][0-9]|2[0-3]):[0-5][0-9]$"))]
    pub start: String,

    /// How long it lasts, in minutes.
    #[schemars(range(min = 1, max = 10080))]
    pub duration_minutes: i32,

    /// Time zone of days and start, by its name in the IANA database, as Europe/Berlin.
    #[serde(default = "default_time_zone")]
    #[schemars(length(min = 1, max = 64))]
    pub time_zone: String,

    /// Fewest groups meanwhile. Default: that of spec.autoscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 0, max = 1000))]
    pub min_replicas: Option<i32>,

    /// Most groups meanwhile. Default: that of spec.autoscaling.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(range(min = 1, max = 1000))]
    pub max_replicas: Option<i32>,
}

/// A day of the week.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "days")]
pub enum Weekday {
    Monday,
    Tuesday,
    Wednesday,
    Thursday,
    Friday,
    Saturday,
    Sunday,
}

fn default_min_replicas() -> i32 {
    1
}

fn default_time_zone() -> String {
    "UTC".to_owned()
}

/// What autoscaling makes of what it sees.
#[derive(KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct AutoscalingStatus {
    /// Groups that it wants at the moment: with mode Automatic, what spec.replicas was set to.
    pub desired_replicas: i32,

    /// Fewest groups at this time of the schedule.
    pub min_replicas: i32,

    /// Most groups at this time of the schedule.
    pub max_replicas: i32,

    /// Why not more, and why not fewer.
    pub reason: ScalingReason,

    /// The same for people, with numbers.
    pub message: String,

    /// When spec.replicas was last set (RFC 3339).
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last_scale_time: Option<String>,

    /// What it goes by. Numbers are renewed when something is decided by them, and every half minute if they change much.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[x_kube(merge_strategy = ListMerge::Map(vec!["name".into()]))]
    pub metrics: Vec<ScalingMetricStatus>,

    /// Tokens (prompts and answers) in a second that a group was seen to do while there was enough to do for all. Absent
    /// until that was so.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tokens_per_second_per_replica: Option<i64>,

    /// When and how spec.replicas was set: the newest ones, oldest first. Policies count by them, also after the
    /// operator was started anew.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub recent_scales: Vec<ScaleRecord>,
}

/// A measurement and its target.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScalingMetricStatus {
    /// The field of spec.autoscaling that has the target.
    pub name: String,

    /// What was measured, for each group where the target is so. Absent while nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub current: Option<i64>,

    /// What it should be.
    pub target: i64,

    /// Groups that it asks for by itself. Absent while nothing is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub replicas: Option<i32>,
}

/// spec.replicas was set.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct ScaleRecord {
    /// When (RFC 3339).
    pub time: String,

    /// From.
    pub from: i32,

    /// To.
    pub to: i32,

    /// Why.
    pub reason: ScalingReason,
}

/// Why autoscaling wants what it wants. Names are stable.
#[derive(JsonSchema, Serialize, Deserialize, Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum ScalingReason {
    /// What is there is what the load asks for.
    #[default]
    AsLoadAsks,
    /// More is needed, and started.
    LoadAboveTarget,
    /// Less is enough.
    LoadBelowTarget,
    /// More is needed, and groups that load are enough for it.
    GroupsLoading,
    /// More waits than should, and the groups that are there drain it within a minute.
    Draining,
    /// It is not long enough ago that more (or less) was asked for.
    Stabilizing,
    /// A policy lets no more change at once.
    LimitedByPolicy,
    /// More than maxReplicas would be needed.
    AtMaximum,
    /// The load alone would need less than minReplicas.
    AtMinimum,
    /// maxReplicas, or minReplicas, asks for another number.
    OutOfBounds,
    /// No request for idleSecondsToZero.
    Idle,
    /// A request waits, and there is no group.
    RequestWaits,
    /// Fewer groups would not do what the present ones do.
    Busy,
    /// Nothing is known of the load.
    SignalsMissing,
    /// What is known of the load is old, or some gateways do not answer: fewer groups would be a guess.
    SignalsIncomplete,
    /// Groups cannot start: more of them would not start either.
    GroupsFailing,
    /// Groups of an old revision are being replaced, and duringRollout is Hold.
    RolloutUnderWay,
    /// Somebody else sets spec.replicas again and again: it is left to them for a while.
    ScalingContested,
}
