//! What becomes of experts: losses, returns, evacuations, evictions, rebalances.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use std::sync::Arc;

use belay_crds::{Reason, RebalancePolicy};
use belay_epoch::{Kind, Phase as Step};
use belay_operator::{
    attendance::Seat,
    group::Group,
    loads::GroupLoad,
    placement::{Copies, Load},
    reconcile::{
        plan::{Experts, plan},
        validate::Validated,
    },
    recovery::STAY_SECONDS,
    revision::Record,
    rollout::Evidence,
};
use belay_proto::admin::{Phase, Placement, RankStatus};
use common::{IMAGE, at, pod, tell, use_epoch, validated};
use k8s_openapi::jiff::Timestamp;

/// One group of three workers with four ranks each, that serves, and what is asked of it.
struct Scene {
    wanted: Validated,
    record: Record,
    group: Group,
}

impl Scene {
    fn new(min: u32) -> Self {
        let mut wanted = validated("harbour");
        wanted.budget.desired = 1;
        wanted.experts.copies = Copies { min, redundant: 0 };
        let (record, mut groups) = common::serving("harbour", &wanted, 1);
        Self { wanted, record, group: groups.remove(0) }
    }

    fn plan(&self, now: i64) -> Experts {
        let groups = std::slice::from_ref(&self.group);
        let revisions = std::slice::from_ref(&self.record);
        plan(&self.wanted, groups, revisions, Some(IMAGE), &Evidence::default(), at(now))
            .unwrap()
            .groups
            .remove(0)
            .experts
    }

    /// Writes what is planned.
    fn write(&mut self, now: i64) -> Experts {
        let experts = self.plan(now);
        self.group.intent = experts.intent.clone();
        self.group.rebalances = experts.rebalances.clone();
        experts
    }

    /// Workers do at once what they are told, until nothing is under way.
    fn settle(&mut self, now: i64) {
        for _ in 0..10 {
            let experts = self.write(now);
            for push in &experts.pushes {
                let in_force = push.request.in_force.clone().unwrap();
                let target = push.request.target.as_ref().map_or(0, |target| target.epoch);
                tell(&mut self.group, push.worker as usize, |status| {
                    if in_force.workers[push.worker as usize].uid == status.uid {
                        status.placement_epoch = in_force.epoch;
                        status.set_phase(Phase::Ready);
                    }
                    status.prepared_epoch = status.placement_epoch.max(target);
                    status.retired_epoch = push.request.retire_epoch;
                });
            }
            for slot in self.group.slots.iter_mut().flatten() {
                slot.ready = slot.status().is_some_and(|status| status.phase() == Phase::Ready);
            }
            if self.group.intent.operation.is_none() && experts.pushes.is_empty() {
                return;
            }
        }
        panic!("does not settle: {:?}", self.group.intent.operation);
    }

    fn vacate(&mut self, index: usize, since: i64) {
        self.group.slots[index] = None;
        self.seat(index, Seat { present: false, since: at(since), stays_since: Timestamp::UNIX_EPOCH });
    }

    fn seat(&mut self, index: usize, seat: Seat) {
        let fill = Seat { present: true, since: at(-1000), stays_since: Timestamp::UNIX_EPOCH };
        self.group.seats.resize(3, fill);
        self.group.seats[index] = seat;
    }

    fn fill(&mut self, index: u32, life: &str) {
        let name = self.group.name.clone();
        self.group.slots[index as usize] = Some(pod(&name, index, life, Phase::WaitingForPlacement, 0));
    }

    fn cordon(&mut self, index: usize, leaving: bool, since: Timestamp) {
        self.group.slots[index].as_mut().unwrap().node_leaving = leaving;
        let stays_since = if leaving { Timestamp::MAX } else { since };
        self.seat(index, Seat { present: true, since: at(-1000), stays_since });
    }

    fn in_force(&self) -> &Placement {
        self.group.placement().unwrap()
    }
}

/// Workers that hold each expert of the first layer.
fn holders(placement: &Placement) -> Vec<Vec<u32>> {
    let worker = |rank: &u32| rank / placement.ranks_per_worker;
    placement.layers[0].experts.iter().map(|copies| copies.ranks.iter().map(worker).collect()).collect()
}

fn target(experts: &Experts) -> &Placement {
    experts.intent.operation.as_ref().expect("an operation").target.as_ref().expect("a target")
}

fn kind(experts: &Experts) -> Option<Kind> {
    experts.intent.operation.as_ref().map(|operation| operation.kind)
}

