//! Each invariant can fail.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use std::collections::BTreeSet;

use belay_epoch::{
    document::{Copy, copies},
    invariants::{Invariant, Snapshot, Worker, check, forward},
    member::Member,
};
use belay_proto::admin::Placement;
use common::{placement, request, slot};

const APART: &[&[u32]] = &[&[0], &[1]];
const SWAPPED: &[&[u32]] = &[&[1], &[0]];
const UIDS: [&str; 2] = ["a", "b"];

struct World {
    in_force: Placement,
    resident: [BTreeSet<Copy>; 2],
}

impl World {
    fn new() -> Self {
        let in_force = placement(3, APART, UIDS);
        let resident = [copies(&in_force, 0), copies(&in_force, 1)];
        Self { in_force, resident }
    }

    /// Both workers use what is in force.
    fn snapshot(&self) -> Snapshot<'_> {
        let worker = |index: u32| Worker {
            index,
            uid: UIDS[index as usize],
            counts: true,
            uses: 3,
            document: Some(&self.in_force),
            serves: vec![3],
            since: 1,
            retired: 3,
            resident: Some(&self.resident[index as usize]),
        };
        Snapshot { in_force: Some(&self.in_force), workers: vec![worker(0), worker(1)] }
    }
}

fn broken(snapshot: &Snapshot<'_>) -> Vec<Invariant> {
    check(snapshot).iter().map(|violation| violation.invariant).collect()
}

#[test]
fn all_hold_when_all_is_well() {
    assert_eq!(check(&World::new().snapshot()), []);
    assert_eq!(check(&Snapshot::default()), []);
}

#[test]
fn a_copy_that_is_missing_where_it_is_looked_for() {
    let mut world = World::new();
    world.resident[1].clear();
    let violations = check(&world.snapshot());
    assert_eq!(broken(&world.snapshot()), [Invariant::Found, Invariant::Found, Invariant::Covered]);
    let text = violations[0].to_string();
    assert!(
        text.starts_with("invariant found: worker 0 (a) uses epoch 3, worker 1 (b) lacks Copy"),
        "{text}"
    );

    let mut unknown = world.snapshot();
    unknown.workers[1].resident = None;
    assert_eq!(broken(&unknown), [], "what is not known is not held against anybody");
}

#[test]
fn a_member_that_does_not_serve_what_another_uses() {
    let world = World::new();
    let mut refuses = world.snapshot();
    refuses.workers[1].serves = vec![4];
    assert_eq!(broken(&refuses), [Invariant::Found]);
    refuses.workers[1].since = 4;
    assert_eq!(broken(&refuses), [], "it was not there at the time");
    refuses.workers[1].since = 1;
    refuses.workers[0].counts = false;
    assert_eq!(broken(&refuses), [], "the other one has gone back");
}

#[test]
fn a_copy_that_went_too_early() {
    let world = World::new();
    let before = placement(2, SWAPPED, UIDS);
    let mut early = world.snapshot();
    (early.workers[0].uses, early.workers[0].document) = (2, Some(&before));
    assert!(broken(&early).contains(&Invariant::Kept));
    early.workers[0].counts = false;
    assert!(!broken(&early).contains(&Invariant::Kept), "one that went back is fenced");
}

#[test]
fn a_placement_that_is_not_in_force_and_an_epoch_with_two_meanings() {
    let world = World::new();
    let mut ahead = world.snapshot();
    (ahead.workers[0].uses, ahead.workers[0].document) = (4, None);
    assert_eq!(broken(&ahead), [Invariant::Forward]);

    let other = placement(3, SWAPPED, UIDS);
    let mut two = world.snapshot();
    two.workers[0].document = Some(&other);
    assert!(broken(&two).contains(&Invariant::Forward));
}

#[test]
fn what_goes_back() {
    let world = World::new();
    let now = world.snapshot();
    assert_eq!(forward(&now, &now), []);

    let older = placement(2, APART, UIDS);
    let back = Snapshot { in_force: Some(&older), workers: vec![] };
    assert_eq!(forward(&now, &back).len(), 1);
    assert_eq!(forward(&back, &now), []);

    let mut back = world.snapshot();
    back.workers[0].uses = 2;
    assert_eq!(forward(&now, &back).len(), 1);
    back.workers[0].since = 2;
    assert_eq!(forward(&now, &back), [], "a process that began anew");
}

#[test]
fn a_worker_checks_itself() {
    let mut member = Member::new(slot());
    let in_force = placement(1, APART, UIDS);
    member.accept(&request(in_force.clone(), None, 1)).unwrap();
    member.loaded(copies(&in_force, 1));
    let itself = |member: &Member| {
        check(&Snapshot { in_force: None, workers: vec![Worker::of(member, true)] })
            .into_iter()
            .filter(|violation| violation.invariant != Invariant::Forward)
            .count()
    };
    assert_eq!(itself(&member), 0);
    member.dropped(copies(&in_force, 1));
    assert_eq!(itself(&member), 1, "what it routes by is not here");
}
