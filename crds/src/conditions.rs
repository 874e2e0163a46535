//! Conditions and their reasons: the one list that status, events and documentation share.
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

/// Types of conditions.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum ConditionType {
    /// At least one group takes requests.
    Available,
    /// Groups are being started, replaced or removed.
    Progressing,
    /// Every expert of the model has a live copy in every group that was complete once.
    ExpertsCovered,
    /// Something keeps the deployment from what its spec asks for; the message names it.
    Degraded,
}

impl ConditionType {
    /// The `type` in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Available => "Available",
            Self::Progressing => "Progressing",
            Self::ExpertsCovered => "ExpertsCovered",
            Self::Degraded => "Degraded",
        }
    }
}

/// Reasons of conditions and events. Names are stable: scripts and alerts may rely on them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Reason {
    // Available, Progressing, ExpertsCovered: how things go
    /// Groups serve.
    GroupsReady,
    /// No group is complete, but workers take requests and every expert has a live copy.
    GroupsIncomplete,
    /// No group is ready.
    NoGroupReady,
    /// `spec.replicas` is 0.
    ScaledToZero,
    /// Groups are being created, or load the model.
    GroupsStarting,
    /// Groups of an old revision are being replaced.
    RollingOut,
    /// `spec.rollout.progress` is Paused, and groups of an old revision are left.
    RolloutPaused,
    /// As many groups as `spec.rollout.partition` says are left with the revision before, and the others are replaced.
    RolloutPartitioned,
    /// A canary or preview has its share of the requests and is looked at.
    RolloutHolding,
    /// A preview is ready, and a person has to promote it.
    WaitingForPromotion,
    /// No group of the new revision has got ready for `spec.rollout.progressDeadlineSeconds`.
    ProgressDeadlineExceeded,
    /// Groups finish their requests before they are removed.
    Draining,
    /// A group that was ready gets a lost worker back.
    Recovering,
    /// Copies of experts move.
    MovingExperts,
    /// Nothing is under way.
    Settled,
    /// Every expert has a live copy.
    AllExpertsLive,
    /// No group has loaded the model yet.
    NotLoaded,
    /// Experts of a group that was complete have no live copy.
    ExpertsLost,
    /// Degraded is False: nothing is wrong.
    AsExpected,

    // Degraded: what is wrong
    /// The spec contradicts itself; the message names the field.
    InvalidSpec,
    /// Neither the spec nor the operator's configuration names a worker image.
    NoWorkerImage,
    /// The group has more ranks than the model has experts in a layer.
    MoreRanksThanExperts,
    /// Workers of a group see different checkpoints.
    CheckpointMismatch,
    /// A worker cannot use the checkpoint; the message says which file or tensor.
    CheckpointInvalid,
    /// A worker finds no checkpoint at the source.
    CheckpointNotFound,
    /// A worker refused its placement.
    PlacementInvalid,
    /// A worker has not enough memory.
    OutOfMemory,
    /// A worker failed in another way.
    WorkerFailed,
    /// A worker does not answer the operator, though it should.
    WorkerUnreachable,
    /// The API server refused to create a pod (quota, pod security, admission).
    PodRefused,
    /// No node can take a pod.
    PodUnschedulable,
    /// A volume cannot be mounted: the claim, the directory or the image is missing.
    VolumeUnavailable,
    /// The worker's image cannot be pulled.
    ImageUnavailable,
    /// The worker process ends again and again.
    PodCrashing,
    /// A pod cannot be set up on its node.
    PodNotStarting,
    /// The cluster lacks the scheduler that the spec asks for.
    SchedulerMissing,
    /// A node with workers does not respond.
    NodeLost,
    /// A device that a worker uses is faulty; the message names pod, device, code and level, and what is done about it.
    DeviceFault,
    /// Experts must move to other workers, but there is no room for them.
    NoRoom,
    /// A worker of the placement is lost; the message says what that leaves.
    RankLost,
    /// Experts have fewer copies than the spec asks for.
    CopiesMissing,

    /// The new revision was taken back; the message says why.
    RolledBack,

    // why a revision is taken back, beside what is wrong with its workers
    /// It fails more requests than the one before.
    ErrorsIncreased,
    /// Its first tokens come later.
    FirstTokenSlower,
    /// Its tokens come more slowly.
    TokensSlower,
    /// Its workers are restarted.
    WorkersRestarted,
    /// It answers otherwise.
    AnswersDiffer,
    /// A query of `spec.rollout.analysis.queries` is out of its bounds.
    QueryOutOfBounds,

    // events only
    /// A revision has another share of the requests.
    TrafficShifted,
    /// A new revision was found good.
    RolloutPromoted,
    /// What the analysis of a new revision found, where it changes nothing.
    AnalysisReported,
    /// A group was created.
    GroupCreated,
    /// A group took its first requests, or takes them again.
    GroupReady,
    /// A group was removed after its drain.
    GroupRemoved,
    /// A lost pod was replaced.
    PodReplaced,
    /// A new revision was recorded.
    RevisionCreated,
    /// A lost worker's ranks are back.
    RankReturned,
    /// Workers loaded experts of lost ranks.
    ExpertsAdopted,
    /// Copies are loaded for a new placement.
    PlacementPreparing,
    /// A new placement is in force.
    PlacementCommitted,
    /// Load was spread anew.
    Rebalanced,
    /// What a rebalance has brought, measured.
    RebalanceGained,
    /// A rebalance was asked for, and nothing was to be gained.
    RebalanceNotNeeded,
    /// Autoscaling has raised `spec.replicas`.
    ScaledUp,
    /// Autoscaling has lowered `spec.replicas`.
    ScaledDown,
    /// Autoscaling has raised `spec.replicas` from 0, because a request waits.
    Woken,
    /// Somebody else sets `spec.replicas` again and again.
    ScalingContested,
}

