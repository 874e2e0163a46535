use belay_epoch::Kind;
use belay_proto::admin::{ExpertCopies, LayerPlacement};
use serde_json::json;

use super::*;

fn placement(epoch: u64, rank: u32) -> Placement {
    let layer = LayerPlacement { experts: vec![ExpertCopies { ranks: vec![rank] }] };
    Placement { epoch, layers: vec![layer], ..Placement::default() }
}

fn operation(epoch: u64, phase: Phase) -> Operation {
    let target = (phase == Phase::Prepare).then(|| placement(epoch, 1));
    Operation { epoch, kind: Kind::Recover, phase, target, reason: String::new(), started: String::new() }
}

/// Versions of one group, a second apart.
fn entries(versions: Vec<(Placement, Option<Operation>)>) -> Vec<Entry> {
    (0..)
        .zip(versions)
        .map(|(second, (in_force, operation))| Entry {
            at: Duration::from_secs(second),
            uid: "u".into(),
            intent: Intent { in_force: Some(in_force), operation },
        })
        .collect()
}

/// From epoch 1 to epoch 2.
fn whole() -> Vec<(Placement, Option<Operation>)> {
    vec![
        (placement(1, 0), None),
        (placement(1, 0), Some(operation(2, Phase::Prepare))),
        (placement(2, 1), Some(operation(2, Phase::Commit))),
        (placement(2, 1), Some(operation(2, Phase::Retire))),
        (placement(2, 1), None),
    ]
}

#[test]
fn a_whole_operation_breaks_no_rule_and_is_one() {
    let entries = entries(whole());
    assert_eq!(broken_rules(&entries), Vec::<String>::new());
    let second = Duration::from_secs(1);
    assert_eq!(Operations::of(&entries, second), Operations { epochs: vec![2], over: Some(4 * second) });
    let begun_before = Operations::of(&entries, 2 * second);
    assert_eq!(begun_before, Operations::default(), "it was begun before");
}

#[test]
fn a_target_may_be_replaced_by_a_later_one_until_it_commits() {
    let mut versions = whole();
    versions.insert(2, (placement(1, 0), Some(operation(3, Phase::Prepare))));
    versions.truncate(3);
    assert_eq!(broken_rules(&entries(versions)), Vec::<String>::new());
}

#[test]
fn each_broken_rule_is_found() {
    let broken = |index: usize, version| {
        let mut versions = whole();
        versions[index] = version;
        broken_rules(&entries(versions)).join("; ")
    };
    let prepare = |epoch| Some(operation(epoch, Phase::Prepare));
    assert!(broken(4, (placement(2, 0), None)).contains("epoch 2 has two contents"));
    assert!(broken(4, (placement(1, 0), None)).contains("falls from 2 to 1"));
    assert!(
        broken(3, (placement(2, 1), prepare(2))).contains("epoch 2 goes back from Commit to Prepare"),
        "the phase"
    );
    assert!(broken(3, (placement(2, 1), prepare(3))).contains("replaced by 3 while it commits"));
    assert!(broken(1, (placement(1, 0), prepare(1))).contains("1 is prepared while 1 is in force"));
    let early = Some(operation(2, Phase::Commit));
    assert!(broken(1, (placement(1, 0), early)).contains("Commit of epoch 2 while 1 is in force"));
    let empty = Some(Operation { target: None, ..operation(2, Phase::Prepare) });
    assert!(broken(1, (placement(1, 0), empty)).contains("without target"));
}

#[test]
fn another_life_of_the_group_begins_anew() {
    let mut entries = entries(whole());
    entries.push(Entry {
        at: Duration::from_secs(9),
        uid: "v".into(),
        intent: Intent { in_force: Some(placement(1, 3)), operation: None },
    });
    assert_eq!(broken_rules(&entries), Vec::<String>::new());
}

#[test]
fn config_maps_are_read_as_they_are_written() {
    let change = |data: Value, gone| Change {
        gone,
        object: json!({"metadata": {"name": "nano-1-0-placement", "uid": "u"}, "data": data}),
    };
    let text = serde_json::to_string(&operation(2, Phase::Prepare)).unwrap();
    let data =
        json!({"placement.json": serde_json::to_string(&placement(1, 0)).unwrap(), "operation.json": text});
    let read = entry(&change(data.clone(), false), Duration::ZERO).unwrap().unwrap();
    assert_eq!(read.intent.in_force, Some(placement(1, 0)));
    assert_eq!(read.intent.operation, Some(operation(2, Phase::Prepare)));
    assert!(entry(&change(data, true), Duration::ZERO).is_none());
    for nothing in [json!({}), json!({"operation.json": ""}), json!({"operation.json": "null"})] {
        let read = entry(&change(nothing, false), Duration::ZERO).unwrap().unwrap();
        assert_eq!(read.intent, Intent::default());
    }
    entry(&change(json!({"operation.json": "{"}), false), Duration::ZERO).unwrap().unwrap_err();
}
