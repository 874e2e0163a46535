//! How far a rollout is to go now.
use belay_crds::{CheckStatus, Reason, TrafficRole};
use k8s_openapi::jiff::Timestamp;

use super::{Budget, Reach, Rejected, State, blue_green, canary};
use crate::reconcile::seconds;

/// How groups are replaced.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Strategy {
    /// Group by group.
    RollingUpdate {
        /// Groups that stay with the revision before.
        partition: u32,
    },
    /// By growing shares: of the requests in percent, and for how many seconds.
    Canary {
        /// In order; never empty.
        steps: Vec<(u32, i64)>,
    },
    /// All at once.
    BlueGreen {
        /// Whether a person has to say so.
        manual: bool,
        /// How long before requests go over.
        preview_seconds: i64,
        /// How long the old groups stay after that.
        keep_seconds: i64,
    },
}

/// `spec.rollout`, as far as it decides how far to go.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rules {
    /// How groups are replaced.
    pub strategy: Strategy,
    /// Whether it stays where it is.
    pub paused: bool,
    /// Without a group that got ready, it counts as stuck after so many seconds.
    pub deadline_seconds: Option<i64>,
    /// Whether being stuck takes a canary or preview back.
    pub rolls_back: bool,
    /// The revision that a person wants to be promoted, and after a slash whatever makes the word another one.
    pub promote: Option<String>,
}

/// What is seen of a rollout.
#[derive(Clone, Debug)]
pub struct Sight<'a> {
    /// Wanted groups and what there may be beside them.
    pub budget: Budget,
    /// The new revision.
    pub revision: &'a str,
    /// Whether there is another one that was found good, to compare with and to go back to.
    pub has_stable: bool,
    /// Groups of the new revision that do not drain.
    pub new: New,
    /// Groups of other revisions, draining or not.
    pub others: u32,
    /// What is known about whether the new one is good.
    pub evidence: &'a Evidence,
}

/// Groups of the new revision that do not drain.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct New {
    /// All of them.
    pub live: u32,
    /// Those of which every worker takes requests.
    pub ready: u32,
    /// When one got ready last.
    pub last_ready: Option<Timestamp>,
    /// Why they will not get ready, by their own fault.
    pub failed: Option<(Reason, String)>,
}

/// What is known about whether a new revision is good.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Evidence {
    /// Before it gets any share.
    pub before_share: Gate,
    /// With the share that it has in this step.
    pub in_step: Gate,
    /// What was looked at.
    pub checks: Vec<CheckStatus>,
}

/// Whether the rollout may go on.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum Gate {
    /// Yes.
    #[default]
    Open,
    /// Not yet, and why.
    Wait(String),
    /// Never: the new revision is bad.
    Bad(Reason, String),
}

/// How far a rollout is to go now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// What is to be written down.
    pub state: State,
    /// How many groups of which revision.
    pub reach: Reach,
    /// Groups that may exist on top of the wanted ones.
    pub surge: u32,
    /// Shares of the requests. Empty: whatever is ready.
    pub shares: Vec<Share>,
    /// Where it is.
    pub phase: Phase,
    /// What it waits for.
    pub message: String,
    /// What happened just now.
    pub happened: Option<Happening>,
}

/// What a revision gets of the requests.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// What it is in the rollout: the stable one, or the new one.
    pub role: TrafficRole,
    /// In percent.
    pub percent: u32,
}

/// Where a rollout is. The names are those of `status.rollout.phase`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Nothing is to be rolled out.
    Complete,
    /// Groups are being replaced.
    Replacing,
    /// Groups of the step are starting.
    Starting,
    /// The step's time runs, or what it waits for is said.
    Holding,
    /// Somebody has to say that it may go on.
    WaitingForPromotion,
    /// `spec.rollout.progress` is Paused.
    Paused,
    /// As many groups as `spec.rollout.partition` says are left.
    Partitioned,
    /// No group has got ready for too long.
    Stuck,
    /// The new revision was taken back.
    RolledBack,
}

/// What happened just now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Happening {
    /// The new revision has this share now.
    Shifted(u32),
    /// It is good.
    Promoted,
    /// It is taken back.
    RolledBack(Reason, String),
}

/// Decides how far to go.
pub fn advance(rules: &Rules, state: State, sight: &Sight<'_>, now: Timestamp) -> Stage {
    let desired = sight.budget.desired;
    // from nothing, at nothing, or back to what was good: there is nothing to prove
    let is_plain = !sight.has_stable || desired == 0;
    match &rules.strategy {
        Strategy::RollingUpdate { partition } => rolling(rules, *partition, state, sight, now),
        _ if is_plain || state.promoted.is_some() => {
            rolling(&Rules { paused: false, ..rules.clone() }, 0, state, sight, now)
        }
        _ if state.rejected.is_some() && is_asked_for(rules, &state, sight) => {
            promote(rules, State { rejected: None, ..state }, sight, now)
        }
        _ if state.rejected.is_some() => rejected(state, sight),
        Strategy::Canary { steps } => canary::advance(rules, steps, state, sight, now),
        Strategy::BlueGreen { manual, preview_seconds, keep_seconds } => {
            let times = blue_green::Times { manual: *manual, preview: *preview_seconds, keep: *keep_seconds };
            blue_green::advance(rules, times, state, sight, now)
        }
    }
}

