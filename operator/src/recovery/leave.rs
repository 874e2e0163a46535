//! Which pods may be evicted: those without which every expert has a live copy.
//!
//! The label that says so is what the disruption budget goes by, so that the API server refuses every other eviction by
//! itself, also while no operator is there. It must therefore be true for as long as it stands: at most one pod whose
//! experts others have as well, and only while nothing else happens to the group.
use belay_epoch::Intent;
use belay_proto::admin::{Phase, Placement};
use k8s_openapi::jiff::Timestamp;

use super::seats::{Attends, attends, held, holds_sole};
use crate::group::{Group, WorkerPod};

/// Workers of a group whose pods may go, by index. `next` is the intent from now on.
pub fn may_leave(group: &Group, next: &Intent, now: Timestamp) -> Vec<u32> {
    let mut indices: Vec<u32> = group
        .pods()
        .filter(|(index, pod)| has_nothing(group, next, *index, pod, now))
        .map(|(index, _)| index)
        .collect();
    let moving = group.intent.operation.is_some() || next.operation.is_some();
    if !moving && let Some(spare) = spare(group, &indices) {
        indices.push(spare);
        indices.sort_unstable();
    }
    indices
}

/// A pod that no placement gives experts to, and whose worker has adopted none: a new one, or one whose experts moved
/// away. So has one whose process has not run for long, whatever was meant for it.
fn has_nothing(group: &Group, next: &Intent, index: u32, pod: &WorkerPod, now: Timestamp) -> bool {
    let named = |placement: &Placement| {
        let is_named = placement.workers.get(index as usize).is_some_and(|worker| worker.uid == pod.uid);
        is_named && held(&placement.layers, placement.ranks_per_worker, index) > 0
    };
    let meant = [&group.intent, next].into_iter().any(|intent| {
        let target = intent.operation.as_ref().and_then(|operation| operation.target.as_ref());
        intent.in_force.iter().chain(target).any(named)
    });
    let loaded = pod.status().is_some_and(|status| {
        let adopted = status.coverage.as_ref().map_or(0, |coverage| coverage.adopted);
        adopted > 0 || status.ranks.iter().any(|rank| rank.experts > 0)
    });
    let dead = !pod.running && attends(group, index, now) == Attends::Gone;
    (!meant && !loaded) || dead
}

/// The one pod that may go although it has experts: one that is to go if there is one, else the last.
fn spare(group: &Group, idle: &[u32]) -> Option<u32> {
    let in_force = group.placement()?;
    let complete = (0u32..).zip(&group.slots).all(|(index, slot)| {
        slot.as_ref().is_some_and(|pod| idle.contains(&index) || holds_its_share(index, pod, in_force))
    });
    if !complete {
        return None;
    }
    let per_worker = in_force.ranks_per_worker;
    let may_go = |index: &u32| {
        !idle.contains(index)
            && !holds_sole(&in_force.layers, per_worker, *index, |other| !idle.contains(&other))
    };
    let candidates = group.pods().filter(|(index, _)| may_go(index));
    candidates.max_by_key(|(index, pod)| (pod.leaving(), *index)).map(|(index, _)| index)
}

/// Whether a worker is well, uses what is in force, and has its part of it.
fn holds_its_share(index: u32, pod: &WorkerPod, in_force: &Placement) -> bool {
    let named = in_force.workers.get(index as usize).is_some_and(|worker| worker.uid == pod.uid);
    let current = pod.status().is_some_and(|status| {
        status.phase() == Phase::Ready
            && status.placement_epoch == in_force.epoch
            && status
                .coverage
                .as_ref()
                .is_none_or(|coverage| coverage.uncovered == 0 && coverage.adopted == 0)
    });
    named && current && pod.serves()
}