#[test]
fn worker_that_is_gone_for_long_is_replaced_by_the_others() {
    let mut scene = Scene::new(1);
    scene.vacate(1, 0);
    assert_eq!(scene.plan(29).intent, scene.group.intent, "a quick successor gets back what was there");
    let experts = scene.plan(30);
    assert_eq!(kind(&experts), Some(Kind::Recover));
    assert!(target(&experts).workers[1].uid.is_empty());
    assert!(holders(target(&experts)).iter().all(|workers| !workers.contains(&1)));

    scene.settle(30);
    assert!(scene.in_force().epoch > 1);
    scene.fill(1, "b");
    scene.settle(60);
    assert_eq!(scene.in_force().workers[1].uid, format!("{}-1-b", scene.group.name));
    let back = holders(scene.in_force()).iter().filter(|workers| **workers == [1]).count();
    assert!((6..=10).contains(&back), "it has its part again: {back} of 24");
}

#[test]
fn pod_that_finishes_its_requests_keeps_its_experts() {
    let mut scene = Scene::new(1);
    scene.group.slots[1].as_mut().unwrap().terminating = true;
    scene.seat(1, Seat { present: false, since: at(0), stays_since: Timestamp::UNIX_EPOCH });
    assert_eq!(scene.plan(200).intent, scene.group.intent, "it serves its peers until it is gone");
    scene.group.slots[1].as_mut().unwrap().worker = Some(Err("no answer".into()));
    assert_eq!(kind(&scene.plan(200)), Some(Kind::Recover));
}

#[test]
fn of_two_lost_workers_the_first_that_is_back_does_not_wait_for_the_other() {
    let mut scene = Scene::new(1);
    scene.vacate(0, 0);
    scene.vacate(1, 0);
    scene.fill(0, "b");
    let experts = scene.plan(5);
    let target = target(&experts);
    assert_eq!(target.workers[0].uid, format!("{}-0-b", scene.group.name));
    assert!(target.workers[1].uid.is_empty(), "nobody is there");
    assert_eq!(target.layers, scene.in_force().layers, "and what it had is kept for it");
    scene.settle(5);
    assert_eq!(scene.in_force().layers, target.layers);
    scene.fill(1, "b");
    scene.settle(8);
    assert_eq!(scene.in_force().layers, target.layers);
    assert_eq!(scene.in_force().workers[1].uid, format!("{}-1-b", scene.group.name));
}

#[test]
fn change_of_the_spec_moves_experts_and_no_pod() {
    let mut scene = Scene::new(1);
    scene.wanted.experts.copies.min = 2;
    let experts = scene.plan(0);
    assert_eq!(kind(&experts), Some(Kind::Respecify));
    scene.settle(0);
    let different = |workers: &Vec<u32>| workers.len() == 2 && workers[0] != workers[1];
    assert!(holders(scene.in_force()).iter().all(different));
    let twice = scene.in_force().clone();
    assert_eq!(scene.plan(100).intent.in_force, Some(twice), "and then nothing moves any more");
    scene.wanted.experts.copies.min = 1;
    scene.settle(200);
    assert!(holders(scene.in_force()).iter().all(|workers| workers.len() == 1));
}

#[test]
fn experts_leave_a_cordoned_node_before_its_pod_does() {
    let mut scene = Scene::new(1);
    assert!(scene.plan(0).may_leave.is_empty(), "every pod holds the only copies of its experts");
    scene.cordon(1, true, at(0));
    let experts = scene.plan(0);
    assert_eq!(kind(&experts), Some(Kind::Evacuate));
    assert!(experts.may_leave.is_empty());
    scene.settle(0);
    assert!(holders(scene.in_force()).iter().all(|workers| !workers.contains(&1)));
    assert_eq!(scene.plan(1).may_leave, [1], "it holds nothing");
    assert_eq!(scene.plan(1).intent, scene.group.intent, "nothing comes back while the node is cordoned");

    // adopted copies are copies, and may be the last ones while another worker is not well
    tell(&mut scene.group, 0, |status| status.set_phase(Phase::Connecting));
    assert_eq!(scene.plan(1).may_leave, [1]);
    tell(&mut scene.group, 1, |status| {
        status.ranks = vec![RankStatus { rank: 4, experts: 3, expert_bytes: 3 }]
    });
    assert!(scene.plan(1).may_leave.is_empty());
    tell(&mut scene.group, 1, |status| status.ranks.clear());
    tell(&mut scene.group, 0, |status| status.set_phase(Phase::Ready));

    let mut changed_its_mind = Scene::new(1);
    changed_its_mind.cordon(1, true, at(0));
    changed_its_mind.write(0);
    changed_its_mind.cordon(1, false, at(1));
    let layers = changed_its_mind.in_force().layers.clone();
    changed_its_mind.settle(1);
    assert_eq!(changed_its_mind.in_force().layers, layers, "a short cordon moves nothing");

    scene.cordon(1, false, at(10));
    assert_eq!(scene.plan(10 + STAY_SECONDS - 1).intent, scene.group.intent);
    assert_eq!(kind(&scene.plan(10 + STAY_SECONDS)), Some(Kind::Recover), "nobody came to take the pod");

    // evicted instead: the next life of the slot gets its part at once
    scene.vacate(1, 12);
    scene.fill(1, "b");
    assert_eq!(kind(&scene.plan(13)), Some(Kind::Recover));
}

