//! What the status says. It is written only when it says something new: a status that follows every token would keep the
//! API server busy with nothing.
use belay_crds::{AutoscalingStatus, ScaleRecord, ScalingMetricStatus, ScalingReason};
use jiff::{SignedDuration, Timestamp};

use super::{decide::Decision, memory::Memory};

/// How often numbers are renewed.
const EVERY: SignedDuration = SignedDuration::from_secs(30);

/// How soon another reason alone is told: near a target it may come and go.
const SOON: SignedDuration = SignedDuration::from_secs(10);

/// By how many percent a number must have changed to be renewed.
const MUCH_PERCENT: u64 = 10;

/// The status after a decision. `previous` and when it was written.
pub fn report(
    decision: &Decision,
    memory: &Memory,
    previous: Option<(&AutoscalingStatus, Timestamp)>,
    now: Timestamp,
) -> AutoscalingStatus {
    let steps = memory.steps();
    let next = AutoscalingStatus {
        desired_replicas: groups(decision.desired),
        min_replicas: groups(decision.bounds.min),
        max_replicas: groups(decision.bounds.max),
        reason: decision.reason,
        message: decision.message.clone(),
        last_scale_time: steps.last().map(|step| whole(step.at)),
        metrics: decision
            .metrics
            .iter()
            .map(|metric| ScalingMetricStatus {
                name: metric.measure.field().to_owned(),
                current: metric.current.map(number),
                target: number(metric.target),
                replicas: metric.groups.map(groups),
            })
            .collect(),
        tokens_per_second_per_replica: memory.tokens_per_second_per_group().map(number),
        recent_scales: steps
            .iter()
            .map(|step| ScaleRecord {
                time: whole(step.at),
                from: groups(step.from),
                to: groups(step.to),
                reason: step.reason,
            })
            .collect(),
    };
    match previous {
        Some((previous, written)) if !worth(previous, &next, now.duration_since(written)) => previous.clone(),
        _ => next,
    }
}

/// Whether it is worth a write.
fn worth(before: &AutoscalingStatus, after: &AutoscalingStatus, since: SignedDuration) -> bool {
    let plain = |status: &AutoscalingStatus| AutoscalingStatus {
        reason: ScalingReason::default(),
        message: String::new(),
        metrics: vec![],
        tokens_per_second_per_replica: None,
        ..status.clone()
    };
    let targets = |status: &AutoscalingStatus| -> Vec<(String, i64)> {
        status.metrics.iter().map(|metric| (metric.name.clone(), metric.target)).collect()
    };
    if plain(before) != plain(after) || targets(before) != targets(after) {
        return true;
    }
    if before.reason != after.reason && (since >= SOON || after.reason == ScalingReason::ScalingContested) {
        return true;
    }
    let values = |status: &AutoscalingStatus| -> Vec<Option<i64>> {
        let rate = status.tokens_per_second_per_replica;
        status.metrics.iter().map(|metric| metric.current).chain([rate]).collect()
    };
    let much = |(before, after): (&Option<i64>, &Option<i64>)| match (before, after) {
        (Some(before), Some(after)) => {
            before.abs_diff(*after).saturating_mul(100) > before.unsigned_abs().saturating_mul(MUCH_PERCENT)
        }
        (before, after) => before != after,
    };
    since >= EVERY && values(before).iter().zip(&values(after)).any(much)
}

/// RFC 3339 in whole seconds.
fn whole(time: Timestamp) -> String {
    Timestamp::from_second(time.as_second()).unwrap_or(time).to_string()
}

fn groups(count: u32) -> i32 {
    i32::try_from(count).unwrap_or(i32::MAX)
}

fn number(value: u64) -> i64 {
    i64::try_from(value).unwrap_or(i64::MAX)
}
