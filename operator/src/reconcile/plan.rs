//! What to do next: pure. Wishes and observations in, decisions out.
mod experts;

use belay_crds::{CheckStatus, FaultAction, Reason, labels};
use k8s_openapi::jiff::{SignedDuration, Timestamp};
use thiserror::Error;

pub use self::experts::{Experts, Push};
use super::validate::Validated;
use crate::{
    group::{Group, Trouble, WorkerPod},
    revision::{self, Record, RevisionError},
    rollout::{self, Age, Budget, Evidence, Health, New, Serving, Sight, Stage, State, Strategy, count},
};

/// Revisions that are kept although no group has them, to go back to.
const HISTORY: usize = 10;

/// Seconds that a pod gets to end once its drain is over.
const LAST_SECONDS: u32 = 10;

/// What is to be done.
#[derive(Clone, Debug, PartialEq)]
pub struct Plan {
    /// The revision that the spec asks for.
    pub target: Record,
    /// Whether it must be recorded (anew).
    pub record_target: bool,
    /// The revision before, of which a rollout that does not go all the way leaves groups.
    pub before: Option<Record>,
    /// How far the rollout is to go.
    pub stage: Stage,
    /// What was looked at for that.
    pub checks: Vec<CheckStatus>,
    /// Groups to create.
    pub create: Vec<NewGroup>,
    /// What to do with each group that exists.
    pub groups: Vec<GroupPlan>,
    /// Groups that evictions must leave alone, but for pods that may leave.
    pub protected: Vec<String>,
    /// Revisions to forget.
    pub forget: Vec<String>,
}

/// A group that is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct NewGroup {
    /// Its name.
    pub name: String,
    /// What it is made from.
    pub record: Record,
}

/// What to do with one group.
#[derive(Clone, Debug, PartialEq)]
pub struct GroupPlan {
    /// Its name.
    pub name: String,
    /// Pods to delete.
    pub remove: Vec<Removal>,
    /// The rest, by what becomes of the group.
    pub course: Course,
    /// Where its experts should be; of a group that drains, what was intended before.
    pub experts: Experts,
}

/// What becomes of a group.
#[derive(Clone, Debug, PartialEq)]
pub enum Course {
    /// It is to serve.
    Run {
        /// Slots that need a pod.
        create: Vec<u32>,
        /// It is ready for the first time: remember it.
        first_ready: Option<Timestamp>,
    },
    /// It finishes its requests, then its pods are removed.
    Drain {
        /// Since when.
        since: Timestamp,
        /// Pods to mark for gateways.
        mark: Vec<u32>,
        /// Workers to tell.
        tell: Vec<u32>,
    },
    /// Its pods are gone: its other objects go.
    Clear,
}

/// A pod to delete.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Removal {
    /// Its name.
    pub pod: String,
    /// Its UID: no other life of the slot is meant.
    pub uid: String,
    /// Grace period in seconds; `None`: the pod's own.
    pub grace_seconds: Option<u32>,
    /// Why.
    pub cause: Cause,
}

/// Why a pod is deleted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Cause {
    /// Its node does not answer: nobody else would ever remove it.
    NodeLost(String),
    /// It ended for good.
    Ended(String),
    /// A device of it is faulty.
    DeviceFault(String),
    /// Its group has finished its requests.
    Drained,
    /// Its group had no more time for them.
    DrainTimeOver,
}