#[test]
fn pod_that_cannot_be_emptied_stays_and_is_named() {
    let mut scene = Scene::new(1);
    for worker in 0..3 {
        // each holds 16 copies of 1000 bytes, and could take no more than 4
        tell(&mut scene.group, worker, |status| status.expert_bytes_limit = 20_000);
    }
    let mut in_force = scene.in_force().clone();
    in_force.workers.iter_mut().for_each(|worker| worker.expert_bytes_limit = 20_000);
    scene.group.intent.in_force = Some(in_force);
    scene.cordon(2, true, at(0));
    let experts = scene.plan(0);
    let problem = experts.problem.clone().expect("is told");
    assert_eq!(problem.reason, Reason::NoRoom);
    assert!(problem.message.contains(&format!("{}-2", scene.group.name)), "{}", problem.message);
    assert!(problem.message.contains("bytes"), "{}", problem.message);
    assert!(experts.may_leave.is_empty());
    assert_eq!(experts.intent.in_force, scene.group.intent.in_force);
}

#[test]
fn at_most_one_pod_may_leave_and_only_while_all_is_well() {
    let mut scene = Scene::new(2);
    assert_eq!(scene.plan(0).may_leave, [2], "the last, if no node is being emptied");
    scene.cordon(0, true, at(0));
    assert_eq!(scene.plan(0).may_leave, [0]);
    assert_eq!(scene.plan(0).intent, scene.group.intent, "others have its experts: nothing moves");

    type Flaw = fn(&mut Scene);
    let flaws: [(&str, Flaw); 4] = [
        ("another pod is gone", |scene| scene.vacate(1, 0)),
        ("another worker is not ready", |scene| {
            tell(&mut scene.group, 1, |s| s.set_phase(Phase::Connecting))
        }),
        ("another worker uses an older placement", |scene| {
            tell(&mut scene.group, 1, |s| s.placement_epoch = 0)
        }),
        ("another spec is being followed", |scene| scene.wanted.experts.copies.min = 1),
    ];
    for (flaw, make) in flaws {
        let mut scene = Scene::new(2);
        make(&mut scene);
        assert!(scene.plan(1).may_leave.is_empty(), "{flaw}");
    }
    // whole groups that may be given up need no label
    let mut scene = Scene::new(2);
    scene.group.draining_since = Some(at(0));
    assert!(scene.plan(0).may_leave.is_empty());
}

#[test]
fn pod_that_never_held_anything_may_leave_until_something_is_meant_for_it() {
    let mut scene = Scene::new(2);
    scene.vacate(1, 0);
    scene.fill(1, "b");
    scene.group.slots[1].as_mut().unwrap().ip = None;
    assert_eq!(scene.plan(1).may_leave, [1], "it has no address yet");
    scene.group.slots[1].as_mut().unwrap().ip = Some("10.0.1.7".into());
    let experts = scene.plan(2);
    assert_eq!(kind(&experts), Some(Kind::Recover));
    assert!(experts.may_leave.is_empty());
}

/// Load on the first expert of each rank of worker 0 only.
fn skewed(scene: &Scene, tokens: u64, measured: i64) -> Arc<GroupLoad> {
    let layers = scene.in_force().layers.iter().map(|layer| {
        let busy = |ranks: &[u32]| ranks.iter().all(|&rank| rank < 4);
        layer.experts.iter().map(|copies| if busy(&copies.ranks) { tokens * 1000 } else { 1000 }).collect()
    });
    let load = Load::new(layers.collect());
    Arc::new(GroupLoad { load, half_life_seconds: 60.0, measured: at(measured) })
}

