//! The operator's side, phase by phase.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs)]

mod common;

use belay_epoch::{
    Intent, Operation, Phase,
    conductor::{Member, next, requests},
    progress::{Progress, Why, progress},
};
use common::{member, placement, wanted};

const APART: &[&[u32]] = &[&[0], &[1]];
const BOTH: &[&[u32]] = &[&[0, 1], &[1, 0]];
const OLD: [&str; 2] = ["a", "b"];
const NEW: [&str; 2] = ["a", "c"];

fn in_force(epoch: u64) -> Intent {
    Intent { in_force: Some(placement(epoch, APART, OLD)), operation: None }
}

fn step(intent: &Intent, want: (&[&[u32]], [&str; 2]), members: &[Member]) -> Intent {
    next(intent, Some(&wanted(want.0, want.1)), members, 0, "now")
}

fn phase(intent: &Intent) -> Option<(u64, Phase)> {
    intent.operation.as_ref().map(|operation| (operation.epoch, operation.phase))
}

fn told(intent: &Intent, members: &[Member]) -> Vec<(u32, u64, u64, u64)> {
    let epoch = |placement: &Option<belay_proto::admin::Placement>| placement.as_ref().map_or(0, |p| p.epoch);
    let sent = requests(intent, members);
    sent.iter()
        .map(|(to, told)| (*to, epoch(&told.in_force), epoch(&told.target), told.retire_epoch))
        .collect()
}

#[test]
fn the_first_placement_is_in_force_at_once() {
    let members = [member(0, "a", (0, 0, 0)), member(1, "b", (0, 0, 0))];
    let first = next(&Intent::default(), Some(&wanted(APART, OLD)), &members, 7, "now");
    assert_eq!(first, in_force(8), "above everything that was reported");
    assert_eq!(told(&first, &members), [(0, 8, 0, 8), (1, 8, 0, 8)]);
    assert_eq!(next(&Intent::default(), None, &members, 7, "now"), Intent::default());
}

#[test]
fn a_change_goes_through_all_phases() {
    let one = in_force(1);
    let mut members = vec![member(0, "a", (1, 1, 1)), member(1, "b", (1, 1, 1))];
    assert_eq!(step(&one, (APART, OLD), &members), one, "nothing is to be changed");
    assert_eq!(told(&one, &members), []);

    let prepare = step(&one, (BOTH, OLD), &members);
    assert_eq!(
        (phase(&prepare), prepare.in_force.as_ref()),
        (Some((2, Phase::Prepare)), one.in_force.as_ref())
    );
    assert_eq!(told(&prepare, &members), [(0, 1, 2, 1), (1, 1, 2, 1)]);

    members[0] = member(0, "a", (1, 2, 1));
    assert_eq!(step(&prepare, (BOTH, OLD), &members), prepare, "one is missing");
    assert_eq!(told(&prepare, &members), [(1, 1, 2, 1)]);

    members[1] = member(1, "b", (1, 2, 1));
    let commit = step(&prepare, (BOTH, OLD), &members);
    assert_eq!(
        (phase(&commit), commit.in_force.clone()),
        (Some((2, Phase::Commit)), Some(placement(2, BOTH, OLD)))
    );
    assert_eq!(told(&commit, &members), [(0, 2, 0, 0), (1, 2, 0, 0)]);

    members[0] = member(0, "a", (2, 2, 1));
    let other = step(&commit, (APART, OLD), &members);
    assert_eq!(other, commit, "one still uses the old one, and there is no way back");

    members[1] = member(1, "b", (2, 2, 1));
    let retire = step(&commit, (BOTH, OLD), &members);
    assert_eq!(phase(&retire), Some((2, Phase::Retire)));
    assert_eq!(told(&retire, &members), [(0, 2, 0, 2), (1, 2, 0, 2)]);

    members[0] = member(0, "a", (2, 2, 2));
    assert_eq!(step(&retire, (BOTH, OLD), &members), retire);
    members[1] = member(1, "b", (2, 2, 2));
    let done = step(&retire, (BOTH, OLD), &members);
    assert_eq!(done, Intent { in_force: Some(placement(2, BOTH, OLD)), operation: None });
}

