//! What the plan does about what was observed.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use belay_crds::Reason;
use belay_epoch::Kind;
use belay_operator::{
    group::{Group, Trouble},
    reconcile::plan::{Cause, Course, GroupPlan, Plan, plan},
    revision::Record,
    rollout::{Budget, Evidence, Strategy},
};
use belay_proto::admin::{Phase, Placement};
use common::{IMAGE, at, card, group, pod, record, tell, validated};
use proptest::prelude::*;

fn decide(groups: &[Group], revisions: &[Record], now: i64) -> Plan {
    plan(&validated("harbour"), groups, revisions, Some(IMAGE), &Evidence::default(), at(now)).unwrap()
}

fn created(plan: &GroupPlan) -> &[u32] {
    match &plan.course {
        Course::Run { create, .. } => create,
        other => panic!("not to run: {other:?}"),
    }
}

fn pushed(plan: &GroupPlan) -> Vec<u32> {
    plan.experts.pushes.iter().map(|push| push.worker).collect()
}

/// Two groups that serve, with the placements that they would have got.
fn serving() -> (Record, Vec<Group>) {
    common::serving("harbour", &validated("harbour"), 2)
}

#[test]
fn from_nothing_all_groups_are_created_and_the_revision_is_recorded() {
    let plan = decide(&[], &[], 0);
    let names: Vec<&str> = plan.create.iter().map(|new| new.name.as_str()).collect();
    let revision = &plan.target.revision;
    assert_eq!(names, [format!("harbour-{revision}-0"), format!("harbour-{revision}-1")]);
    assert!(plan.record_target);
    assert!(plan.protected.is_empty());
}

#[test]
fn when_all_is_well_nothing_is_done() {
    let (record, groups) = serving();
    let plan = decide(&groups, std::slice::from_ref(&record), 10);
    assert!(plan.create.is_empty() && !plan.record_target && plan.forget.is_empty());
    for (group, plan) in groups.iter().zip(&plan.groups) {
        assert!(created(plan).is_empty() && pushed(plan).is_empty() && plan.remove.is_empty());
        assert_eq!(plan.experts.problem, None);
        assert_eq!(plan.experts.intent, group.intent, "the placement in force stays");
    }
    assert_eq!(plan.protected.len(), 1, "maxUnavailable is 1: one of two may be disrupted");
}

#[test]
fn placement_waits_until_every_slot_has_an_address_and_a_card_is_known() {
    let record = record("harbour");
    let mut waiting = group(&record, "harbour", 0, Phase::WaitingForPlacement);
    let revisions = std::slice::from_ref(&record);
    let placed = |group: &Group| -> Option<Placement> {
        decide(std::slice::from_ref(group), revisions, 0).groups.remove(0).experts.intent.in_force
    };
    let placement = placed(&waiting).expect("all is known");
    assert_eq!(placement.epoch, 1);
    assert_eq!(placement.workers[2].fabric_address, "10.0.2.7:50053");

    let whole = waiting.clone();
    waiting.slots[1].as_mut().unwrap().ip = None;
    assert_eq!(placed(&waiting), None);
    waiting.clone_from(&whole);
    waiting.slots[1] = None;
    assert_eq!(placed(&waiting), None);
    waiting.clone_from(&whole);
    for slot in waiting.slots.iter_mut().flatten() {
        slot.worker.as_mut().unwrap().as_mut().unwrap().card = None;
    }
    assert_eq!(placed(&waiting), None);
}

