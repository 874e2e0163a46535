//! The worker's side, request by request.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use belay_epoch::{
    document::{Copy, Refusal, check},
    member::Member,
};
use belay_proto::admin::Placement;
use common::{placement, request, slot};

const APART: &[&[u32]] = &[&[0], &[1]];
const SWAPPED: &[&[u32]] = &[&[1], &[0]];
const UIDS: [&str; 2] = ["a", "b"];

fn copy(expert: u32) -> Copy {
    Copy { rank: 1, layer: 0, expert }
}

fn uses(member: &Member) -> u64 {
    member.in_use().map_or(0, |document| document.epoch)
}

fn serves(member: &Member) -> Vec<u64> {
    member.serves().map(|document| document.epoch).collect()
}

/// A worker that uses epoch 1.
fn placed() -> Member {
    let mut member = Member::new(slot());
    assert!(member.accept(&request(placement(1, APART, UIDS), None, 1)).unwrap().in_force);
    assert_eq!((uses(&member), member.to_load()), (0, vec![vec![(0, 1)]]));
    member.loaded([copy(1)]);
    member
}

#[test]
fn a_change_from_prepare_to_retire() {
    let mut member = placed();
    assert_eq!(
        (uses(&member), member.prepared_epoch(), member.retired_epoch(), member.since()),
        (1, 1, 1, 1)
    );

    let prepare = request(placement(1, APART, UIDS), Some(placement(2, SWAPPED, UIDS)), 0);
    let change = member.accept(&prepare).unwrap();
    assert!(change.target && !change.in_force && !change.retire);
    assert!(!member.accept(&prepare).unwrap().any(), "the same again");
    assert_eq!(
        (member.to_load(), member.prepared_epoch(), serves(&member)),
        (vec![vec![(0, 0)]], 1, vec![1])
    );
    member.loaded([copy(0)]);
    assert_eq!((uses(&member), member.prepared_epoch(), serves(&member)), (1, 2, vec![1, 2]));
    assert_eq!(member.to_drop(), []);

    member.accept(&request(placement(2, SWAPPED, UIDS), None, 0)).unwrap();
    assert_eq!((uses(&member), member.retired_epoch(), serves(&member)), (2, 1, vec![1, 2]));
    assert_eq!(member.to_drop(), [], "others may ask for it");

    member.accept(&request(placement(2, SWAPPED, UIDS), None, 2)).unwrap();
    assert_eq!((member.to_drop(), member.retired_epoch(), serves(&member)), (vec![copy(1)], 1, vec![2]));
    member.dropped([copy(1)]);
    assert_eq!((member.retired_epoch(), member.since()), (2, 1));
}

#[test]
fn a_late_worker_loads_then_switches() {
    let mut member = placed();
    member.accept(&request(placement(4, SWAPPED, UIDS), None, 4)).unwrap();
    assert_eq!((uses(&member), member.to_drop()), (1, vec![]), "it still uses what it had");
    assert_eq!((member.since(), member.known_epoch()), (0, 4), "it has missed something");
    member.loaded([copy(0)]);
    assert_eq!((uses(&member), member.since(), member.to_drop()), (4, 4, vec![copy(1)]));
}

#[test]
fn a_replaced_target_leaves_nothing_behind_and_an_old_request_undoes_nothing() {
    let mut member = placed();
    let now = placement(1, APART, UIDS);
    member.accept(&request(now.clone(), Some(placement(2, SWAPPED, UIDS)), 1)).unwrap();
    member.loaded([copy(0)]);
    member.accept(&request(now.clone(), Some(placement(3, APART, UIDS)), 1)).unwrap();
    assert_eq!((member.prepared_epoch(), member.to_drop()), (3, vec![copy(0)]));

    let change = member.accept(&request(now.clone(), None, 1)).unwrap();
    assert!(!change.any() && member.prepared_epoch() == 3, "a target stays until there is a later one");
    let stale = member.accept(&request(now, Some(placement(2, SWAPPED, UIDS)), 1));
    assert!(
        matches!(&stale, Err(Refusal::Stale(text)) if text.starts_with("target.epoch: 2 is older")),
        "{stale:?}"
    );
}

