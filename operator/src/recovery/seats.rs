//! Who can hold experts.
use std::collections::BTreeSet;

use belay_proto::admin::{GroupWorker, LayerPlacement, Phase, Placement};
use k8s_openapi::jiff::Timestamp;

use super::{GRACE_SECONDS, STAY_SECONDS};
use crate::{
    group::{Group, WorkerPod},
    placement,
};

/// Port of the fabric in every worker pod.
const FABRIC_PORT: u16 = 50053;

/// Whether somebody is in a slot.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Attends {
    /// A worker that can hold experts.
    Present,
    /// Nobody for a moment: what it had is kept for it.
    Awaited,
    /// Nobody for longer.
    Gone,
}

/// How a slot attends at `now`. A pod that is being deleted keeps what it has for as long as it finishes its requests: it
/// takes part in the placement until it is gone.
pub fn attends(group: &Group, index: u32, now: Timestamp) -> Attends {
    let seat = group.seat(index, now);
    let finishes = group.pod(index).is_some_and(|pod| {
        let answers = pod.status().is_some_and(|status| status.phase() != Phase::Failed);
        pod.terminating && answers && !pod.node_lost
    });
    match seat.present {
        true => Attends::Present,
        false if finishes || now.as_second() - seat.since.as_second() < GRACE_SECONDS => Attends::Awaited,
        false => Attends::Gone,
    }
}

/// Whether the node of a slot's pod took no pods until a moment ago: it may do so again.
pub fn left_lately(group: &Group, index: u32, now: Timestamp) -> bool {
    group.seat(index, now).stays_since.as_second() > now.as_second() - STAY_SECONDS
}

/// The entry of a present worker in a placement. What a worker may hold does not change during its life.
pub fn entry(index: u32, pod: &WorkerPod, in_force: Option<&Placement>) -> GroupWorker {
    let known = in_force
        .and_then(|placement| placement.workers.get(index as usize))
        .filter(|worker| worker.uid == pod.uid)
        .map(|worker| worker.expert_bytes_limit);
    let told = pod.status().map_or(0, |status| status.expert_bytes_limit);
    GroupWorker {
        expert_bytes_limit: known.unwrap_or(told),
        ..placement::worker(index, pod.ip.as_deref().unwrap_or_default(), FABRIC_PORT, &pod.uid)
    }
}

/// The entry of a slot where nobody is.
pub fn nobody(index: u32) -> GroupWorker {
    GroupWorker { index, ..GroupWorker::default() }
}

/// The worker of a rank.
pub fn worker_of(rank: u32, ranks_per_worker: u32) -> u32 {
    rank.checked_div(ranks_per_worker).unwrap_or(u32::MAX)
}

/// Copies that a worker's ranks hold.
pub fn held(layers: &[LayerPlacement], ranks_per_worker: u32, worker: u32) -> u64 {
    let on = |rank: &&u32| worker_of(**rank, ranks_per_worker) == worker;
    let experts = layers.iter().flat_map(|layer| &layer.experts);
    experts.map(|copies| copies.ranks.iter().filter(on).count() as u64).sum()
}

/// Workers that a placement gives experts to.
pub fn has_experts(placement: &Placement) -> BTreeSet<u32> {
    let copies = placement.layers.iter().flat_map(|layer| &layer.experts).flat_map(|copies| &copies.ranks);
    copies.map(|rank| worker_of(*rank, placement.ranks_per_worker)).collect()
}

/// Whether some expert has a copy on a worker and none on another one that `lives`.
pub fn holds_sole(
    layers: &[LayerPlacement],
    ranks_per_worker: u32,
    worker: u32,
    lives: impl Fn(u32) -> bool,
) -> bool {
    let on = |rank: &u32| worker_of(*rank, ranks_per_worker);
    layers.iter().flat_map(|layer| &layer.experts).any(|copies| {
        let here = copies.ranks.iter().any(|rank| on(rank) == worker);
        here && !copies.ranks.iter().any(|rank| on(rank) != worker && lives(on(rank)))
    })
}
