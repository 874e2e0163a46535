//! A canary: the new revision gets a growing share of the requests, step by step.
use belay_crds::TrafficRole;
use k8s_openapi::jiff::Timestamp;

use super::{
    Gate, Phase, Reach, Rules, Sight, Stage, State,
    stage::{Happening, hopeless, is_asked_for, promote, reject, shares, stuck, until},
};

/// Decides how far a canary is to go. `steps`: percent and seconds.
pub(super) fn advance(
    rules: &Rules,
    steps: &[(u32, i64)],
    mut state: State,
    sight: &Sight<'_>,
    now: Timestamp,
) -> Stage {
    if is_asked_for(rules, &state, sight) {
        return promote(rules, state, sight, now);
    }
    // the steps may have become fewer meanwhile
    let last = steps.len().saturating_sub(1);
    let index = usize::try_from(state.step).unwrap_or(last).min(last);
    let Some(&(percent, hold)) = steps.get(index) else { return promote(rules, state, sight, now) };
    let before = index.checked_sub(1).and_then(|before| steps.get(before)).map_or(0, |step| step.0);
    let wanted = groups(sight.budget.desired, percent);

    for gate in [&sight.evidence.before_share, &sight.evidence.in_step] {
        if let Gate::Bad(reason, message) = gate {
            return reject(rules, state, sight, *reason, message.clone(), now);
        }
    }
    let mut happened = None;
    let (phase, message) = match state.since {
        None => {
            if let Some((reason, message)) = hopeless(rules, &state, sight, wanted, now) {
                return reject(rules, state, sight, reason, message, now);
            }
            match &sight.evidence.before_share {
                _ if rules.paused => (Phase::Paused, String::new()),
                _ if sight.new.ready < wanted => match stuck(rules, &state, sight, wanted, now) {
                    Some(message) => (Phase::Stuck, message),
                    None => (Phase::Starting, format!("{} of {wanted} groups are ready", sight.new.ready)),
                },
                Gate::Wait(why) => (Phase::Holding, why.clone()),
                _ => {
                    (state.since, state.moved) = (Some(now), now);
                    happened = Some(Happening::Shifted(percent));
                    (Phase::Holding, String::new())
                }
            }
        }
        Some(since) => {
            let left = hold - (now.as_second() - since.as_second());
            match &sight.evidence.in_step {
                _ if rules.paused => (Phase::Paused, String::new()),
                _ if left > 0 => (Phase::Holding, until(since, hold)),
                Gate::Wait(why) => (Phase::Holding, why.clone()),
                _ if index == last => return promote(rules, state, sight, now),
                _ => {
                    (state.step, state.since, state.moved) = (state.step + 1, None, now);
                    return Stage { happened: None, ..advance(rules, steps, state, sight, now) };
                }
            }
        }
    };
    let in_force = if state.since.is_some() { percent } else { before };
    let begins = state.since.is_some() || before > 0 || sight.new.live > 0 || !rules.paused;
    let new = if begins { wanted } else { 0 };
    Stage {
        reach: Reach::Split { new, before: stay(sight.budget.desired, percent) },
        surge: sight.budget.surge,
        shares: shares(TrafficRole::Canary, in_force),
        phase,
        message,
        happened,
        state,
    }
}

/// Groups that a share needs: at least one.
fn groups(desired: u32, percent: u32) -> u32 {
    hundredths(desired, percent).clamp(1, desired.max(1))
}

/// Groups of the revision before that serve the rest, and are there to go back to: at least one.
fn stay(desired: u32, percent: u32) -> u32 {
    hundredths(desired, 100 - percent.min(100)).max(1)
}

fn hundredths(count: u32, percent: u32) -> u32 {
    u32::try_from((u64::from(count) * u64::from(percent)).div_ceil(100)).unwrap_or(u32::MAX)
}