/// An operation towards `both`, as epoch 2.
fn operation(phase: Phase, uids: [&str; 2]) -> Intent {
    let target = placement(2, BOTH, uids);
    let (in_force, target) =
        if phase == Phase::Prepare { (placement(1, APART, OLD), Some(target)) } else { (target, None) };
    let operation = Operation {
        epoch: 2,
        kind: belay_epoch::Kind::Recover,
        phase,
        target,
        reason: String::new(),
        started: String::new(),
    };
    Intent { in_force: Some(in_force), operation: Some(operation) }
}

#[test]
fn a_target_is_replaced_under_a_new_epoch_and_never_given_up_for_nothing() {
    let members = [member(0, "a", (1, 2, 1)), member(1, "b", (1, 1, 1))];
    let prepare = operation(Phase::Prepare, OLD);
    let replaced = step(&prepare, (BOTH, NEW), &members);
    assert_eq!(
        (phase(&replaced), replaced.in_force.clone()),
        (Some((3, Phase::Prepare)), prepare.in_force.clone())
    );
    let back = step(&prepare, (APART, OLD), &members);
    assert_eq!(back.operation.unwrap().target, Some(placement(3, APART, OLD)), "what is in force, once more");
    assert_eq!(next(&prepare, None, &members, 0, "now"), prepare, "it goes on while nothing is known");
}

#[test]
fn a_target_waits_for_the_very_pods_that_it_names() {
    let prepare = operation(Phase::Prepare, NEW);
    let mut members = vec![member(0, "a", (1, 2, 1)), member(1, "b", (1, 2, 1))];
    assert_eq!(step(&prepare, (BOTH, NEW), &members), prepare, "the old pod of the slot is another one");
    members[1] = Member { lives: false, ..member(1, "c", (0, 2, 0)) };
    assert_eq!(step(&prepare, (BOTH, NEW), &members), prepare, "not live");
    members[1] = Member { status: None, ..member(1, "c", (0, 0, 0)) };
    assert_eq!(step(&prepare, (BOTH, NEW), &members), prepare, "silent");
    members.truncate(1);
    assert_eq!(step(&prepare, (BOTH, NEW), &members), prepare, "absent");
    members.push(member(1, "c", (0, 2, 0)));
    assert_eq!(phase(&step(&prepare, (BOTH, NEW), &members)), Some((2, Phase::Commit)));
}

#[test]
fn a_slot_where_nobody_is_is_not_waited_for() {
    let members = [member(0, "a", (1, 2, 1))];
    let mut prepare = operation(Phase::Prepare, ["a", ""]);
    assert_eq!(phase(&step(&prepare, (BOTH, ["a", ""]), &members)), Some((2, Phase::Commit)));
    prepare.operation.as_mut().unwrap().target = Some(placement(2, BOTH, OLD));
    assert_eq!(step(&prepare, (BOTH, OLD), &members), prepare);
}

#[test]
fn from_commit_on_the_dead_are_not_waited_for() {
    for (begins, ends) in [(Phase::Commit, Some((2, Phase::Retire))), (Phase::Retire, None)] {
        let intent = operation(begins, OLD);
        let living = member(0, "a", (2, 2, 2));
        let dead = Member { lives: false, ..member(1, "b", (1, 2, 1)) };
        assert_eq!(phase(&step(&intent, (BOTH, OLD), &[living.clone(), dead])), ends);
        assert_eq!(phase(&step(&intent, (BOTH, OLD), &[living.clone(), member(1, "c", (0, 0, 0))])), ends);
        assert_eq!(phase(&step(&intent, (BOTH, OLD), std::slice::from_ref(&living))), ends);
        let silent = Member { status: None, ..member(1, "b", (0, 0, 0)) };
        assert_eq!(step(&intent, (BOTH, OLD), &[living, silent]), intent, "who lives is waited for");
    }
}

