//! What is written into the ConfigMap.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

use belay_epoch::{Intent, Kind, Operation, Phase};
use belay_proto::admin::{ExpertCopies, GroupWorker, LayerPlacement, Placement};
use proptest::prelude::*;

fn placement() -> impl Strategy<Value = Placement> {
    let copies = proptest::collection::vec(any::<u32>(), 0..4).prop_map(|ranks| ExpertCopies { ranks });
    let layer = proptest::collection::vec(copies, 0..5).prop_map(|experts| LayerPlacement { experts });
    let worker =
        (any::<u32>(), ".{0,9}", ".{0,9}", any::<u64>()).prop_map(|(index, fabric_address, uid, limit)| {
            GroupWorker { index, fabric_address, uid, expert_bytes_limit: limit }
        });
    let lists = (proptest::collection::vec(worker, 0..4), proptest::collection::vec(layer, 0..3));
    (any::<[u64; 2]>(), any::<u32>(), ".{0,9}", lists).prop_map(
        |([epoch, expert_bytes], ranks_per_worker, name, (workers, layers))| Placement {
            epoch,
            group: name.clone(),
            revision: name,
            ranks_per_worker,
            workers,
            layers,
            expert_bytes,
        },
    )
}

fn operation() -> impl Strategy<Value = Operation> {
    let kinds = vec![Kind::Recover, Kind::Rebalance, Kind::Evacuate, Kind::Respecify];
    let phases = vec![Phase::Prepare, Phase::Commit, Phase::Retire];
    let (kind, phase) = (proptest::sample::select(kinds), proptest::sample::select(phases));
    let target = proptest::option::of(placement());
    (any::<u64>(), kind, phase, target, ".{0,20}", ".{0,20}").prop_map(
        |(epoch, kind, phase, target, reason, started)| Operation {
            epoch,
            kind,
            phase,
            target,
            reason,
            started,
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn an_intent_survives_json(in_force in proptest::option::of(placement()), operation in proptest::option::of(operation())) {
        let intent = Intent { in_force, operation };
        let text = serde_json::to_string(&intent).unwrap();
        prop_assert_eq!(&serde_json::from_str::<Intent>(&text).unwrap(), &intent);
        // each part is a key of its own
        let parts = (serde_json::to_string(&intent.in_force).unwrap(), serde_json::to_string(&intent.operation).unwrap());
        let back = Intent { in_force: serde_json::from_str(&parts.0).unwrap(), operation: serde_json::from_str(&parts.1).unwrap() };
        prop_assert_eq!(back, intent);
    }
}

/// 62 layers of 384 experts, two copies each on 128 ranks of 16 workers: in force and target fit into one object of
/// the API server (1 MiB, of which the keys' values may take all but the metadata).
#[test]
fn the_largest_model_fits_into_a_config_map() {
    let copies = |expert: u32| ExpertCopies { ranks: vec![100 + expert % 28, 100 + (expert + 1) % 28] };
    let layer = LayerPlacement { experts: (0..384).map(copies).collect() };
    let worker = |index| GroupWorker {
        index,
        fabric_address: "[fd00:1234:5678:9abc:def0:1234:5678:9abc]:50053".into(),
        uid: "01234567-89ab-cdef-0123-456789abcdef".into(),
        expert_bytes_limit: u64::MAX,
    };
    let placement = Placement {
        epoch: u64::MAX,
        group: "g".repeat(63),
        revision: "01234567".into(),
        ranks_per_worker: 8,
        workers: (0..16).map(worker).collect(),
        layers: vec![layer; 62],
        expert_bytes: u64::MAX,
    };
    let operation = Operation {
        epoch: u64::MAX,
        kind: Kind::Rebalance,
        phase: Phase::Prepare,
        target: Some(placement.clone()),
        reason: "r".repeat(500),
        started: "2026-01-01T00:00:00.000000Z".into(),
    };
    let bytes = serde_json::to_vec(&placement).unwrap().len() + serde_json::to_vec(&operation).unwrap().len();
    println!("{bytes} bytes");
    assert!(bytes < 900 << 10, "{bytes} bytes");
}