impl Reason {
    /// The CamelCase word in the API.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::GroupsReady => "GroupsReady",
            Self::GroupsIncomplete => "GroupsIncomplete",
            Self::NoGroupReady => "NoGroupReady",
            Self::ScaledToZero => "ScaledToZero",
            Self::GroupsStarting => "GroupsStarting",
            Self::RollingOut => "RollingOut",
            Self::RolloutPaused => "RolloutPaused",
            Self::RolloutPartitioned => "RolloutPartitioned",
            Self::RolloutHolding => "RolloutHolding",
            Self::WaitingForPromotion => "WaitingForPromotion",
            Self::ProgressDeadlineExceeded => "ProgressDeadlineExceeded",
            Self::Draining => "Draining",
            Self::Recovering => "Recovering",
            Self::MovingExperts => "MovingExperts",
            Self::Settled => "Settled",
            Self::AllExpertsLive => "AllExpertsLive",
            Self::NotLoaded => "NotLoaded",
            Self::ExpertsLost => "ExpertsLost",
            Self::AsExpected => "AsExpected",
            Self::InvalidSpec => "InvalidSpec",
            Self::NoWorkerImage => "NoWorkerImage",
            Self::MoreRanksThanExperts => "MoreRanksThanExperts",
            Self::CheckpointMismatch => "CheckpointMismatch",
            Self::CheckpointInvalid => "CheckpointInvalid",
            Self::CheckpointNotFound => "CheckpointNotFound",
            Self::PlacementInvalid => "PlacementInvalid",
            Self::OutOfMemory => "OutOfMemory",
            Self::WorkerFailed => "WorkerFailed",
            Self::WorkerUnreachable => "WorkerUnreachable",
            Self::PodRefused => "PodRefused",
            Self::PodUnschedulable => "PodUnschedulable",
            Self::VolumeUnavailable => "VolumeUnavailable",
            Self::ImageUnavailable => "ImageUnavailable",
            Self::PodCrashing => "PodCrashing",
            Self::PodNotStarting => "PodNotStarting",
            Self::SchedulerMissing => "SchedulerMissing",
            Self::NodeLost => "NodeLost",
            Self::DeviceFault => "DeviceFault",
            Self::NoRoom => "NoRoom",
            Self::RankLost => "RankLost",
            Self::CopiesMissing => "CopiesMissing",
            Self::RolledBack => "RolledBack",
            Self::ErrorsIncreased => "ErrorsIncreased",
            Self::FirstTokenSlower => "FirstTokenSlower",
            Self::TokensSlower => "TokensSlower",
            Self::WorkersRestarted => "WorkersRestarted",
            Self::AnswersDiffer => "AnswersDiffer",
            Self::QueryOutOfBounds => "QueryOutOfBounds",
            Self::TrafficShifted => "TrafficShifted",
            Self::RolloutPromoted => "RolloutPromoted",
            Self::AnalysisReported => "AnalysisReported",
            Self::GroupCreated => "GroupCreated",
            Self::GroupReady => "GroupReady",
            Self::GroupRemoved => "GroupRemoved",
            Self::PodReplaced => "PodReplaced",
            Self::RevisionCreated => "RevisionCreated",
            Self::RankReturned => "RankReturned",
            Self::ExpertsAdopted => "ExpertsAdopted",
            Self::PlacementPreparing => "PlacementPreparing",
            Self::PlacementCommitted => "PlacementCommitted",
            Self::Rebalanced => "Rebalanced",
            Self::RebalanceGained => "RebalanceGained",
            Self::RebalanceNotNeeded => "RebalanceNotNeeded",
            Self::ScaledUp => "ScaledUp",
            Self::ScaledDown => "ScaledDown",
            Self::Woken => "Woken",
            Self::ScalingContested => "ScalingContested",
        }
    }

    /// The reason that a worker in phase FAILED gives; unknown words become [`Reason::WorkerFailed`].
    pub fn of_worker(reason: &str) -> Self {
        match reason {
            "CheckpointInvalid" => Self::CheckpointInvalid,
            "CheckpointNotFound" => Self::CheckpointNotFound,
            "PlacementInvalid" => Self::PlacementInvalid,
            "OutOfMemory" => Self::OutOfMemory,
            "DeviceLost" => Self::DeviceFault,
            _ => Self::WorkerFailed,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Sets one condition in a list. `lastTransitionTime` moves only when the status does.
pub fn set_condition(
    conditions: &mut Vec<Condition>,
    kind: ConditionType,
    status: Option<bool>,
    reason: Reason,
    message: String,
    generation: Option<i64>,
    now: Timestamp,
) {
    let status = match status {
        Some(true) => "True",
        Some(false) => "False",
        None => "Unknown",
    };
    let mut next = Condition {
        type_: kind.as_str().to_owned(),
        status: status.to_owned(),
        reason: reason.as_str().to_owned(),
        message,
        observed_generation: generation,
        last_transition_time: Time(now),
    };
    match conditions.iter_mut().find(|c| c.type_ == next.type_) {
        Some(present) => {
            if present.status == next.status {
                next.last_transition_time = present.last_transition_time.clone();
            }
            *present = next;
        }
        None => conditions.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transition_time_moves_only_with_the_status() {
        let mut conditions = vec![];
        let at = |second| Timestamp::from_second(second).unwrap();
        let kind = ConditionType::Available;
        set_condition(&mut conditions, kind, Some(false), Reason::NoGroupReady, "a".into(), Some(1), at(1));
        set_condition(&mut conditions, kind, Some(false), Reason::ScaledToZero, "b".into(), Some(2), at(2));
        assert_eq!(conditions.len(), 1);
        assert_eq!(conditions[0].last_transition_time, Time(at(1)));
        assert_eq!((conditions[0].reason.as_str(), conditions[0].message.as_str()), ("ScaledToZero", "b"));
        set_condition(&mut conditions, kind, Some(true), Reason::GroupsReady, "c".into(), Some(2), at(3));
        assert_eq!(conditions[0].last_transition_time, Time(at(3)));
    }
}