#[test]
fn skewed_load_is_spread_once_and_as_it_was_decided() {
    let mut scene = Scene::new(1);
    scene.group.load = Some(skewed(&scene, 100_000, 0));
    let experts = scene.write(0);
    assert_eq!(kind(&experts), Some(Kind::Rebalance));
    let begun = experts.rebalances.begun.clone().unwrap();
    assert!(begun.after_percent < begun.before_percent, "{begun:?}");
    let decided = target(&experts).clone();
    // the load goes on changing, the decision does not
    scene.group.load = Some(skewed(&scene, 3, 1));
    assert_eq!(scene.plan(1).intent, scene.group.intent);
    scene.group.load = None;
    assert_eq!(scene.plan(1).intent, scene.group.intent);
    scene.settle(2);
    assert_eq!(scene.in_force().layers, decided.layers);
    let last = scene.group.rebalances.last.clone().unwrap();
    assert_eq!((last.epoch, last.measured_percent), (decided.epoch, None));
    assert_eq!(scene.group.rebalances.begun, None);

    // not again before the interval is over, however skewed
    scene.group.load = Some(skewed(&scene, 100_000, 100));
    assert_eq!(scene.plan(100).intent.operation, None);
    // what it brought is measured once, when the load before it has faded
    scene.group.load = Some(skewed(&scene, 100_000, 200));
    assert_eq!(scene.plan(150).rebalances.last.unwrap().measured_percent, None);
    assert!(scene.plan(200).rebalances.last.unwrap().measured_percent.is_some());
}

#[test]
fn even_load_moves_nothing() {
    let mut scene = Scene::new(1);
    let load = Load::new(vec![vec![1_000_000; 24]; 2]);
    scene.group.load = Some(Arc::new(GroupLoad { load, half_life_seconds: 60.0, measured: at(0) }));
    let experts = scene.plan(0);
    assert_eq!((experts.intent, experts.imbalance_percent), (scene.group.intent.clone(), Some(100)));
}

#[test]
fn loss_comes_before_a_rebalance_which_counts_for_nothing_then() {
    let mut scene = Scene::new(1);
    scene.wanted.experts.asked = Some("now".into());
    scene.group.load = Some(skewed(&scene, 100_000, 0));
    scene.write(0);
    assert!(scene.group.rebalances.begun.as_ref().is_some_and(|begun| begun.asked.as_deref() == Some("now")));
    let first = scene.group.intent.operation.as_ref().unwrap().epoch;
    scene.vacate(2, 0);
    scene.fill(2, "b");
    let experts = scene.write(1);
    assert_eq!(kind(&experts), Some(Kind::Recover));
    assert!(target(&experts).epoch > first, "an epoch never means two things");
    assert_eq!(scene.group.rebalances.begun, None);
    scene.settle(2);
    // what was asked for is done after all
    let experts = scene.plan(3);
    assert_eq!(kind(&experts), Some(Kind::Rebalance));
    assert_eq!(experts.rebalances.begun.unwrap().asked.as_deref(), Some("now"));
}

#[test]
fn rebalance_by_hand_is_done_once_for_each_value_of_the_annotation() {
    let mut scene = Scene::new(1);
    scene.wanted.experts.policy = RebalancePolicy::Manual;
    scene.group.load = Some(skewed(&scene, 100_000, 0));
    assert_eq!(scene.plan(0).intent.operation, None, "nobody asked");
    scene.wanted.experts.asked = Some("1".into());
    assert_eq!(kind(&scene.plan(0)), Some(Kind::Rebalance));
    scene.settle(1);
    assert_eq!(scene.group.rebalances.heard.as_deref(), Some("1"));
    scene.group.load = Some(skewed(&scene, 100_000, 1000));
    assert_eq!(scene.plan(1000).intent.operation, None, "done");
    // nothing to go by: said once, and heard
    scene.wanted.experts.asked = Some("2".into());
    scene.group.load = None;
    let experts = scene.write(1001);
    assert!(experts.intent.operation.is_none() && experts.refused.is_some());
    assert_eq!(scene.group.rebalances.heard.as_deref(), Some("2"));
    assert_eq!(scene.plan(1002).refused, None);
    scene.wanted.experts.policy = RebalancePolicy::Off;
    scene.wanted.experts.asked = Some("3".into());
    scene.group.load = Some(skewed(&scene, 100_000, 1003));
    assert_eq!(scene.plan(1003).intent.operation, None);
}

#[test]
fn group_that_begins_has_heard_what_was_asked_before() {
    let mut wanted = validated("harbour");
    wanted.experts.asked = Some("long ago".into());
    let (_, groups) = common::serving("harbour", &wanted, 1);
    assert_eq!(groups[0].rebalances.heard.as_deref(), Some("long ago"));
}

#[test]
fn worker_that_restarts_in_its_pod_changes_nothing() {
    let mut scene = Scene::new(2);
    tell(&mut scene.group, 1, |status| {
        status.set_phase(Phase::Loading);
        use_epoch(status, 0);
    });
    let experts = scene.plan(0);
    assert_eq!(experts.intent, scene.group.intent);
    let told: Vec<u32> = experts.pushes.iter().map(|push| push.worker).collect();
    assert_eq!(told, [1], "it is told what is in force");
    let step = experts.intent.operation.map(|operation| operation.phase);
    assert_eq!(step, None::<Step>);
}