#[test]
fn a_living_pod_that_is_left_out_stops_first() {
    let commit = operation(Phase::Commit, NEW);
    let mut members = vec![member(0, "a", (2, 2, 1)), member(1, "b", (1, 1, 1))];
    assert_eq!(step(&commit, (BOTH, NEW), &members), commit, "b is no member, and uses epoch 1");
    assert_eq!(told(&commit, &members), [(1, 2, 0, 0)], "it is told, so that it stops");
    members[1] = member(1, "b", (0, 1, 1));
    assert_eq!(phase(&step(&commit, (BOTH, NEW), &members)), Some((2, Phase::Retire)));
    assert_eq!(told(&commit, &members), [], "then it is nobody's business");
}

#[test]
fn a_new_pod_is_told_the_target_and_strangers_nothing() {
    let prepare = operation(Phase::Prepare, NEW);
    let members = [member(0, "a", (1, 2, 1)), member(1, "c", (0, 0, 0))];
    assert_eq!(told(&prepare, &members), [(1, 1, 2, 1)]);
    for stranger in [
        member(1, "d", (0, 0, 0)),
        Member { lives: false, ..member(1, "c", (0, 0, 0)) },
        Member { status: None, ..member(1, "c", (0, 0, 0)) },
    ] {
        assert_eq!(told(&prepare, &[stranger]), []);
    }
}

#[test]
fn a_lost_intent_goes_on_above_what_anybody_knows() {
    let mut members = vec![member(0, "a", (4, 5, 4)), member(1, "b", (4, 4, 4))];
    for old in [Intent::default(), in_force(3), operation(Phase::Prepare, OLD)] {
        let anew = step(&old, (APART, OLD), &members);
        assert_eq!(
            (phase(&anew), anew.in_force.clone()),
            (Some((6, Phase::Commit)), Some(placement(6, APART, OLD)))
        );
    }
    members[1].status.as_mut().unwrap().known = 9;
    assert_eq!(phase(&step(&in_force(4), (APART, OLD), &members)), Some((10, Phase::Commit)));
    assert_eq!(
        next(&in_force(3), None, &members, 0, "now"),
        in_force(3),
        "not before it is known what is wanted"
    );
}

#[test]
fn progress_names_who_is_waited_for() {
    let prepare = operation(Phase::Prepare, NEW);
    let texts =
        |progress: &Progress| progress.waiting_for.iter().map(ToString::to_string).collect::<Vec<_>>();
    assert_eq!(progress(&in_force(1), &[]), None);

    let nobody = progress(&prepare, &[]).unwrap();
    assert_eq!((nobody.bytes_done, nobody.bytes_total), (0, 30), "a has one of two copies, c none");
    assert_eq!(texts(&nobody), ["worker 0: pod a is not live", "worker 1: pod c is not live"]);

    let mut loading = member(1, "c", (0, 0, 0));
    let status = loading.status.as_mut().unwrap();
    (status.prepare_bytes_done, status.prepare_bytes_total) = (5, 20);
    let some = progress(&prepare, &[member(0, "a", (1, 2, 1)), loading.clone()]).unwrap();
    assert_eq!((some.bytes_done, some.bytes_total), (15, 30));
    assert_eq!(texts(&some), ["worker 1 loads: 5 of 20 bytes"]);

    loading.status.as_mut().unwrap().prepare_error = Some("no room".into());
    let failed = progress(&prepare, &[member(0, "a", (1, 2, 1)), loading.clone()]).unwrap();
    assert_eq!(texts(&failed), ["worker 1 cannot prepare: no room"]);
    loading.status = None;
    let silent = progress(&prepare, &[member(0, "a", (1, 2, 1)), loading]).unwrap();
    assert_eq!(texts(&silent), ["worker 1 does not answer"]);

    let late = [member(0, "a", (1, 2, 1)), member(1, "b", (1, 1, 1))];
    let commit = progress(&operation(Phase::Commit, NEW), &late).unwrap();
    assert_eq!(texts(&commit), ["worker 0 still uses epoch 1", "worker 1 still uses epoch 1"]);
    let retire = progress(&operation(Phase::Retire, OLD), &[member(0, "a", (2, 2, 1))]).unwrap();
    assert_eq!(retire.waiting_for[0].why, Why::Holds { retired: 1 });
    assert_eq!(retire.waiting_for.len(), 1, "b is dead");
}
