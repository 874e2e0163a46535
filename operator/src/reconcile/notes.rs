//! What happened to experts, for people: told once, at the step from one status to the next.
use std::collections::BTreeSet;

use belay_crds::{CheckStatus, GroupStatus, ModelDeploymentStatus, Reason, labels};
use belay_epoch::{Kind, Phase};

use super::{apply::Applied, observe::Observed, plan::Plan};
use crate::{
    events::Note,
    group::Group,
    placement,
    recovery::{describe_copies, describe_ranks},
    rollout::Happening,
};

/// Notes about the experts of all groups.
pub fn notes(
    observed: &Observed,
    plan: &Plan,
    applied: &Applied,
    previous: Option<&ModelDeploymentStatus>,
    next: &ModelDeploymentStatus,
) -> Vec<Note> {
    let mut notes: Vec<Note> = rollout(plan).into_iter().collect();
    notes.extend(reported(previous, next));
    for group in &observed.groups {
        let line = |status: Option<&ModelDeploymentStatus>| -> GroupStatus {
            let mut lines = status.into_iter().flat_map(|status| &status.groups);
            lines.find(|line| line.name == group.name).cloned().unwrap_or_default()
        };
        let (before, after) = (line(previous), line(Some(next)));
        if !after.name.is_empty() {
            ranks(&mut notes, group, &before, &after);
        }
        if applied.intents.contains(&group.name) {
            placements(&mut notes, group, plan);
        }
    }
    notes
}

/// A step of a rollout.
fn rollout(plan: &Plan) -> Option<Note> {
    let (revision, before) = (&plan.target.revision, plan.before.as_ref()?);
    Some(match plan.stage.happened.as_ref()? {
        Happening::Shifted(percent) => {
            let text = format!("revision {revision} has {percent} percent of new requests");
            Note::normal(Reason::TrafficShifted, "Rollout", revision, text)
        }
        Happening::Promoted => {
            let text = format!("revision {revision} is good, and replaces revision {}", before.revision);
            Note::normal(Reason::RolloutPromoted, "Rollout", revision, text)
        }
        Happening::RolledBack(reason, message) => {
            let text =
                format!("revision {revision} is taken back for {}: {reason}: {message}", before.revision);
            Note::warning(Reason::RolledBack, "Rollout", revision, text)
        }
    })
}

/// What was found bad just now, and does not take the revision back.
fn reported(previous: Option<&ModelDeploymentStatus>, next: &ModelDeploymentStatus) -> Vec<Note> {
    let Some(rollout) = next.rollout.as_ref().filter(|rollout| rollout.phase != "RolledBack") else {
        return vec![];
    };
    let before = previous.and_then(|status| status.rollout.as_ref());
    let was_bad = |check: &&CheckStatus| {
        let same = |old: &CheckStatus| old.name == check.name && old.verdict == "Bad";
        before.is_some_and(|before| before.revision == rollout.revision && before.analysis.iter().any(same))
    };
    let bad = rollout.analysis.iter().filter(|check| check.verdict == "Bad" && !was_bad(check));
    bad.map(|check| {
        let text = format!("revision {}: {}: {}", rollout.revision, check.name, check.message);
        Note::warning(Reason::AnalysisReported, "Analyse", &rollout.revision, text)
    })
    .collect()
}

