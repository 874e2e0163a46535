//! A placement document: who is in it, which copies it gives to whom, and whether it fits a worker at all.

use std::collections::BTreeSet;

use belay_proto::admin::{Placement, SetPlacementRequest};

/// One expert of one layer on one rank.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Copy {
    /// Rank, numbered over the group.
    pub rank: u32,
    /// Layer index.
    pub layer: u32,
    /// Expert index.
    pub expert: u32,
}

/// What a worker is: a document must fit it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Slot {
    /// Group name.
    pub group: String,
    /// Revision.
    pub revision: String,
    /// Index of this worker.
    pub worker: u32,
    /// Workers of the group.
    pub workers: u32,
    /// UID of this pod.
    pub uid: String,
    /// Ranks of this worker.
    pub ranks: u32,
    /// Layers of the model.
    pub layers: u32,
    /// Routed experts in each layer.
    pub experts: u32,
}

/// Why a request is not taken. Nothing has changed then.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum Refusal {
    /// It is for another group, revision or size.
    #[error("{0}")]
    NotForThisWorker(String),
    /// It contradicts itself or the model.
    #[error("{0}")]
    Malformed(String),
    /// It is of the past: the worker was told of a later epoch.
    #[error("{0}")]
    Stale(String),
    /// Another document has the same epoch.
    #[error("{0}")]
    Conflict(String),
}

/// UID that a placement has for a slot; `None` if nobody is there.
#[must_use]
pub fn uid(document: &Placement, worker: u32) -> Option<&str> {
    let entry = document.workers.iter().find(|entry| entry.index == worker)?;
    (!entry.uid.is_empty()).then_some(entry.uid.as_str())
}

/// Whether this life of a slot is a member of a placement.
#[must_use]
pub fn is_member(document: &Placement, worker: u32, of_uid: &str) -> bool {
    uid(document, worker).is_some_and(|uid| uid == of_uid)
}

/// Copies that a placement gives to the ranks of one worker.
#[must_use]
pub fn copies(document: &Placement, worker: u32) -> BTreeSet<Copy> {
    all_copies(document).filter(|copy| owner(document, copy.rank) == Some(worker)).collect()
}

/// Every copy that a placement names, layer by layer.
pub fn all_copies(document: &Placement) -> impl Iterator<Item = Copy> + '_ {
    document.layers.iter().zip(0u32..).flat_map(|(placed, layer)| {
        placed.experts.iter().zip(0u32..).flat_map(move |(copies, expert)| {
            copies.ranks.iter().map(move |&rank| Copy { rank, layer, expert })
        })
    })
}

/// The worker that has a rank; `None` if a worker has no ranks at all.
#[must_use]
pub fn owner(document: &Placement, rank: u32) -> Option<u32> {
    rank.checked_div(document.ranks_per_worker)
}

/// Checks that a request is for this worker and contradicts neither itself nor the model.
///
/// # Errors
/// [`Refusal`] naming the field.
pub fn check(request: &SetPlacementRequest, slot: &Slot) -> Result<(), Refusal> {
    let Some(in_force) = &request.in_force else {
        return Err(Refusal::Malformed("in_force: missing".into()));
    };
    fits(in_force, slot, "in_force")?;
    if let Some(target) = &request.target {
        fits(target, slot, "target")?;
        if target.epoch <= in_force.epoch {
            return Err(Refusal::Malformed(format!(
                "target.epoch: {} is not later than {}, which is in force",
                target.epoch, in_force.epoch
            )));
        }
    }
    if request.retire_epoch > in_force.epoch {
        return Err(Refusal::Malformed(format!(
            "retire_epoch: {} is later than {}, which is in force",
            request.retire_epoch, in_force.epoch
        )));
    }
    Ok(())
}

fn fits(document: &Placement, slot: &Slot, field: &str) -> Result<(), Refusal> {
    let malformed = |what: String| Err(Refusal::Malformed(format!("{field}.{what}")));
    let differs = |what: &str, theirs: &dyn std::fmt::Debug, ours: &dyn std::fmt::Debug| {
        Err(Refusal::NotForThisWorker(format!(
            "{field}.{what}: the placement has {theirs:?}, this worker {ours:?}"
        )))
    };
    if document.group != slot.group {
        return differs("group", &document.group, &slot.group);
    }
    if document.revision != slot.revision {
        return differs("revision", &document.revision, &slot.revision);
    }
    if document.ranks_per_worker != slot.ranks {
        return differs("ranks_per_worker", &document.ranks_per_worker, &slot.ranks);
    }
    if document.workers.len() != slot.workers as usize {
        return differs("workers", &document.workers.len(), &slot.workers);
    }
    if document.epoch == 0 {
        return malformed("epoch: must be at least 1".into());
    }
    let indices: BTreeSet<u32> = document.workers.iter().map(|worker| worker.index).collect();
    if !indices.iter().copied().eq(0..slot.workers) {
        return malformed("workers: an index is missing, doubled or out of range".into());
    }
    if document.layers.len() != slot.layers as usize {
        return malformed(format!(
            "layers: the placement has {}, the checkpoint {}",
            document.layers.len(),
            slot.layers
        ));
    }
    let ranks = u64::from(slot.ranks) * u64::from(slot.workers);
    for (layer, placed) in document.layers.iter().enumerate() {
        if placed.experts.len() != slot.experts as usize {
            return malformed(format!(
                "layers[{layer}]: the placement has {} experts, the checkpoint {}",
                placed.experts.len(),
                slot.experts
            ));
        }
        for (expert, copies) in placed.experts.iter().enumerate() {
            if copies.ranks.is_empty() {
                return malformed(format!("layers[{layer}].experts[{expert}]: no rank holds it"));
            }
            for (position, &rank) in copies.ranks.iter().enumerate() {
                if u64::from(rank) >= ranks || copies.ranks[..position].contains(&rank) {
                    return malformed(format!(
                        "layers[{layer}].experts[{expert}]: rank {rank} is doubled or not among the group's {ranks}"
                    ));
                }
            }
        }
    }
    Ok(())
}
