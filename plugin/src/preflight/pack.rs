//! Finds a node for each of some pods: pure.
//!
//! The promise is one-sided: where all pods get a node, all rules that are looked at hold together. That a pod gets none means
//! that no place was found for it. For pods that are alike (those of the groups of one revision) there is none then; a mixture
//! of sizes might fit in another order.
use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt as _;
use serde::Serialize;

use super::{
    amount::words,
    demand::Amounts,
    room::{Obstacle, Room},
};

/// A pod that needs a node.
#[derive(Clone, Debug, PartialEq)]
pub struct Candidate {
    /// The object.
    pub pod: Pod,
    /// What it asks for.
    pub asked: Amounts,
}

/// A pod that gets no node.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Misfit {
    /// Its name.
    pub pod: String,
    /// Why, over all nodes, as the scheduler would put it.
    pub message: String,
}

/// Puts pods on nodes, those that ask for most first, each on the first node by name that takes it. Returns the index of the
/// node of each, in the order of `pods`; what has a place is accounted for in `rooms`.
pub fn place(pods: &[Candidate], rooms: &mut [Room]) -> Vec<Option<usize>> {
    let mut order: Vec<usize> = (0..pods.len()).collect();
    let share = |candidate: &Candidate| largest_share(&candidate.asked, rooms);
    let shares: Vec<u64> = pods.iter().map(share).collect();
    order.sort_by_key(|index| (std::cmp::Reverse(shares.get(*index).copied()), *index));
    let mut places = vec![None; pods.len()];
    for index in order {
        let Some(candidate) = pods.get(index) else { continue };
        let takes = |room: &Room| room.obstacles(&candidate.pod, &candidate.asked).is_empty();
        let found = rooms.iter().position(takes);
        if let Some(room) = found.and_then(|node| rooms.get_mut(node)) {
            room.put(&candidate.asked);
        }
        if let Some(place) = places.get_mut(index) {
            *place = found;
        }
    }
    places
}

/// How much of the largest node a pod asks for, of the resource of which it asks most: in millionths.
fn largest_share(asked: &Amounts, rooms: &[Room]) -> u64 {
    let share = |(resource, amount): (&String, &i128)| {
        let most = rooms.iter().filter_map(|room| room.allocatable.get(resource)).max().copied().unwrap_or(0);
        let millionths = amount.saturating_mul(1_000_000).checked_div(most).unwrap_or(i128::MAX);
        u64::try_from(millionths.max(0)).unwrap_or(u64::MAX)
    };
    asked.iter().map(share).max().unwrap_or(0)
}

/// Why no node takes a pod: how many nodes there are of each obstacle, and how much is asked for of what is missing.
pub fn explain(candidate: &Candidate, rooms: &[Room]) -> Misfit {
    let mut counts: BTreeMap<Obstacle, usize> = BTreeMap::new();
    for room in rooms {
        let obstacles = room.obstacles(&candidate.pod, &candidate.asked);
        // a node that is out of the question anyhow says nothing about what is missing
        let of_rule = |obstacle: &&Obstacle| !matches!(obstacle, Obstacle::Insufficient(_));
        let told: Vec<&Obstacle> = match obstacles.iter().filter(of_rule).collect::<Vec<_>>() {
            rules if rules.is_empty() => obstacles.iter().collect(),
            rules => rules,
        };
        for obstacle in told {
            *counts.entry(obstacle.clone()).or_default() += 1;
        }
    }
    let asks = |obstacle: &Obstacle| match obstacle {
        Obstacle::Insufficient(resource) if resource != "pods" => {
            let most = rooms
                .iter()
                .filter(|room| room.obstacles(&candidate.pod, &Amounts::new()).is_empty())
                .filter_map(|room| room.free().get(resource).copied())
                .max()
                .unwrap_or(0);
            let asked = candidate.asked.get(resource).copied().unwrap_or(0);
            format!(" (asks {}, at most {} free)", words(resource, asked), words(resource, most.max(0)))
        }
        _ => String::new(),
    };
    let parts: Vec<String> =
        counts.iter().map(|(obstacle, count)| format!("{count} {obstacle}{}", asks(obstacle))).collect();
    let message = match rooms.len() {
        0 => "the cluster has no nodes".to_owned(),
        all => format!("0/{all} nodes take it: {}", parts.join(", ")),
    };
    Misfit { pod: candidate.pod.name_any(), message }
}