#[test]
fn lost_pod_is_made_anew_and_gets_back_what_it_had() {
    let (record, mut groups) = serving();
    let revisions = std::slice::from_ref(&record);
    let name = groups[0].name.clone();
    groups[0].slots[1] = None;
    let plans = decide(&groups, revisions, 1).groups;
    assert_eq!(created(&plans[0]), [1]);
    assert_eq!(plans[0].experts.intent, groups[0].intent, "the others keep their placement meanwhile");
    assert!(pushed(&plans[0]).is_empty());
    assert_eq!(plans[1].experts.intent, groups[1].intent, "the other group is left alone");

    groups[0].slots[1] = Some(pod(&name, 1, "b", Phase::WaitingForPlacement, 0));
    let plan = decide(&groups, revisions, 2).groups.remove(0);
    assert!(created(&plan).is_empty());
    let before = groups[0].placement().unwrap();
    assert_eq!(plan.experts.intent.in_force.as_ref(), Some(before), "until the new pod has its experts");
    let operation = plan.experts.intent.operation.clone().unwrap();
    assert_eq!((operation.kind, operation.phase), (Kind::Recover, belay_epoch::Phase::Prepare));
    let target = operation.target.unwrap();
    assert_eq!(target.epoch, before.epoch + 1);
    assert_eq!(target.layers, before.layers, "experts stay where they are");
    assert_eq!(target.workers[1].uid, format!("{name}-1-b"));
    assert_eq!(pushed(&plan), [0, 1, 2]);
}

#[test]
fn pods_of_a_lost_node_are_given_up_at_once() {
    let (record, mut groups) = serving();
    for terminating in [false, true] {
        let victim = groups[1].slots[2].as_mut().unwrap();
        victim.node_lost = true;
        victim.terminating = terminating;
        let plan = decide(&groups, std::slice::from_ref(&record), 1);
        let removal = &plan.groups[1].remove[0];
        assert_eq!((removal.grace_seconds, &removal.cause), (Some(0), &Cause::NodeLost("node-2".into())));
        assert_eq!(removal.uid, groups[1].slots[2].as_ref().unwrap().uid);
        assert!(created(&plan.groups[1]).is_empty(), "its name is free only once it is gone");
    }
}

#[test]
fn pod_that_ended_is_removed_once() {
    let (record, mut groups) = serving();
    groups[0].slots[0].as_mut().unwrap().ended = Some("Evicted: low on disk".into());
    let remove = |groups: &[Group]| decide(groups, std::slice::from_ref(&record), 1).groups[0].remove.clone();
    assert_eq!(remove(&groups)[0].cause, Cause::Ended("Evicted: low on disk".into()));
    groups[0].slots[0].as_mut().unwrap().terminating = true;
    assert!(remove(&groups).is_empty());
}

#[test]
fn drain_waits_for_requests_but_not_forever() {
    let (record, mut groups) = serving();
    let group = &mut groups[1];
    group.draining_since = Some(at(0));
    let set = |group: &mut Group, in_flight: u32, draining: bool| {
        for slot in group.slots.iter_mut().flatten() {
            slot.marked_draining = draining;
            let status = slot.worker.as_mut().unwrap().as_mut().unwrap();
            status.draining = draining;
            status.requests_in_flight = in_flight;
        }
    };
    let plan_at = |groups: &[Group], now: i64| {
        let plan = decide(groups, std::slice::from_ref(&record), now).groups.remove(1);
        let Course::Drain { since, mark, tell } = plan.course else { panic!("drains") };
        assert_eq!(since, at(0), "the clock does not start again");
        (mark, tell, plan.remove)
    };
    set(group, 0, false);
    let (mark, tell, remove) = plan_at(&groups, 1);
    assert_eq!((mark, tell), (vec![0, 1, 2], vec![0, 1, 2]));
    assert!(remove.is_empty(), "idle, but it may still be given requests");

    set(&mut groups[1], 1, true);
    assert!(plan_at(&groups, 89).2.is_empty());
    let over = plan_at(&groups, 90).2;
    assert_eq!(over.len(), 3, "all pods of the group together");
    assert!(
        over.iter().all(|removal| removal.cause == Cause::DrainTimeOver && removal.grace_seconds == Some(10))
    );

    set(&mut groups[1], 0, true);
    let done = plan_at(&groups, 2).2;
    assert!(done.len() == 3 && done.iter().all(|removal| removal.cause == Cause::Drained));

    groups[1].slots[0].as_mut().unwrap().worker = Some(Err("no answer".into()));
    assert!(plan_at(&groups, 2).2.is_empty(), "who does not answer may be at work");
    groups[1].slots[0].as_mut().unwrap().running = false;
    assert_eq!(plan_at(&groups, 2).2.len(), 3, "who does not run has no requests");
}

