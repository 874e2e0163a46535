//! `spec.autoscaling`, checked, with its defaults.
use belay_crds::{
    AutoscalingMode, AutoscalingSpec, DuringRollout, ScalingPolicy, ScalingPolicyType, ScalingRules,
    SelectPolicy,
};
use jiff::Timestamp;
use thiserror::Error;

use super::schedule::{Bounds, Window};

/// Target where the spec has none.
const OUTSTANDING_TOKENS: u64 = 16384;

/// Seconds without a request before all groups go, where the spec does not say.
const IDLE_SECONDS: u32 = 600;

/// What is asked for.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whether it is done or only said.
    pub mode: AutoscalingMode,
    /// Bounds at times that no window is for.
    pub bounds: Bounds,
    /// Times with other bounds.
    pub schedule: Vec<Window>,
    /// What each group may have.
    pub targets: Targets,
    /// How fast up.
    pub up: Rules,
    /// How fast down.
    pub down: Rules,
    /// Seconds without a request before all groups go.
    pub idle_seconds: u32,
    /// What becomes of it in a rollout.
    pub during_rollout: DuringRollout,
}

/// What each group may have. At least one is set.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Targets {
    /// Tokens that wait at gateways.
    pub queued_tokens: Option<u64>,
    /// Tokens that wait at gateways or are a worker's.
    pub outstanding_tokens: Option<u64>,
    /// Time to the first token that nine of ten requests should have, in milliseconds.
    pub first_token_milliseconds: Option<u64>,
    /// How full caches may be.
    pub kv_percent: Option<u64>,
}

/// How fast it may go in one direction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// Seconds of which what changes least is done.
    pub window_seconds: u32,
    /// Most that may change.
    pub policies: Vec<ScalingPolicy>,
    /// Which of them counts.
    pub select: SelectPolicy,
    /// Least difference from a target that matters, in percent.
    pub tolerance_percent: u32,
}

/// What is wrong with it.
#[derive(Debug, Error, PartialEq, Eq)]
#[error("{message}")]
pub struct TermsError {
    /// Path of the field.
    pub field: &'static str,
    /// What is wrong.
    pub message: String,
}

impl Terms {
    /// Checks a spec.
    ///
    /// # Errors
    /// The first field that makes no sense.
    pub fn new(spec: &AutoscalingSpec) -> Result<Self, TermsError> {
        let bounds = Bounds::new(spec.min_replicas, spec.max_replicas)?;
        let up = [policy(ScalingPolicyType::Percent, 100), policy(ScalingPolicyType::Groups, 4)];
        let down = [policy(ScalingPolicyType::Percent, 100)];
        let behavior = spec.behavior.as_ref();
        Ok(Self {
            mode: spec.mode,
            bounds,
            schedule: spec
                .schedule
                .iter()
                .map(|window| Window::new(window, bounds))
                .collect::<Result<_, _>>()?,
            targets: targets(spec),
            up: rules(behavior.and_then(|behavior| behavior.scale_up.as_ref()), 0, &up),
            down: rules(behavior.and_then(|behavior| behavior.scale_down.as_ref()), 300, &down),
            idle_seconds: positive(spec.idle_seconds_to_zero).unwrap_or(IDLE_SECONDS),
            during_rollout: spec.during_rollout,
        })
    }

    /// The bounds at a time.
    pub fn bounds_at(&self, now: Timestamp) -> Bounds {
        super::schedule::bounds(self.bounds, &self.schedule, now)
    }
}

fn targets(spec: &AutoscalingSpec) -> Targets {
    let tokens = |value: Option<i64>| value.and_then(|value| u64::try_from(value).ok()).filter(|&v| v > 0);
    let set = Targets {
        queued_tokens: tokens(spec.target_queued_tokens_per_replica),
        outstanding_tokens: tokens(spec.target_outstanding_tokens_per_replica),
        first_token_milliseconds: tokens(spec.target_time_to_first_token_milliseconds),
        kv_percent: tokens(spec.target_kv_use_percent.map(i64::from)),
    };
    if set == Targets::default() {
        return Targets { outstanding_tokens: Some(OUTSTANDING_TOKENS), ..set };
    }
    set
}

fn policy(kind: ScalingPolicyType, value: i32) -> ScalingPolicy {
    ScalingPolicy { kind, value, period_seconds: 15 }
}

fn rules(spec: Option<&ScalingRules>, window_seconds: u32, policies: &[ScalingPolicy]) -> Rules {
    let set = spec.cloned().unwrap_or_default();
    let not_negative = |value: Option<i32>| value.and_then(|value| u32::try_from(value).ok());
    Rules {
        window_seconds: not_negative(set.stabilization_window_seconds).unwrap_or(window_seconds),
        policies: if set.policies.is_empty() { policies.to_vec() } else { set.policies },
        select: set.select_policy,
        tolerance_percent: not_negative(set.tolerance_percent).unwrap_or(10),
    }
}

fn positive(value: Option<i32>) -> Option<u32> {
    value.and_then(|value| u32::try_from(value).ok()).filter(|&value| value > 0)
}