/// Group by group, but for `partition` of them.
fn rolling(rules: &Rules, partition: u32, mut state: State, sight: &Sight<'_>, now: Timestamp) -> Stage {
    let desired = sight.budget.desired;
    let kept = if sight.has_stable { partition.min(desired) } else { 0 };
    let reach = if rules.paused { Reach::Paused } else { Reach::all_but(kept, desired) };
    let wanted = desired - kept;
    let complete = sight.new.ready >= desired && sight.others == 0;
    let mut happened = None;
    if complete && state.promoted.is_none() {
        state.promoted = Some(now);
        state.rejected = None;
        happened = Some(Happening::Promoted);
    }
    let stuck = stuck(rules, &state, sight, wanted, now);
    let (phase, message) = if complete {
        (Phase::Complete, String::new())
    } else if rules.paused && sight.others > 0 {
        (Phase::Paused, String::new())
    } else if let Some(message) = stuck {
        (Phase::Stuck, message)
    } else if kept > 0 && sight.new.ready >= wanted && sight.others >= kept {
        (Phase::Partitioned, String::new())
    } else {
        (Phase::Replacing, String::new())
    };
    Stage { state, reach, surge: sight.budget.surge, shares: vec![], phase, message, happened }
}

/// The revision before serves alone.
fn rejected(state: State, sight: &Sight<'_>) -> Stage {
    let message = state.rejected.as_ref().map(|why| format!("{}: {}", why.reason, why.message));
    Stage {
        reach: Reach::all_but(sight.budget.desired, sight.budget.desired),
        surge: sight.budget.surge,
        shares: shares(TrafficRole::Canary, 0),
        phase: Phase::RolledBack,
        message: message.unwrap_or_default(),
        happened: None,
        state,
    }
}

/// Takes the new revision back.
pub(super) fn reject(
    rules: &Rules,
    mut state: State,
    sight: &Sight<'_>,
    reason: Reason,
    message: String,
    now: Timestamp,
) -> Stage {
    state.rejected =
        Some(Rejected { reason: reason.as_str().to_owned(), message: message.clone(), time: now });
    state.promotion_seen.clone_from(&rules.promote);
    state.moved = now;
    Stage { happened: Some(Happening::RolledBack(reason, message)), ..rejected(state, sight) }
}

/// Finds the new revision good.
pub(super) fn promote(rules: &Rules, mut state: State, sight: &Sight<'_>, now: Timestamp) -> Stage {
    state.promoted = Some(now);
    state.moved = now;
    let stage = rolling(&Rules { paused: false, ..rules.clone() }, 0, state, sight, now);
    Stage { happened: Some(Happening::Promoted), ..stage }
}

/// Whether a person wants this revision, and has said so since it began, or was taken back.
pub(super) fn is_asked_for(rules: &Rules, state: &State, sight: &Sight<'_>) -> bool {
    let names = |word: &str| word.split('/').next() == Some(sight.revision);
    rules.promote.as_deref().is_some_and(names) && rules.promote != state.promotion_seen
}

/// The new revision has so many percent.
pub(super) fn shares(role: TrafficRole, percent: u32) -> Vec<Share> {
    vec![
        Share { role: TrafficRole::Stable, percent: 100 - percent.min(100) },
        Share { role, percent: percent.min(100) },
    ]
}

/// Why it counts as stuck: fewer than `wanted` groups are ready, and none got ready for too long.
pub(super) fn stuck(
    rules: &Rules,
    state: &State,
    sight: &Sight<'_>,
    wanted: u32,
    now: Timestamp,
) -> Option<String> {
    let limit = rules.deadline_seconds?;
    let last = state.moved.max(sight.new.last_ready.unwrap_or(state.moved));
    let waited = now.as_second() - last.as_second();
    (sight.new.ready < wanted && waited >= limit).then(|| {
        format!(
            "{} of {wanted} groups of revision {} are ready, and none got ready since {}",
            sight.new.ready,
            sight.revision,
            seconds(last)
        )
    })
}

/// When so many seconds have passed: a time, not what is left of it, so that a status does not change by itself.
pub(super) fn until(since: Timestamp, length: i64) -> String {
    let end = Timestamp::from_second(since.as_second() + length).unwrap_or(since);
    format!("until {}", seconds(end))
}

/// What the evidence says while groups of the new revision start.
pub(super) fn hopeless(
    rules: &Rules,
    state: &State,
    sight: &Sight<'_>,
    wanted: u32,
    now: Timestamp,
) -> Option<(Reason, String)> {
    if !rules.rolls_back {
        return None;
    }
    let stuck = || Some((Reason::ProgressDeadlineExceeded, stuck(rules, state, sight, wanted, now)?));
    sight.new.failed.clone().or_else(stuck)
}