#[test]
fn drained_group_is_cleared_and_never_refilled() {
    let (record, mut groups) = serving();
    groups[1].draining_since = Some(at(0));
    groups[1].slots = vec![None; 3];
    let plan = decide(&groups, std::slice::from_ref(&record), 1);
    assert_eq!(plan.groups[1].course, Course::Clear);
}

#[test]
fn group_of_an_old_revision_is_rebuilt_as_it_was() {
    let (old, mut groups) = serving();
    let mut wanted = validated("harbour");
    wanted.content.model.max_context_tokens = Some(8192);
    wanted.budget.unavailable = 0;
    groups[0].slots[0] = None;
    let revisions = std::slice::from_ref(&old);
    let plan = plan(&wanted, &groups, revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    assert_ne!(plan.target.revision, old.revision);
    assert_eq!(plan.target.number, 2);
    assert_eq!(created(&plan.groups[0]), [0]);
}

#[test]
fn workers_that_read_different_checkpoints_get_no_placement() {
    let record = record("harbour");
    let mut group = group(&record, "harbour", 0, Phase::WaitingForPlacement);
    let status = group.slots[2].as_mut().unwrap().worker.as_mut().unwrap().as_mut().unwrap();
    status.card = Some(belay_proto::admin::ModelCard { digest: "d2".into(), ..card() });
    let plan = decide(&[group], std::slice::from_ref(&record), 0);
    assert_eq!(plan.groups[0].experts.intent.in_force, None);
    let Some(Trouble { reason, message }) = &plan.groups[0].experts.problem else { panic!("a problem") };
    assert_eq!(*reason, Reason::CheckpointMismatch);
    assert!(message.contains("-0-0") && message.contains("-0-2"), "{message}");
}

#[test]
fn failed_worker_breaks_its_group_and_gets_no_experts() {
    let record = record("harbour");
    let mut group = group(&record, "harbour", 0, Phase::WaitingForPlacement);
    tell(&mut group, 0, |status| status.set_phase(Phase::Failed));
    assert_eq!(group.health(), belay_operator::rollout::Health::Broken);
    let plan = decide(&[group], std::slice::from_ref(&record), 0);
    assert_eq!(plan.groups[0].experts.intent.in_force, None);
    assert!(pushed(&plan.groups[0]).is_empty());
}

#[test]
fn group_that_serves_without_a_worker_is_neither_complete_nor_broken() {
    let (record, mut groups) = serving();
    let victim = groups[0].slots[1].as_mut().unwrap();
    (victim.ready, victim.running, victim.worker) = (false, false, None);
    victim.trouble = Some(Trouble { reason: Reason::PodUnschedulable, message: "no node".into() });
    assert_eq!(groups[0].health(), belay_operator::rollout::Health::Starting);
    let plan = decide(&groups, std::slice::from_ref(&record), 1);
    assert_eq!(plan.protected, [groups[1].name.clone()], "the complete one");
    assert!(plan.groups.iter().all(|plan| matches!(plan.course, Course::Run { .. })));
    let mut alone = validated("harbour");
    alone.budget.desired = 1;
    let plan = belay_operator::reconcile::plan::plan(
        &alone,
        &groups[..1],
        &[record],
        Some(IMAGE),
        &Evidence::default(),
        at(1),
    )
    .unwrap();
    assert_eq!(plan.protected, [groups[0].name.clone()], "nothing else serves");
}

/// The groups of `serving`, of a revision that the spec no longer asks for, and the records of both.
fn outdated() -> (Vec<Record>, Vec<Group>) {
    let (target, mut groups) = serving();
    let old = Record { revision: "0ld0ld00".into(), number: target.number - 1, ..target.clone() };
    for group in &mut groups {
        group.revision.clone_from(&old.revision);
        group.name = belay_crds::labels::group_name("harbour", &old.revision, group.ordinal);
    }
    (vec![old, target], groups)
}

#[test]
fn rollout_to_some_creates_groups_of_both_revisions() {
    let (records, groups) = outdated();
    let mut wanted = validated("harbour");
    wanted.budget = Budget { desired: 4, surge: 0, unavailable: 1 };
    wanted.rules.strategy = Strategy::RollingUpdate { partition: 3 };
    let plan = plan(&wanted, &groups, &records, Some(IMAGE), &Evidence::default(), at(1)).unwrap();
    let created: Vec<(&str, u32)> = plan
        .create
        .iter()
        .map(|new| (new.record.revision.as_str(), new.name.rsplit('-').next().unwrap().parse().unwrap()))
        .collect();
    assert_eq!(created, [(records[1].revision.as_str(), 0), ("0ld0ld00", 2)]);
    assert!(plan.create.iter().all(|new| new.name.contains(&new.record.revision)));
    assert!(plan.groups.iter().all(|plan| matches!(plan.course, Course::Run { .. })), "none has to go");
}

#[test]
fn paused_rollout_makes_lost_groups_from_the_revision_before() {
    let (records, mut groups) = outdated();
    groups.truncate(1);
    let mut wanted = validated("harbour");
    wanted.rules.paused = true;
    let plan = plan(&wanted, &groups, &records, Some(IMAGE), &Evidence::default(), at(1)).unwrap();
    let created: Vec<&str> = plan.create.iter().map(|new| new.record.revision.as_str()).collect();
    assert_eq!(created, ["0ld0ld00"]);
    assert_eq!(plan.before.as_ref(), Some(&records[0]));
}

#[test]
fn the_revision_before_is_the_newest_that_works() {
    let (mut records, groups) = outdated();
    let typo = Record { revision: "typ0typ0".into(), number: records[1].number, ..records[1].clone() };
    records[1].number += 1;
    records.push(typo.clone());
    let mut broken = group(&typo, "harbour", 0, Phase::Failed);
    broken.revision.clone_from(&typo.revision);
    let all: Vec<Group> = groups.into_iter().chain([broken]).collect();
    let plan = decide(&all, &records, 1);
    assert_eq!(plan.before.unwrap().revision, "0ld0ld00");
}

#[test]
fn history_keeps_the_newest_revisions_and_those_in_use() {
    let (target, groups) = serving();
    let mut revisions = vec![target.clone()];
    for number in 2..20 {
        revisions.push(Record { revision: format!("old{number:05}"), number, ..target.clone() });
    }
    let forget = decide(&groups, &revisions, 0).forget;
    assert_eq!(forget.len(), 8);
    assert!(forget.contains(&"old00002".to_owned()) && !forget.contains(&"old00019".to_owned()));
    assert!(!forget.contains(&target.revision));
}

proptest! {
    /// Whatever is seen, the plan never touches a pod twice, never creates where a pod is, and never takes from a
    /// group that serves.
    #[test]
    fn plans_are_sane(
        phases in proptest::collection::vec((0i32..7, 0u8..8, any::<bool>()), 1..5), now in 0i64..200,
    ) {
        let record = record("harbour");
        let mut groups = vec![];
        for (ordinal, (phase, flaws, draining)) in phases.into_iter().enumerate() {
            let mut group = group(&record, "harbour", ordinal as u32, Phase::try_from(phase).unwrap());
            if flaws & 1 > 0 { group.slots[0] = None; }
            if flaws & 2 > 0 { group.slots[1].as_mut().unwrap().node_lost = true; }
            if flaws & 4 > 0 { group.slots[2].as_mut().unwrap().terminating = true; }
            group.draining_since = draining.then(|| at(0));
            groups.push(group);
        }
        let plan = decide(&groups, std::slice::from_ref(&record), now);
        prop_assert_eq!(plan.groups.len(), groups.len());
        for (group, plan) in groups.iter().zip(&plan.groups) {
            let mut uids: Vec<_> = plan.remove.iter().map(|removal| removal.uid.clone()).collect();
            let count = uids.len();
            uids.sort();
            uids.dedup();
            prop_assert_eq!(uids.len(), count);
            if let Course::Run { create, .. } = &plan.course {
                prop_assert!(create.iter().all(|&index| group.slots[index as usize].is_none()));
                prop_assert!(!group.ready() || plan.remove.is_empty());
            } else {
                prop_assert!(group.draining() || !group.ready() || groups.len() > 2);
            }
        }
        prop_assert!(plan.protected.iter().all(|name| groups.iter().any(|g| g.name == *name && g.serves())));
    }
}
