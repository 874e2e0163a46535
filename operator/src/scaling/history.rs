//! What was asked for and what was done: stabilisation and policies.
use belay_crds::{ScalingPolicy, ScalingPolicyType, ScalingReason, SelectPolicy};
use jiff::Timestamp;

use super::terms::Rules;

/// Seconds without a look after which what was seen before says nothing about the time in between.
const GAP_SECONDS: i64 = 60;

/// Most steps that are kept. More turns than that within a period of a policy are not all counted.
const STEPS: usize = 64;

/// Steps that are kept for people, however old.
const SHOWN: usize = 5;

/// The number of groups was set.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Scale {
    /// When.
    pub at: Timestamp,
    /// From.
    pub from: u32,
    /// To.
    pub to: u32,
    /// Why.
    pub reason: ScalingReason,
}

/// What was asked for lately.
#[derive(Clone, Debug, Default)]
pub(super) struct Asked {
    /// (until when, how many groups): one for each stretch of time in which it was the same.
    runs: Vec<(Timestamp, u32)>,
}

impl Asked {
    /// So many groups are asked for now. `current`: what there is, and what is taken to have been asked for while nobody
    /// looked.
    pub fn note(&mut self, groups: u32, current: u32, longest_seconds: u32, now: Timestamp) {
        let looked = self.runs.last().is_some_and(|(at, _)| age(*at, now) <= GAP_SECONDS);
        if !looked {
            self.push(current, now);
        }
        self.push(groups, now);
        self.runs.retain(|(at, _)| age(*at, now) <= i64::from(longest_seconds));
    }

    /// Somebody has decided for so many groups.
    pub fn push(&mut self, groups: u32, now: Timestamp) {
        match self.runs.last_mut() {
            Some((at, last)) if *last == groups => *at = now,
            _ => self.runs.push((now, groups)),
        }
    }

    /// What changes least of everything that was asked for within the windows.
    pub fn stabilized(&self, asked: u32, current: u32, up: &Rules, down: &Rules, now: Timestamp) -> u32 {
        let within = |seconds: u32| {
            let recent = move |(at, _): &&(Timestamp, u32)| age(*at, now) < i64::from(seconds);
            self.runs.iter().filter(recent).map(|(_, groups)| *groups)
        };
        if asked > current {
            within(up.window_seconds).fold(asked, u32::min).max(current)
        } else {
            within(down.window_seconds).fold(asked, u32::max).min(current)
        }
    }
}

fn age(at: Timestamp, now: Timestamp) -> i64 {
    now.as_second() - at.as_second()
}

/// Takes a step down in the books. If they are full, two become one at the time of the later: it counts for longer than it
/// must, not for less.
pub(super) fn note(steps: &mut Vec<Scale>, step: Scale) {
    steps.push(step);
    if steps.len() > STEPS {
        let same = |pair: &[Scale]| matches!(pair, [a, b] if (a.to > a.from) == (b.to > b.from));
        let index = steps.windows(2).position(same).unwrap_or(0);
        let earlier = steps.remove(index);
        if let Some(later) = steps.get_mut(index).filter(|later| later.from == earlier.to) {
            later.from = earlier.from;
        }
    }
}

/// Forgets steps that no policy counts by any more, but for the newest few.
pub(super) fn forget(steps: &mut Vec<Scale>, up: &Rules, down: &Rules, now: Timestamp) {
    let periods = up.policies.iter().chain(&down.policies).map(|policy| i64::from(policy.period_seconds));
    let longest = periods.max().unwrap_or(0);
    while steps.len() > SHOWN && steps.first().is_some_and(|first| age(first.at, now) > longest) {
        steps.remove(0);
    }
}

/// How far up policies let it go from `current`.
pub(super) fn highest(steps: &[Scale], current: u32, rules: &Rules, now: Timestamp) -> u32 {
    let limits = rules.policies.iter().map(|policy| {
        let start = within(steps, policy, now).fold(current, u32::min);
        start.saturating_add(most(policy, start))
    });
    let limit = match rules.select {
        SelectPolicy::Max => limits.max(),
        SelectPolicy::Min => limits.min(),
        SelectPolicy::Disabled => None,
    };
    limit.unwrap_or(current).max(current)
}

/// How far down policies let it go from `current`.
pub(super) fn lowest(steps: &[Scale], current: u32, rules: &Rules, now: Timestamp) -> u32 {
    let limits = rules.policies.iter().map(|policy| {
        let start = within(steps, policy, now).fold(current, u32::max);
        start.saturating_sub(most(policy, start))
    });
    let limit = match rules.select {
        SelectPolicy::Max => limits.min(),
        SelectPolicy::Min => limits.max(),
        SelectPolicy::Disabled => None,
    };
    limit.unwrap_or(current).min(current)
}

/// The numbers of groups that there were within a policy's period, but for the present one.
fn within<'a>(
    steps: &'a [Scale],
    policy: &'a ScalingPolicy,
    now: Timestamp,
) -> impl Iterator<Item = u32> + 'a {
    let recent = move |step: &&Scale| age(step.at, now) < i64::from(policy.period_seconds);
    steps.iter().filter(recent).flat_map(|step| [step.from, step.to])
}

/// How many groups a policy lets change that had `start` at the beginning.
fn most(policy: &ScalingPolicy, start: u32) -> u32 {
    let value = u32::try_from(policy.value).unwrap_or(0);
    match policy.kind {
        ScalingPolicyType::Groups => value,
        ScalingPolicyType::Percent => start.saturating_mul(value).div_ceil(100),
    }
}