/// Why there is no plan.
#[derive(Debug, Error)]
pub enum PlanError {
    /// There is no revision for the spec.
    #[error(transparent)]
    Revision(#[from] RevisionError),
}

/// What a rollout goes from and to.
#[derive(Clone, Debug, PartialEq)]
pub struct Prospect {
    /// The revision that the spec asks for, with what is known of its rollout.
    pub target: Record,
    /// What is known of its rollout.
    pub state: State,
    /// The revision before: the one that was found good last, if the strategy compares with it.
    pub before: Option<Record>,
}

/// What a rollout goes from and to.
///
/// # Errors
/// When no revision can be made of the spec.
pub fn prospect(
    wanted: &Validated,
    groups: &[Group],
    revisions: &[Record],
    default_image: Option<&str>,
    now: Timestamp,
) -> Result<Prospect, PlanError> {
    let target = revision::choose(&wanted.content, revisions, default_image)?;
    let stable = rollout::stable(revisions);
    let is_stable = stable.is_some_and(|stable| stable.revision == target.revision);
    let whole_second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let state = State::of(&target, is_stable, wanted.rules.promote.as_deref(), whole_second);
    let before = match (&wanted.rules.strategy, stable) {
        (Strategy::RollingUpdate { .. }, _) => before(&target, groups, revisions),
        (_, Some(_)) if is_stable => None,
        (_, Some(stable)) => Some(stable.clone()),
        // nothing was ever found good; what serves is good enough to go back to
        (_, None) => before(&target, groups, revisions)
            .filter(|before| groups.iter().any(|group| group.revision == before.revision && group.ready())),
    };
    Ok(Prospect { target, state, before })
}

/// Decides.
///
/// # Errors
/// When no revision can be made of the spec.
pub fn plan(
    wanted: &Validated,
    groups: &[Group],
    revisions: &[Record],
    default_image: Option<&str>,
    evidence: &Evidence,
    now: Timestamp,
) -> Result<Plan, PlanError> {
    let Prospect { mut target, state, before } = prospect(wanted, groups, revisions, default_image, now)?;
    let obstacles: Vec<Option<Trouble>> = {
        let record = |group: &Group| record_of(group, &target, revisions);
        groups.iter().map(|group| experts::obstacle(wanted, group, record(group), now)).collect()
    };
    let sight = Sight {
        budget: wanted.budget,
        revision: &target.revision,
        has_stable: before.is_some(),
        new: new(&target, groups, &obstacles),
        others: count(groups.iter().filter(|group| {
            let is_gone = group.draining() && group.pods().next().is_none();
            group.revision != target.revision && !is_gone
        })),
        evidence,
    };
    let whole_second = Timestamp::from_second(now.as_second()).unwrap_or(now);
    let stage = rollout::advance(&wanted.rules, state, &sight, whole_second);
    target.state = Some(stage.state.clone());
    let record = |group: &Group| record_of(group, &target, revisions);
    let age = |revision: &str| match &before {
        _ if revision == target.revision => Age::New,
        Some(before) if revision == before.revision => Age::Before,
        _ => Age::Older,
    };
    let views: Vec<rollout::Group> = groups
        .iter()
        .zip(&obstacles)
        .map(|(group, obstacle)| rollout::Group {
            name: group.name.clone(),
            ordinal: group.ordinal,
            age: age(&group.revision),
            health: if obstacle.is_some() && !group.serves() { Health::Broken } else { group.health() },
            draining: group.draining(),
        })
        .collect();
    let budget = Budget { surge: stage.surge, ..wanted.budget };
    let step = rollout::step(budget, stage.reach, before.is_some(), &views);
    let new_group = |record: &Record, ordinal: u32| NewGroup {
        name: labels::group_name(&wanted.name, &record.revision, ordinal),
        record: record.clone(),
    };
    let create = step
        .create
        .iter()
        .map(|&ordinal| new_group(&target, ordinal))
        .chain(before.iter().flat_map(|before| step.create_before.iter().map(|&n| new_group(before, n))))
        .collect();

    let drain_since =
        |group: &Group| group.draining_since.or_else(|| step.drain.contains(&group.name).then_some(now));
    let serving: Vec<Serving> = groups
        .iter()
        .filter(|group| group.serves() && drain_since(group).is_none())
        .map(|group| Serving {
            name: group.name.clone(),
            complete: group.ready(),
            leaving: group.pods().any(|(_, pod)| pod.leaving()),
        })
        .collect();
    let protected = if serving.is_empty() { vec![] } else { rollout::protected(wanted.budget, &serving) };

    let plans = groups
        .iter()
        .map(|group| match drain_since(group) {
            Some(since) => drain(group, since, wanted.drain_seconds, now),
            None => {
                let stays = protected.contains(&group.name);
                run(group, experts::plan(wanted, group, record(group), stays, now), stays, now)
            }
        })
        .collect();

    Ok(Plan {
        record_target: !revisions.contains(&target),
        forget: forget(&target, groups, revisions),
        create,
        groups: plans,
        protected,
        target,
        before,
        stage,
        checks: evidence.checks.clone(),
    })
}

/// Groups of the target.
fn new(target: &Record, groups: &[Group], obstacles: &[Option<Trouble>]) -> New {
    let live = || {
        let of_target = |(group, _): &(&Group, _)| group.revision == target.revision && !group.draining();
        groups.iter().zip(obstacles).filter(of_target)
    };
    // of its own fault: what lies with nodes, quotas or registries may pass
    let own = |trouble: &Trouble| {
        matches!(
            trouble.reason,
            Reason::MoreRanksThanExperts
                | Reason::CheckpointMismatch
                | Reason::CheckpointInvalid
                | Reason::CheckpointNotFound
                | Reason::PlacementInvalid
                | Reason::OutOfMemory
                | Reason::WorkerFailed
                | Reason::PodCrashing
        )
    };
    let failed = live().filter(|(group, _)| !group.serves()).find_map(|(group, obstacle)| {
        let problems = group.pods().filter_map(|(_, pod)| Some((pod.name.as_str(), pod.problem()?)));
        let whole = obstacle.iter().cloned().map(|trouble| (group.name.as_str(), trouble));
        let (subject, trouble) = problems.chain(whole).find(|(_, trouble)| own(trouble))?;
        Some((trouble.reason, format!("{subject}: {}", trouble.message)))
    });
    New {
        live: count(live()),
        ready: count(live().filter(|(group, _)| group.ready())),
        last_ready: live().filter_map(|(group, _)| group.first_ready).max(),
        failed,
    }
}

/// The revision that a rollout comes from: of those that have groups, the newest that has ready ones, else the newest.
fn before(target: &Record, groups: &[Group], revisions: &[Record]) -> Option<Record> {
    let rank = |record: &&Record| {
        let of_it = || groups.iter().filter(|group| group.revision == record.revision && !group.draining());
        (of_it().any(Group::ready), of_it().next().is_some(), record.number)
    };
    revisions.iter().filter(|record| record.revision != target.revision).max_by_key(rank).cloned()
}

/// The record that a group's pods are made from.
fn record_of<'a>(group: &Group, target: &'a Record, revisions: &'a [Record]) -> Option<&'a Record> {
    std::iter::once(target).chain(revisions).find(|record| record.revision == group.revision)
}

fn run(group: &Group, experts: Experts, stays: bool, now: Timestamp) -> GroupPlan {
    let create =
        (0u32..).zip(&group.slots).filter(|(_, slot)| slot.is_none()).map(|(index, _)| index).collect();
    let first_ready = (group.first_ready.is_none() && group.ready()).then_some(now);
    GroupPlan {
        name: group.name.clone(),
        remove: lost(group).into_iter().chain(faulty(group, &experts, stays)).collect(),
        course: Course::Run { create, first_ready },
        experts,
    }
}

/// Pods that will never work again and that nobody else removes.
fn lost(group: &Group) -> Vec<Removal> {
    group
        .pods()
        .filter_map(|(_, pod)| {
            let (cause, grace_seconds) = match (&pod.ended, pod.node_lost) {
                (_, true) => (Cause::NodeLost(pod.node.clone().unwrap_or_default()), Some(0)),
                (Some(why), false) if !pod.terminating => (Cause::Ended(why.clone()), None),
                _ => return None,
            };
            Some(Removal { pod: pod.name.clone(), uid: pod.uid.clone(), grace_seconds, cause })
        })
        .collect()
}

/// Pods with faulty devices whose time has come: at once, or once they may be evicted. Of a group that `stays`, that is one that
/// every expert has a live copy without.
fn faulty(group: &Group, experts: &Experts, stays: bool) -> Vec<Removal> {
    group
        .pods()
        .filter(|(_, pod)| !pod.terminating && !pod.node_lost && pod.ended.is_none())
        .filter_map(|(index, pod)| {
            let fault = pod.fault.as_ref()?;
            let grace_seconds = match fault.action {
                FaultAction::Replace => Some(LAST_SECONDS),
                FaultAction::Drain if !stays || experts.may_leave.contains(&index) => None,
                FaultAction::Drain | FaultAction::Ignore => return None,
            };
            let cause = Cause::DeviceFault(fault.message.clone());
            Some(Removal { pod: pod.name.clone(), uid: pod.uid.clone(), grace_seconds, cause })
        })
        .collect()
}

fn drain(group: &Group, since: Timestamp, drain_seconds: u32, now: Timestamp) -> GroupPlan {
    let plan = |remove, course| GroupPlan {
        name: group.name.clone(),
        remove,
        course,
        experts: Experts::unchanged(group),
    };
    if group.pods().next().is_none() {
        return plan(vec![], Course::Clear);
    }
    let mark =
        group.pods().filter(|(_, pod)| !pod.marked_draining && !pod.terminating).map(|(i, _)| i).collect();
    let refuses = |pod: &WorkerPod| pod.status().is_some_and(|status| status.draining);
    let tell: Vec<u32> = group
        .pods()
        .filter(|(_, pod)| pod.running && !pod.node_lost && !pod.terminating && !refuses(pod))
        .map(|(index, _)| index)
        .collect();
    // a worker that does not run has no requests; of one that does, only its own word counts
    let idle = |pod: &WorkerPod| match &pod.worker {
        _ if !pod.running || pod.node_lost || pod.ended.is_some() => true,
        Some(Ok(status)) => status.draining && status.requests_in_flight == 0,
        Some(Err(_)) | None => false,
    };
    let over = now.duration_since(since) >= SignedDuration::from_secs(i64::from(drain_seconds));
    let done = group.pods().all(|(_, pod)| idle(pod));
    let mut remove = lost(group);
    if done || over {
        let (grace_seconds, cause) =
            if done { (None, Cause::Drained) } else { (Some(LAST_SECONDS), Cause::DrainTimeOver) };
        let present = |pod: &WorkerPod| !pod.terminating && !pod.node_lost && pod.ended.is_none();
        remove.extend(group.pods().filter(|(_, pod)| present(pod)).map(|(_, pod)| Removal {
            pod: pod.name.clone(),
            uid: pod.uid.clone(),
            grace_seconds,
            cause: cause.clone(),
        }));
    }
    plan(remove, Course::Drain { since, mark, tell })
}

/// Revisions that no group has, but for the newest few.
fn forget(target: &Record, groups: &[Group], revisions: &[Record]) -> Vec<String> {
    let in_use = |record: &&Record| {
        record.revision == target.revision || groups.iter().any(|group| group.revision == record.revision)
    };
    let mut unused: Vec<&Record> = revisions.iter().filter(|record| !in_use(record)).collect();
    unused.sort_by_key(|record| std::cmp::Reverse(record.number));
    unused.into_iter().skip(HISTORY).map(|record| record.revision.clone()).collect()
}
