//! A placement document against what this worker is. Pure.

use belay_fabric::{Placement, Table, WorkerEntry};
use belay_proto::admin::{self, ModelCard};

/// What a placement must fit.
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
}

/// Why a placement is not taken.
#[derive(Clone, Debug, thiserror::Error, PartialEq, Eq)]
pub enum PlacementRefusal {
    /// It is for somebody else, or of the past.
    #[error("{0}")]
    NotForThisWorker(String),
    /// It contradicts itself or the model.
    #[error("{0}")]
    Malformed(String),
}

fn other<T>(message: String) -> Result<T, PlacementRefusal> {
    Err(PlacementRefusal::NotForThisWorker(message))
}

/// Checks a document and turns it into a table.
///
/// # Errors
/// [`PlacementRefusal`] naming the field.
pub fn accept(document: &admin::Placement, slot: &Slot, card: &ModelCard) -> Result<Table, PlacementRefusal> {
    let differs = |what: &str, theirs: &str, ours: &str| {
        other(format!("{what}: the placement is for {theirs:?}, this worker is of {ours:?}"))
    };
    if document.group != slot.group {
        return differs("group", &document.group, &slot.group);
    }
    if document.revision != slot.revision {
        return differs("revision", &document.revision, &slot.revision);
    }
    if document.epoch == 0 {
        return Err(PlacementRefusal::Malformed("epoch: must be at least 1".into()));
    }
    if document.ranks_per_worker != slot.ranks {
        return other(format!(
            "ranks_per_worker: the placement has {}, this worker {}",
            document.ranks_per_worker, slot.ranks
        ));
    }
    if document.workers.len() != slot.workers as usize {
        return other(format!(
            "workers: the placement has {}, the group {}",
            document.workers.len(),
            slot.workers
        ));
    }
    let shape = (document.layers.len(), document.layers.first().map_or(0, |layer| layer.experts.len()));
    let uneven = document.layers.iter().any(|layer| layer.experts.len() != shape.1);
    if shape != (card.layers as usize, card.experts as usize) || uneven {
        return Err(PlacementRefusal::Malformed(format!(
            "layers: the placement has {} of {} experts{}, the checkpoint {} of {}",
            shape.0,
            shape.1,
            if uneven { " (not in each)" } else { "" },
            card.layers,
            card.experts
        )));
    }
    let table = Table::new(from_document(document))
        .map_err(|error| PlacementRefusal::Malformed(error.to_string()))?;
    let mine = &table.workers()[slot.worker as usize];
    if mine.uid != slot.uid {
        return differs(&format!("workers[{}].uid", slot.worker), &mine.uid, &slot.uid);
    }
    Ok(table)
}

/// Whether `new` may follow `current`: a later epoch, or the same document again.
///
/// # Errors
/// [`PlacementRefusal::NotForThisWorker`] if it is older or another one of the same epoch.
pub fn follows(new: &admin::Placement, current: Option<&admin::Placement>) -> Result<(), PlacementRefusal> {
    match current {
        Some(current) if new.epoch < current.epoch => {
            other(format!("epoch: {} is older than {}, which is in force", new.epoch, current.epoch))
        }
        Some(current) if new.epoch == current.epoch && new != current => {
            other(format!("epoch: another placement of epoch {} is in force", current.epoch))
        }
        _ => Ok(()),
    }
}

fn from_document(document: &admin::Placement) -> Placement {
    let worker = |worker: &admin::GroupWorker| WorkerEntry {
        index: worker.index,
        address: worker.fabric_address.clone(),
        uid: worker.uid.clone(),
    };
    let layer =
        |layer: &admin::LayerPlacement| layer.experts.iter().map(|copies| copies.ranks.clone()).collect();
    Placement {
        epoch: document.epoch,
        ranks_per_worker: document.ranks_per_worker,
        workers: document.workers.iter().map(worker).collect(),
        layers: document.layers.iter().map(layer).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement};

    fn slot() -> Slot {
        Slot { group: "g".into(), revision: "r".into(), worker: 1, workers: 2, uid: "u1".into(), ranks: 2 }
    }

    fn card() -> ModelCard {
        ModelCard { layers: 2, experts: 4, ..ModelCard::default() }
    }

    fn document() -> admin::Placement {
        let worker = |index: u32| GroupWorker {
            index,
            fabric_address: format!("h{index}:1"),
            uid: format!("u{index}"),
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
        }
    }

    #[test]
    fn a_fitting_document_becomes_a_table() {
        let table = accept(&document(), &slot(), &card()).unwrap();
        assert_eq!(table.epoch(), 3);
        assert_eq!(table.of_rank(3).collect::<Vec<_>>(), [(0, 3), (1, 3)]);
        assert_eq!(table.workers()[0].address, "h0:1");
    }

    #[test]
    fn what_does_not_fit_is_refused_with_its_field() {
        type Change = fn(&mut admin::Placement);
        let cases: [(&str, bool, Change); 9] = [
            ("group", true, |d| d.group = "x".into()),
            ("revision", true, |d| d.revision = "x".into()),
            ("workers[1].uid", true, |d| d.workers[1].uid = "old".into()),
            ("ranks_per_worker", true, |d| d.ranks_per_worker = 3),
            ("workers", true, |d| d.workers.truncate(1)),
            ("epoch", false, |d| d.epoch = 0),
            ("layers", false, |d| d.layers.truncate(1)),
            ("not in each", false, |d| d.layers[1].experts.truncate(3)),
            ("layers[0].experts[2]", false, |d| d.layers[0].experts[2].ranks.clear()),
        ];
        for (field, is_for_another, change) in cases {
            let mut changed = document();
            change(&mut changed);
            let refusal = accept(&changed, &slot(), &card()).map(|_| ()).unwrap_err();
            assert!(refusal.to_string().contains(field), "{field}: {refusal}");
            assert_eq!(matches!(refusal, PlacementRefusal::NotForThisWorker(_)), is_for_another, "{field}");
        }
    }

    #[test]
    fn epochs_only_go_forward() {
        let current = document();
        let mut newer = document();
        newer.epoch = 4;
        assert!(follows(&newer, None).is_ok() && follows(&newer, Some(&current)).is_ok());
        assert!(follows(&current, Some(&current)).is_ok(), "the same again is fine");
        assert!(follows(&current, Some(&newer)).unwrap_err().to_string().contains("older"));
        let mut changed = document();
        changed.workers[0].uid = "other".into();
        assert!(follows(&changed, Some(&current)).unwrap_err().to_string().contains("another placement"));
    }

    #[test]
    fn a_document_survives_the_config_map() {
        let json = serde_json::to_string(&document()).unwrap();
        assert_eq!(serde_json::from_str::<admin::Placement>(&json).unwrap(), document());
    }
}
