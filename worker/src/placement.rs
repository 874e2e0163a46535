//! This worker's part in the group's placements: what it was told, and the documents in the fabric's terms.

use std::sync::{Mutex, MutexGuard, PoisonError};

use belay_epoch::document::{Copy as GroupCopy, Refusal, Slot};
use belay_epoch::member::Member;
use belay_fabric::{Placement, PlacementError, Table, WorkerEntry};
use belay_proto::admin::{self, ModelCard, SetPlacementRequest};
use tokio::sync::watch;

use crate::config::ServeConfig;
use crate::ranks::Copy;

/// The worker's side of the epoch protocol, shared by the admin service (which takes requests) and the life cycle
/// (which carries them out).
#[derive(Debug)]
pub struct Membership {
    /// `None` until the model card is known.
    member: Mutex<Option<Member>>,
    /// Counts what was taken.
    taken: watch::Sender<u64>,
}

impl Default for Membership {
    fn default() -> Self {
        Self { member: Mutex::default(), taken: watch::Sender::new(0) }
    }
}

impl Membership {
    fn lock(&self) -> MutexGuard<'_, Option<Member>> {
        // a request that panicked half-way has changed nothing: `accept` checks before it writes
        self.member.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Begins to take requests.
    pub fn begin(&self, slot: Slot) {
        *self.lock() = Some(Member::new(slot));
    }

    /// Takes a request; `None` while there is no model card.
    pub fn accept(&self, request: &SetPlacementRequest) -> Option<Result<(), Refusal>> {
        let change = self.lock().as_mut()?.accept(request);
        if change.as_ref().is_ok_and(|change| change.any()) {
            self.taken.send_modify(|count| *count += 1);
        }
        Some(change.map(drop))
    }

    /// Follows what is taken.
    #[must_use]
    pub fn watch(&self) -> watch::Receiver<u64> {
        self.taken.subscribe()
    }

    /// Reads or tells something; `None` while there is no model card.
    pub fn with<T>(&self, work: impl FnOnce(&mut Member) -> T) -> Option<T> {
        self.lock().as_mut().map(work)
    }
}

/// What a placement must fit; `None` for a worker that stands alone.
#[must_use]
pub fn slot(config: &ServeConfig, uid: &str, card: &ModelCard) -> Option<Slot> {
    Some(Slot {
        group: config.group_name()?.to_owned(),
        revision: config.revision.clone(),
        worker: config.worker_index,
        workers: config.group_workers,
        uid: uid.to_owned(),
        ranks: config.devices_per_worker,
        layers: card.layers,
        experts: card.experts,
    })
}

/// A document in the fabric's terms.
///
/// # Errors
/// If it contradicts itself.
pub fn table(document: &admin::Placement) -> Result<Table, PlacementError> {
    let worker = |worker: &admin::GroupWorker| WorkerEntry {
        index: worker.index,
        address: worker.fabric_address.clone(),
        uid: worker.uid.clone(),
        expert_bytes_limit: worker.expert_bytes_limit,
    };
    let layer =
        |layer: &admin::LayerPlacement| layer.experts.iter().map(|copies| copies.ranks.clone()).collect();
    Table::new(Placement {
        epoch: document.epoch,
        ranks_per_worker: document.ranks_per_worker,
        workers: document.workers.iter().map(worker).collect(),
        layers: document.layers.iter().map(layer).collect(),
        expert_bytes: document.expert_bytes,
    })
}

/// Copies of the group's ranks as copies by own rank.
#[must_use]
pub fn by_own_rank(copies: impl IntoIterator<Item = GroupCopy>, slot: &Slot) -> Vec<Vec<Copy>> {
    let mut lists = vec![Vec::new(); slot.ranks as usize];
    for copy in copies {
        let own = copy.rank.checked_sub(slot.worker * slot.ranks);
        if let Some(list) = own.and_then(|own| lists.get_mut(own as usize)) {
            list.push((copy.layer, copy.expert));
        }
    }
    lists
}

/// The other way round.
pub fn of_group<'a>(copies: &'a [Vec<Copy>], slot: &Slot) -> impl Iterator<Item = GroupCopy> + 'a {
    let first = slot.worker * slot.ranks;
    (first..).zip(copies).flat_map(|(rank, copies)| {
        copies.iter().map(move |&(layer, expert)| GroupCopy { rank, layer, expert })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement};

    fn slot() -> Slot {
        Slot {
            group: "g".into(),
            revision: "r".into(),
            worker: 1,
            workers: 2,
            uid: "u1".into(),
            ranks: 2,
            layers: 2,
            experts: 4,
        }
    }

    fn document() -> admin::Placement {
        let worker = |index: u32| GroupWorker {
            index,
            fabric_address: format!("h{index}:1"),
            uid: format!("u{index}"),
            expert_bytes_limit: 100,
        };
        let layer =
            LayerPlacement { experts: (0..4).map(|rank| ExpertCopies { ranks: vec![rank] }).collect() };
        admin::Placement {
            epoch: 3,
            group: "g".into(),
            revision: "r".into(),
            ranks_per_worker: 2,
            workers: (0..2).map(worker).collect(),
            layers: vec![layer; 2],
            expert_bytes: 7,
        }
    }

    #[test]
    fn a_document_becomes_a_table() {
        let table = table(&document()).unwrap();
        assert_eq!((table.epoch(), table.expert_bytes()), (3, 7));
        assert_eq!(table.of_rank(3).collect::<Vec<_>>(), [(0, 3), (1, 3)]);
        assert_eq!(
            (table.workers()[0].address.as_str(), table.workers()[0].expert_bytes_limit),
            ("h0:1", 100)
        );
    }

    #[test]
    fn copies_of_own_ranks_keep_their_place() {
        let mine = belay_epoch::document::copies(&document(), 1);
        let lists = by_own_rank(mine.iter().copied(), &slot());
        assert_eq!(lists, [vec![(0, 2), (1, 2)], vec![(0, 3), (1, 3)]]);
        assert!(of_group(&lists, &slot()).all(|copy| mine.contains(&copy)));
        let theirs = belay_epoch::document::copies(&document(), 0);
        assert_eq!(by_own_rank(theirs, &slot()), [vec![], vec![]], "ranks of others are not ours");
    }

    #[test]
    fn a_document_survives_the_config_map() {
        let json = serde_json::to_string(&document()).unwrap();
        assert!(json.contains("[[0],[1],[2],[3]]"), "short enough for large models: {json}");
        assert_eq!(serde_json::from_str::<admin::Placement>(&json).unwrap(), document());
    }
}