#[test]
fn a_target_that_was_in_force_unnoticed_is_kept_until_it_is_retired() {
    let mut member = placed();
    member.accept(&request(placement(1, APART, UIDS), Some(placement(2, SWAPPED, UIDS)), 1)).unwrap();
    member.loaded([copy(0)]);
    member.accept(&request(placement(3, APART, UIDS), None, 0)).unwrap();
    assert_eq!((uses(&member), member.to_drop(), serves(&member)), (3, vec![], vec![2, 1, 3]));
    member.accept(&request(placement(3, APART, UIDS), None, 3)).unwrap();
    assert_eq!((member.to_drop(), serves(&member)), (vec![copy(0)], vec![3]));
}

#[test]
fn a_new_pod_prepares_and_one_that_is_left_out_stops() {
    let mut new = Member::new(slot());
    let before = placement(1, APART, ["a", "old"]);
    new.accept(&request(before, Some(placement(2, APART, UIDS)), 1)).unwrap();
    assert_eq!((new.to_load(), new.prepared_epoch()), (vec![vec![(0, 1)]], 0));
    new.loaded([copy(1)]);
    assert_eq!((uses(&new), new.prepared_epoch(), new.since(), serves(&new)), (0, 2, 2, vec![2]));

    let mut out = placed();
    let after = placement(2, SWAPPED, ["a", "next"]);
    out.accept(&request(after.clone(), None, 0)).unwrap();
    assert_eq!(
        (uses(&out), out.to_drop(), serves(&out)),
        (0, vec![], vec![1]),
        "others may ask until all know"
    );
    out.accept(&request(after, None, 2)).unwrap();
    assert_eq!((out.to_drop(), serves(&out)), (vec![copy(1)], vec![]));
}

#[test]
fn what_is_of_the_past_or_means_something_else_is_refused() {
    let mut member = placed();
    member.accept(&request(placement(3, APART, UIDS), Some(placement(4, SWAPPED, UIDS)), 3)).unwrap();
    let before = member.clone();
    let stale = member.accept(&request(placement(2, APART, UIDS), None, 0)).unwrap_err();
    assert!(
        matches!(&stale, Refusal::Stale(text) if text.contains("in_force.epoch: 2 is older than 3")),
        "{stale}"
    );
    let other = member.accept(&request(placement(3, SWAPPED, UIDS), None, 0)).unwrap_err();
    assert!(matches!(&other, Refusal::Conflict(text) if text.contains("in_force.epoch")), "{other}");
    let target = Some(placement(4, APART, UIDS));
    let other = member.accept(&request(placement(3, APART, UIDS), target, 3)).unwrap_err();
    assert!(matches!(&other, Refusal::Conflict(text) if text.contains("target.epoch")), "{other}");
    assert_eq!(member, before, "nothing has changed");
}

#[test]
fn what_does_not_fit_is_refused_with_its_field() {
    type Change = fn(&mut Placement);
    let cases: [(&str, bool, Change); 12] = [
        ("group", true, |d| d.group = "x".into()),
        ("revision", true, |d| d.revision = "x".into()),
        ("ranks_per_worker", true, |d| d.ranks_per_worker = 3),
        ("workers: the placement has 1", true, |d| d.workers.truncate(1)),
        ("epoch: must be", false, |d| d.epoch = 0),
        ("workers: an index", false, |d| d.workers[1].index = 0),
        ("layers: the placement has 0", false, |d| d.layers.clear()),
        ("layers[0]: the placement has 1", false, |d| d.layers[0].experts.truncate(1)),
        ("layers[0].experts[1]: no rank", false, |d| d.layers[0].experts[1].ranks.clear()),
        ("layers[0].experts[0]: rank 2", false, |d| d.layers[0].experts[0].ranks = vec![2]),
        ("layers[0].experts[0]: rank 1 is doubled", false, |d| d.layers[0].experts[0].ranks = vec![1, 1]),
        ("target.epoch: 1 is not later", false, |d| d.epoch = 1),
    ];
    for (text, is_for_another, change) in cases {
        let mut target = placement(2, APART, UIDS);
        change(&mut target);
        let refusal = check(&request(placement(1, APART, UIDS), Some(target), 1), &slot()).unwrap_err();
        assert!(refusal.to_string().contains(text), "{text}: {refusal}");
        assert!(refusal.to_string().starts_with("target."), "{refusal}");
        assert_eq!(matches!(refusal, Refusal::NotForThisWorker(_)), is_for_another, "{text}");
    }
    let late = check(&request(placement(1, APART, UIDS), None, 2), &slot()).unwrap_err();
    assert!(late.to_string().starts_with("retire_epoch: 2"), "{late}");
    assert!(check(&Default::default(), &slot()).unwrap_err().to_string().starts_with("in_force"));
}
