//! Blue/green: all groups of the new revision are started beside the old ones, then all requests go over at once.
use belay_crds::TrafficRole;
use k8s_openapi::jiff::Timestamp;

use super::{
    Gate, Phase, Reach, Rules, Sight, Stage, State,
    stage::{Happening, hopeless, is_asked_for, promote, reject, shares, stuck, until},
};

/// The times of it.
pub(super) struct Times {
    /// Whether a person has to say that requests go over.
    pub manual: bool,
    /// How long before that, in seconds.
    pub preview: i64,
    /// How long the old groups stay after it, in seconds.
    pub keep: i64,
}

/// Decides how far a blue/green rollout is to go.
pub(super) fn advance(
    rules: &Rules,
    times: Times,
    mut state: State,
    sight: &Sight<'_>,
    now: Timestamp,
) -> Stage {
    let desired = sight.budget.desired;
    let asked = is_asked_for(rules, &state, sight);
    for gate in [&sight.evidence.before_share, &sight.evidence.in_step] {
        if let (Gate::Bad(reason, message), false) = (gate, asked && state.step == 0) {
            return reject(rules, state, sight, *reason, message.clone(), now);
        }
    }
    let has_gone_over = state.step > 0;
    let passed = |since: Timestamp| now.as_second() - since.as_second();
    let mut happened = None;
    let (phase, message) = match state.since {
        None => {
            if let Some((reason, message)) = hopeless(rules, &state, sight, desired, now) {
                return reject(rules, state, sight, reason, message, now);
            }
            match &sight.evidence.before_share {
                _ if sight.new.ready < desired => match stuck(rules, &state, sight, desired, now) {
                    Some(message) => (Phase::Stuck, message),
                    None if rules.paused => (Phase::Paused, String::new()),
                    None => (Phase::Starting, format!("{} of {desired} groups are ready", sight.new.ready)),
                },
                Gate::Wait(why) => (Phase::Holding, why.clone()),
                _ => {
                    (state.since, state.moved) = (Some(now), now);
                    return advance(rules, times, state, sight, now);
                }
            }
        }
        Some(since) if !has_gone_over => match &sight.evidence.in_step {
            _ if rules.paused => (Phase::Paused, String::new()),
            _ if sight.new.ready < desired => {
                (Phase::Starting, format!("{} of {desired} groups are ready", sight.new.ready))
            }
            _ if !asked && passed(since) < times.preview => (Phase::Holding, until(since, times.preview)),
            Gate::Wait(why) if !asked => (Phase::Holding, why.clone()),
            _ if times.manual && !asked => {
                (Phase::WaitingForPromotion, "the preview is ready; somebody has to promote it".to_owned())
            }
            _ => {
                (state.step, state.since, state.moved) = (1, Some(now), now);
                happened = Some(Happening::Shifted(100));
                (Phase::Holding, String::new())
            }
        },
        Some(since) => match passed(since) {
            _ if rules.paused => (Phase::Paused, String::new()),
            passed if passed >= times.keep => return promote(rules, state, sight, now),
            _ => (Phase::Holding, format!("the old groups are kept {}", until(since, times.keep))),
        },
    };
    let begins = !rules.paused || sight.new.live > 0;
    Stage {
        reach: Reach::Split { new: if begins { desired } else { 0 }, before: desired },
        surge: sight.budget.surge.max(desired),
        shares: shares(TrafficRole::Preview, if state.step > 0 { 100 } else { 0 }),
        phase,
        message,
        happened,
        state,
    }
}