/// Ranks that are lost or back, and what others took over.
fn ranks(notes: &mut Vec<Note>, group: &Group, before: &GroupStatus, after: &GroupStatus) {
    let set = |line: &GroupStatus| -> BTreeSet<u32> {
        line.lost_workers.iter().filter_map(|index| u32::try_from(*index).ok()).collect()
    };
    let (lost_before, lost_after) = (set(before), set(after));
    let Some(placement) = group.placement() else { return };
    let what = |index: u32| {
        let per_worker = placement.ranks_per_worker;
        let experts = describe_copies(&placement.layers, per_worker, index);
        format!("{} of worker {index} ({experts})", describe_ranks(index, per_worker))
    };
    for &index in lost_after.difference(&lost_before) {
        let pod = labels::pod_name(&group.name, index);
        let covered = after.experts.as_ref().map_or(0, |experts| experts.total - experts.covered);
        let text = format!("pod {pod} is lost: {}; {covered} experts have no live copy", what(index));
        notes.push(Note::warning(Reason::RankLost, "Recover", &pod, text));
    }
    for &index in lost_before.difference(&lost_after) {
        let pod = labels::pod_name(&group.name, index);
        let back = group.live_workers(placement).get(index as usize) == Some(&true);
        let text = if back {
            format!("pod {pod} is back: {}", what(index))
        } else {
            format!("the experts of pod {pod} are on other workers now")
        };
        notes.push(Note::normal(Reason::RankReturned, "Recover", &pod, text));
    }
    let adopted = |line: &GroupStatus| line.experts.as_ref().map_or(0, |experts| experts.adopted);
    if adopted(before) == 0 && adopted(after) > 0 {
        let text = format!("workers of group {} hold {} experts for lost ranks", group.name, adopted(after));
        notes.push(Note::normal(Reason::ExpertsAdopted, "Recover", &group.name, text));
    }
}

/// Steps of a change of placement.
fn placements(notes: &mut Vec<Note>, group: &Group, plan: &Plan) {
    let Some(experts) = plan.groups.iter().find(|plan| plan.name == group.name).map(|plan| &plan.experts)
    else {
        return;
    };
    let name = &group.name;
    let (before, after) = (&group.intent, &experts.intent);
    let mut note = |reason, text| notes.push(Note::normal(reason, "Place", name, text));
    if let Some(operation) = &after.operation
        && operation.phase == Phase::Prepare
        && before.operation.as_ref().map(|operation| operation.epoch) != Some(operation.epoch)
        && let (Some(in_force), Some(target)) = (&after.in_force, &operation.target)
    {
        let copies = placement::moves(&in_force.layers, &target.layers).len() as u64;
        let bytes = copies.saturating_mul(target.expert_bytes);
        let text = format!(
            "group {name}, epoch {} ({:?}): {}; {copies} copies move ({bytes} bytes)",
            operation.epoch, operation.kind, operation.reason
        );
        note(Reason::PlacementPreparing, text);
    }
    let epoch =
        |intent: &belay_epoch::Intent| intent.in_force.as_ref().map_or(0, |placement| placement.epoch);
    if epoch(after) > epoch(before) {
        let kind =
            after.operation.as_ref().map(|operation| format!(" ({:?})", operation.kind)).unwrap_or_default();
        note(Reason::PlacementCommitted, format!("group {name}: epoch {}{kind} is in force", epoch(after)));
    }
    let rebalanced = after.operation.as_ref().is_some_and(|operation| operation.kind == Kind::Rebalance);
    let (last_before, last_after) = (&group.rebalances.last, &experts.rebalances.last);
    if let Some(last) = last_after {
        if rebalanced && last_before.as_ref().map(|last| last.epoch) != Some(last.epoch) {
            let (from, to, bytes) = (last.before_percent, last.after_percent, last.moved_bytes);
            let text = format!(
                "group {name}: imbalance {from}% becomes {to}% as counted, {bytes} bytes were loaded"
            );
            note(Reason::Rebalanced, text);
        }
        let measured = |last: &crate::recovery::Rebalance| last.measured_percent;
        if let (Some(percent), None) = (last.measured_percent, last_before.as_ref().and_then(measured)) {
            let text =
                format!("group {name}: imbalance was {}%, now {percent}% is measured", last.before_percent);
            note(Reason::RebalanceGained, text);
        }
    }
    if let Some(why) = &experts.refused {
        note(Reason::RebalanceNotNeeded, format!("group {name}: {why}"));
    }
}
