//! A placement as a document.
use belay_proto::admin::{GroupWorker, LayerPlacement, Placement};

use super::fleet::number;

/// A copy to load.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Move {
    /// Layer.
    pub layer: u32,
    /// Expert within the layer.
    pub expert: u32,
    /// Rank within the group.
    pub rank: u32,
}

/// Copies that `to` has and `from` has not, by layer, expert, and place in `to`.
pub fn moves(from: &[LayerPlacement], to: &[LayerPlacement]) -> Vec<Move> {
    let mut moves = vec![];
    for (layer, placed) in to.iter().enumerate() {
        for (expert, copies) in placed.experts.iter().enumerate() {
            let had = from.get(layer).and_then(|layer| layer.experts.get(expert));
            let is_new = |rank: &&u32| !had.is_some_and(|had| had.ranks.contains(rank));
            let at = |&rank: &u32| Move { layer: number(layer), expert: number(expert), rank };
            moves.extend(copies.ranks.iter().filter(is_new).map(at));
        }
    }
    moves
}

/// The placement that should be in force: `current` if it says the same already, else the same content under a
/// higher epoch than any that was seen.
pub fn advance(current: Option<&Placement>, mut wanted: Placement, highest_seen_epoch: u64) -> Placement {
    wanted.epoch = match current {
        Some(current) => {
            let mut same = wanted.clone();
            same.epoch = current.epoch;
            if same == *current {
                return same;
            }
            current.epoch.max(highest_seen_epoch) + 1
        }
        None => highest_seen_epoch + 1,
    };
    wanted
}

/// One worker of a placement; no limit of its memory is known.
pub fn worker(index: u32, ip: &str, port: u16, uid: &str) -> GroupWorker {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    GroupWorker {
        index,
        fabric_address: format!("{host}:{port}"),
        uid: uid.to_owned(),
        expert_bytes_limit: 0,
    }
}

/// Live copies of each expert (layers one after the other), summed over the placements of several groups; each comes
/// with which of its workers hold their share. Placements of another shape than the first are left out: they belong to
/// another model.
pub fn live_copies<'a>(placements: impl IntoIterator<Item = (&'a Placement, Vec<bool>)>) -> Vec<u32> {
    let mut sum: Vec<u32> = vec![];
    for (placement, live) in placements {
        let per_worker = placement.ranks_per_worker.max(1);
        let holds = |rank: &&u32| live.get((**rank / per_worker) as usize).copied().unwrap_or(false);
        let experts = placement.layers.iter().flat_map(|layer| &layer.experts);
        let copies: Vec<u32> = experts
            .map(|copies| u32::try_from(copies.ranks.iter().filter(holds).count()).unwrap_or(u32::MAX))
            .collect();
        if sum.is_empty() {
            sum = copies;
        } else if sum.len() == copies.len() {
            sum.iter_mut().zip(copies).for_each(|(sum, copies)| *sum += copies);
        }
    }
    sum
}

#[cfg(test)]
mod tests {
    use belay_proto::admin::ExpertCopies;
    use proptest::prelude::*;

    use super::*;

    /// Two layers of two experts, one on each worker.
    fn placement(epoch: u64, uids: [&str; 2]) -> Placement {
        let experts = vec![ExpertCopies { ranks: vec![0] }, ExpertCopies { ranks: vec![3] }];
        Placement {
            epoch,
            group: "g".into(),
            revision: "r".into(),
            ranks_per_worker: 2,
            workers: vec![worker(0, "10.0.0.1", 50053, uids[0]), worker(1, "10.0.0.2", 50053, uids[1])],
            layers: vec![LayerPlacement { experts }; 2],
            expert_bytes: 7,
        }
    }

    proptest! {
        #[test]
        fn epoch_never_goes_back(current in proptest::option::of(1u64..100), seen in 0u64..200, changed: bool) {
            let old = current.map(|epoch| placement(epoch, ["a", "b"]));
            let wanted = placement(0, if changed { ["a", "c"] } else { ["a", "b"] });
            let next = advance(old.as_ref(), wanted, seen);
            match (current, changed) {
                (Some(epoch), false) => prop_assert_eq!(next.epoch, epoch),
                (Some(epoch), true) => prop_assert!(next.epoch > epoch && next.epoch > seen),
                (None, _) => prop_assert!(next.epoch > seen),
            }
        }
    }

    #[test]
    fn first_epoch_is_one() {
        assert_eq!(advance(None, placement(0, ["a", "b"]), 0).epoch, 1);
    }

    #[test]
    fn new_address_alone_is_a_new_epoch() {
        let current = placement(4, ["a", "b"]);
        let mut wanted = current.clone();
        wanted.workers[1].fabric_address = "10.0.0.9:50053".into();
        assert_eq!(advance(Some(&current), wanted, 0).epoch, 5);
    }

    #[test]
    fn lost_worker_leaves_its_experts_without_a_copy() {
        let placement = placement(1, ["a", "b"]);
        assert_eq!(live_copies([(&placement, vec![true, true])]), [1, 1, 1, 1]);
        assert_eq!(live_copies([(&placement, vec![true, false])]), [1, 0, 1, 0]);
        let two = live_copies([(&placement, vec![true, false]), (&placement, vec![true, true])]);
        assert_eq!(two, [2, 1, 2, 1]);
    }

    #[test]
    fn only_copies_that_were_not_there_are_loaded() {
        let from = placement(1, ["a", "b"]).layers;
        let mut to = from.clone();
        to[1].experts[0].ranks = vec![2, 0, 1];
        to[1].experts[1].ranks = vec![];
        let at = |rank| Move { layer: 1, expert: 0, rank };
        assert_eq!(moves(&from, &to), [at(2), at(1)]);
        assert_eq!(moves(&[], &from).len(), 4);
    }

    #[test]
    fn ipv6_addresses_are_bracketed() {
        assert_eq!(worker(0, "fd00::1", 50053, "u").fabric_address, "[fd00::1]:50053");
    }
}
