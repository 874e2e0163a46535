//! Where the experts of a group live: pure, deterministic.
//!
//! The same model card and ranks always give the same layout, so a replaced pod gets back what the lost one held
//! and its peers keep what they have: only addresses, UIDs and the epoch change.
use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement, ModelCard, Placement};
use thiserror::Error;

/// Why a group cannot have a placement.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PlacementError {
    /// Some ranks would hold no expert at all.
    #[error(
        "{workers} workers with {devices_per_worker} devices each are {ranks} ranks, but the model has only \
         {experts} experts in a layer: a rank must hold at least one; use fewer workers or devices"
    )]
    MoreRanksThanExperts {
        /// Workers of the group.
        workers: u32,
        /// Ranks of a worker.
        devices_per_worker: u32,
        /// Ranks of the group.
        ranks: u32,
        /// Routed experts in a layer.
        experts: u32,
    },
    /// The worker's model card has no layers.
    #[error("the model card has no layers")]
    NoLayers,
}

/// Spreads the experts of every layer over the ranks: contiguous ranges, sizes differ by at most one, one copy of
/// each. Expert `e` of `E` goes to rank `⌊e·R/E⌋` of `R`.
///
/// # Errors
/// When a rank would stay empty, or the model has no layers.
pub fn layout(
    card: &ModelCard,
    workers: u32,
    devices_per_worker: u32,
) -> Result<Vec<LayerPlacement>, PlacementError> {
    let ranks = workers * devices_per_worker;
    let experts = card.experts;
    if card.layers == 0 {
        return Err(PlacementError::NoLayers);
    }
    if ranks > experts {
        return Err(PlacementError::MoreRanksThanExperts { workers, devices_per_worker, ranks, experts });
    }
    let rank_of = |expert: u32| u64::from(expert) * u64::from(ranks) / u64::from(experts);
    let layer = LayerPlacement {
        experts: (0..experts)
            .map(|expert| ExpertCopies { ranks: vec![u32::try_from(rank_of(expert)).unwrap_or(u32::MAX)] })
            .collect(),
    };
    Ok(vec![layer; usize::try_from(card.layers).unwrap_or_default()])
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

/// One worker of a placement.
pub fn worker(index: u32, ip: &str, port: u16, uid: &str) -> GroupWorker {
    let host = if ip.contains(':') { format!("[{ip}]") } else { ip.to_owned() };
    GroupWorker { index, fabric_address: format!("{host}:{port}"), uid: uid.to_owned() }
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
    use proptest::prelude::*;

    use super::*;

    fn card(layers: u32, experts: u32) -> ModelCard {
        ModelCard { layers, experts, ..ModelCard::default() }
    }

    fn placement(epoch: u64, uids: [&str; 2]) -> Placement {
        Placement {
            epoch,
            group: "g".into(),
            revision: "r".into(),
            ranks_per_worker: 2,
            workers: vec![worker(0, "10.0.0.1", 50053, uids[0]), worker(1, "10.0.0.2", 50053, uids[1])],
            layers: layout(&card(2, 10), 2, 2).unwrap(),
        }
    }

    proptest! {
        #[test]
        fn every_expert_has_one_copy_and_every_rank_a_fair_share(
            layers in 1u32..4, workers in 1u32..9, devices in 1u32..9, extra in 0u32..100,
        ) {
            let ranks = workers * devices;
            let experts = ranks + extra;
            let layers_out = layout(&card(layers, experts), workers, devices).unwrap();
            prop_assert_eq!(layers_out.len() as u32, layers);
            for layer in &layers_out {
                prop_assert_eq!(layer.experts.len() as u32, experts);
                let mut held = vec![0u32; ranks as usize];
                let mut last = 0;
                for copies in &layer.experts {
                    prop_assert_eq!(copies.ranks.len(), 1);
                    prop_assert!(copies.ranks[0] >= last, "ranges are contiguous");
                    last = copies.ranks[0];
                    held[last as usize] += 1;
                }
                let (low, high) = (held.iter().min().unwrap(), held.iter().max().unwrap());
                prop_assert!(*low >= 1 && high - low <= 1, "{held:?}");
            }
        }

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
    fn more_ranks_than_experts_are_refused_with_the_numbers() {
        let error = layout(&card(2, 7), 2, 4).unwrap_err().to_string();
        for number in ["2 workers", "4 devices", "8 ranks", "7 experts"] {
            assert!(error.contains(number), "{error}");
        }
        assert!(layout(&card(2, 8), 2, 4).is_ok());
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
        assert_eq!(live_copies([(&placement, vec![true, true])]), [1; 20]);
        let lost = live_copies([(&placement, vec![true, false])]);
        assert_eq!(lost.iter().sum::<u32>(), 10);
        let two = live_copies([(&placement, vec![true, false]), (&placement, vec![true, true])]);
        assert_eq!((two.iter().min(), two.iter().sum()), (Some(&1), 30u32));
    }

    #[test]
    fn ipv6_addresses_are_bracketed() {
        assert_eq!(worker(0, "fd00::1", 50053, "u").fabric_address, "[fd00::1]:50053");
    }
}
