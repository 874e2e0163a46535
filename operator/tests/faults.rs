//! Faults of devices: what follows for which pod, and how its experts and its pod fare.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use std::collections::BTreeSet;

use belay_crds::{DeviceFaultsSpec, FaultAction, Reason};
use belay_epoch::Kind;
use belay_operator::{
    faults::{Devices, Fault, Finding, Level, action, judge, lost},
    group::Group,
    placement::Copies,
    reconcile::{
        build::build,
        observe::{Objects, Observed},
        plan::{Cause, GroupPlan, Removal, plan},
        validate::Validated,
    },
    revision::Record,
    rollout::Evidence,
};
use belay_proto::admin::Phase;
use common::{IMAGE, at, tell, use_epoch, validated};
use k8s_openapi::{api::core::v1::Pod, jiff::Timestamp};
use proptest::prelude::*;
use serde_json::json;

const ACTIONS: [FaultAction; 3] = [FaultAction::Ignore, FaultAction::Drain, FaultAction::Replace];

fn levels() -> Vec<Level> {
    let words = [
        "NotHandleFault",
        "SubHealthFault",
        "RestartRequest",
        "RestartBusiness",
        "FreeRestartNPU",
        "RestartNPU",
        "PreSeparateNPU",
        "SeparateNPU",
        "ManuallySeparateNPU",
        "MeltNPU",
        "",
    ];
    words.into_iter().map(Level::of).collect()
}

/// What is done about each level, in the order of [`levels`].
fn actions(policy: &DeviceFaultsSpec) -> Vec<FaultAction> {
    levels().iter().map(|level| action(policy, level)).collect()
}

#[test]
fn each_level_has_a_default_and_a_wish_of_its_own() {
    use FaultAction::{Drain, Ignore, Replace};
    let defaults = [Ignore, Ignore, Drain, Replace, Drain, Replace, Drain, Replace, Drain, Drain, Drain];
    assert_eq!(actions(&DeviceFaultsSpec::default()), defaults);
    let fields = [
        "subHealthFault",
        "restartRequest",
        "restartBusiness",
        "freeRestartNPU",
        "restartNPU",
        "preSeparateNPU",
        "separateNPU",
        "manuallySeparateNPU",
        "other",
    ];
    for (index, field) in (1..).zip(fields) {
        for wish in ACTIONS {
            let policy: DeviceFaultsSpec = serde_json::from_value(json!({ field: wish })).unwrap();
            let mut expected = defaults.to_vec();
            expected[index] = wish;
            if field == "other" {
                expected[index + 1] = wish;
            }
            assert_eq!(actions(&policy), expected, "{field} {wish:?}");
        }
    }
}

fn pod(annotations: serde_json::Value) -> Pod {
    serde_json::from_value(json!({ "metadata": { "name": "p", "annotations": annotations } })).unwrap()
}

#[test]
fn devices_of_a_pod_are_those_that_are_really_mounted() {
    let known = |numbers: &[u32]| Devices::Known(numbers.iter().copied().collect());
    let of = |annotations| Devices::of(&pod(annotations), Some("huawei.com/ascend-1980"));
    let both = json!({ "huawei.com/Ascend910": "Ascend910-0,Ascend910-1", "huawei.com/AscendReal": "Ascend910-4, Ascend910-5" });
    assert_eq!(of(both), known(&[4, 5]));
    assert_eq!(of(json!({ "huawei.com/Ascend910": "Ascend910-3" })), known(&[3]));
    assert_eq!(of(json!({ "huawei.com/npu": "npu-7,npu-15" })), known(&[7, 15]));
    assert_eq!(of(json!({ "huawei.com/ascend-1980": "NPU-2" })), known(&[2]));
    assert_eq!(of(json!({ "huawei.com/AscendReal": "all of them" })), Devices::Unknown);
    assert_eq!(of(json!({})), Devices::Unknown);
}

fn fault(device: Option<u32>, level: &str, since: i64) -> (Fault, Timestamp) {
    let device = device.map(|number| format!("Ascend910-{number}"));
    (Fault { device, code: "80E01801".into(), level: Level::of(level), since: None }, at(since))
}

fn known(numbers: &[u32]) -> Devices {
    Devices::Known(numbers.iter().copied().collect())
}

fn found(faults: &[(Fault, Timestamp)], devices: &Devices) -> Option<Finding> {
    judge(faults, &DeviceFaultsSpec::default(), devices, at(0), at(100))
}

#[test]
fn fault_counts_for_the_pod_that_has_the_device() {
    let faults = [fault(Some(3), "SeparateNPU", 50)];
    let finding = found(&faults, &known(&[2, 3])).unwrap();
    assert_eq!(finding.action, FaultAction::Replace);
    assert_eq!(finding.message, "Ascend910-3: code 80E01801, level SeparateNPU: the worker is made anew");
    assert_eq!(found(&faults, &known(&[4, 5])), None);
    let node = [fault(None, "", 50)];
    assert_eq!(found(&node, &known(&[4])).unwrap().action, FaultAction::Drain, "of the whole node");
    assert!(found(&node, &known(&[4])).unwrap().message.starts_with("all devices of the node: "));
}

#[test]
fn where_nothing_tells_whose_the_device_is_nobody_is_replaced_at_once() {
    let faults = [fault(Some(3), "SeparateNPU", 50)];
    assert_eq!(found(&faults, &Devices::Unknown).unwrap().action, FaultAction::Drain);
    let older = [fault(Some(3), "SeparateNPU", 0)];
    assert_eq!(found(&older, &Devices::Unknown), None, "probably another's");
}

#[test]
fn request_that_is_computed_again_is_no_reason_until_it_lasts() {
    let since = |since| found(&[fault(Some(1), "RestartRequest", since)], &known(&[1]));
    assert_eq!(since(41), None);
    assert_eq!(since(40).unwrap().action, FaultAction::Drain);
}

#[test]
fn fault_that_the_pod_was_born_with_is_only_told() {
    let finding = found(&[fault(Some(1), "SeparateNPU", 0)], &known(&[1])).unwrap();
    assert_eq!(finding.action, FaultAction::Ignore);
    assert!(finding.message.contains("older than the pod") && finding.message.ends_with("nothing is done"));
    let both = [fault(Some(1), "SeparateNPU", 0), fault(Some(2), "PreSeparateNPU", 9)];
    let finding = found(&both, &known(&[1, 2])).unwrap();
    assert_eq!(finding.action, FaultAction::Drain);
    assert!(finding.message.starts_with("Ascend910-2"), "what is acted on comes first: {}", finding.message);
}

#[test]
fn many_faults_are_told_shortly() {
    let faults: Vec<_> = (0..8).map(|device| fault(Some(device), "RestartNPU", 5)).collect();
    let finding = found(&faults, &known(&[0, 1, 2, 3, 4, 5, 6, 7])).unwrap();
    assert!(finding.message.contains("and 5 more"), "{}", finding.message);
}

fn any_action() -> impl Strategy<Value = Option<FaultAction>> {
    prop::option::of(prop::sample::select(ACTIONS.to_vec()))
}

fn any_policy() -> impl Strategy<Value = DeviceFaultsSpec> {
    prop::array::uniform9(any_action()).prop_map(|[a, b, c, d, e, f, g, h, i]| DeviceFaultsSpec {
        sub_health_fault: a,
        restart_request: b,
        restart_business: c,
        free_restart_npu: d,
        restart_npu: e,
        pre_separate_npu: f,
        separate_npu: g,
        manually_separate_npu: h,
        other: i,
    })
}

fn any_fault() -> impl Strategy<Value = (Fault, Timestamp)> {
    (prop::option::of(0u32..4), prop::sample::select(levels()), 0i64..100)
        .prop_map(|(device, level, since)| fault(device, level.as_str(), since))
}

fn any_devices() -> impl Strategy<Value = Devices> {
    prop_oneof![prop::collection::btree_set(0u32..4, 0..4).prop_map(Devices::Known), Just(Devices::Unknown)]
}

/// Whether a fault is about the pod.
fn concerns(fault: &Fault, devices: &Devices) -> bool {
    let number = fault.device.as_ref().map(|device| device[10..].parse::<u32>().unwrap());
    match (number, devices) {
        (None, _) | (_, Devices::Unknown) => true,
        (Some(number), Devices::Known(numbers)) => numbers.contains(&number),
    }
}

proptest! {
    /// What is done is what the policy says of the gravest fault that is about the pod and younger than it, and no more.
    #[test]
    fn no_more_and_no_less_is_done_than_the_policy_says(
        faults in prop::collection::vec(any_fault(), 0..6), policy in any_policy(), devices in any_devices(),
        created in 0i64..100, now in 100i64..200,
    ) {
        let finding = judge(&faults, &policy, &devices, at(created), at(now));
        let counts = |(fault, since): &&(Fault, Timestamp)| {
            let passes = fault.level == Level::RestartRequest && at(now).as_second() - since.as_second() < 60;
            concerns(fault, &devices) && !passes
        };
        let wish = |(fault, _): &(Fault, Timestamp)| match (action(&policy, &fault.level), &devices) {
            (FaultAction::Replace, Devices::Unknown) => FaultAction::Drain,
            (wish, _) => wish,
        };
        let is_told = |fault: &&(Fault, Timestamp)| devices != Devices::Unknown || fault.1 > at(created);
        let wished = faults.iter().filter(counts).filter(|fault| wish(fault) != FaultAction::Ignore);
        let told = wished.filter(is_told).count();
        prop_assert_eq!(finding.is_some(), told > 0);
        let acted = faults.iter().filter(counts).filter(|(_, since)| *since > at(created)).map(wish).max();
        if let Some(finding) = finding {
            prop_assert_eq!(finding.action, acted.unwrap_or(FaultAction::Ignore));
        }
    }

    /// What is about other pods changes nothing, and neither does the order of a report.
    #[test]
    fn only_faults_of_its_own_devices_matter(
        faults in prop::collection::vec(any_fault(), 0..6), policy in any_policy(), devices in any_devices(),
    ) {
        let all = judge(&faults, &policy, &devices, at(10), at(200));
        let own: Vec<_> = faults.iter().filter(|(fault, _)| concerns(fault, &devices)).cloned().collect();
        prop_assert_eq!(&judge(&own, &policy, &devices, at(10), at(200)), &all);
        let reversed: Vec<_> = faults.iter().rev().cloned().collect();
        prop_assert_eq!(&judge(&reversed, &policy, &devices, at(10), at(200)), &all);
    }

    /// A device more, a fault more: never less is done.
    #[test]
    fn more_faults_never_lead_to_less(
        faults in prop::collection::vec(any_fault(), 1..6), policy in any_policy(), numbers in prop::collection::btree_set(0u32..4, 0..4),
        more in 0u32..4,
    ) {
        let done = |faults: &[(Fault, Timestamp)], numbers: &BTreeSet<u32>| {
            let finding = judge(faults, &policy, &Devices::Known(numbers.clone()), at(10), at(200));
            finding.map_or(FaultAction::Ignore, |finding| finding.action)
        };
        let mut with = numbers.clone();
        with.insert(more);
        prop_assert!(done(&faults, &with) >= done(&faults, &numbers));
        prop_assert!(done(&faults, &numbers) >= done(&faults[1..], &numbers));
    }
}

/// Groups of three workers that serve, and what is asked of them.
struct Scene {
    wanted: Validated,
    record: Record,
    groups: Vec<Group>,
}

impl Scene {
    fn new(groups: u32, min_copies: u32) -> Self {
        let mut wanted = validated("harbour");
        wanted.budget.desired = groups;
        wanted.experts.copies = Copies { min: min_copies, redundant: 0 };
        let (record, groups) = common::serving("harbour", &wanted, groups);
        Self { wanted, record, groups }
    }

    fn fault(&mut self, group: usize, worker: usize, action: FaultAction) {
        let pod = self.groups[group].slots[worker].as_mut().unwrap();
        pod.fault = Some(Finding { action, message: "Ascend910-1: code 1, level X".into() });
    }

    fn plan(&self) -> Vec<GroupPlan> {
        let revisions = std::slice::from_ref(&self.record);
        plan(&self.wanted, &self.groups, revisions, Some(IMAGE), &Evidence::default(), at(5)).unwrap().groups
    }

    /// Workers do at once what they are told, until nothing is under way.
    fn settle(&mut self) {
        for _ in 0..10 {
            let plans = self.plan();
            for (group, plan) in self.groups.iter_mut().zip(&plans) {
                group.intent = plan.experts.intent.clone();
                for push in &plan.experts.pushes {
                    let target = push.request.target.as_ref().map_or(0, |target| target.epoch);
                    let in_force = push.request.in_force.clone().unwrap();
                    tell(group, push.worker as usize, |status| {
                        use_epoch(status, in_force.epoch);
                        status.prepared_epoch = in_force.epoch.max(target);
                        status.set_phase(Phase::Ready);
                    });
                }
            }
            if plans
                .iter()
                .all(|plan| plan.experts.intent.operation.is_none() && plan.experts.pushes.is_empty())
            {
                return;
            }
        }
        panic!("does not settle");
    }
}

fn removed(plan: &GroupPlan) -> Vec<(&str, Option<u32>)> {
    let is_fault = |removal: &&Removal| matches!(removal.cause, Cause::DeviceFault(_));
    plan.remove.iter().filter(is_fault).map(|removal| (removal.pod.as_str(), removal.grace_seconds)).collect()
}

#[test]
fn replaced_worker_goes_at_once_and_ignored_one_stays() {
    let mut scene = Scene::new(1, 1);
    scene.fault(0, 1, FaultAction::Replace);
    scene.fault(0, 2, FaultAction::Ignore);
    let name = format!("{}-1", scene.groups[0].name);
    let plans = scene.plan();
    assert_eq!(removed(&plans[0]), [(name.as_str(), Some(10))]);
    assert_eq!(plans[0].experts.intent, scene.groups[0].intent, "its place is kept for the next pod");
    scene.groups[0].slots[1].as_mut().unwrap().terminating = true;
    assert!(removed(&scene.plan()[0]).is_empty(), "once");
}

#[test]
fn drained_worker_goes_once_its_experts_are_on_others() {
    let mut scene = Scene::new(1, 1);
    scene.fault(0, 1, FaultAction::Drain);
    let plan = &scene.plan()[0];
    assert!(removed(plan).is_empty(), "every expert of it has its only copy there");
    let operation = plan.experts.intent.operation.as_ref().unwrap();
    assert_eq!(operation.kind, Kind::Evacuate);
    assert!(operation.reason.starts_with("a device is faulty: experts of worker 1"), "{}", operation.reason);
    let target = operation.target.as_ref().unwrap();
    let ranks = target.layers.iter().flat_map(|layer| &layer.experts).flat_map(|copies| &copies.ranks);
    assert!(ranks.into_iter().all(|rank| rank / target.ranks_per_worker != 1));
    scene.settle();
    let plan = &scene.plan()[0];
    assert_eq!(removed(plan), [(format!("{}-1", scene.groups[0].name).as_str(), None)], "with its own grace");
}

#[test]
fn drained_worker_whose_experts_others_have_goes_first_and_alone() {
    let mut scene = Scene::new(1, 2);
    scene.fault(0, 0, FaultAction::Drain);
    scene.fault(0, 1, FaultAction::Drain);
    let plan = &scene.plan()[0];
    assert_eq!(removed(plan).len(), 1, "the second only when the first is back");
    assert_eq!(plan.experts.intent.operation, None, "nothing has to move");
}

#[test]
fn group_that_may_be_missing_gives_its_worker_up_and_the_other_one_serves() {
    let mut scene = Scene::new(2, 1);
    scene.fault(1, 2, FaultAction::Drain);
    let plans = scene.plan();
    assert_eq!((removed(&plans[0]).len(), removed(&plans[1]).len()), (0, 1));
    scene.fault(0, 0, FaultAction::Drain);
    let plans = scene.plan();
    assert_eq!(removed(&plans[0]).len() + removed(&plans[1]).len(), 1, "one group must stay");
}

#[test]
fn last_copies_are_not_given_up_where_nobody_has_room() {
    let mut scene = Scene::new(1, 1);
    for slot in 0..3 {
        tell(&mut scene.groups[0], slot, |status| status.expert_bytes_limit = 16_000);
    }
    // what is in force has the limits in it
    let in_force = scene.groups[0].intent.in_force.as_mut().unwrap();
    in_force.workers.iter_mut().for_each(|worker| worker.expert_bytes_limit = 16_000);
    in_force.expert_bytes = 1000;
    scene.fault(0, 1, FaultAction::Drain);
    let plan = &scene.plan()[0];
    assert!(removed(plan).is_empty() && plan.experts.intent.operation.is_none());
    assert_eq!(plan.experts.problem.as_ref().unwrap().reason, Reason::NoRoom);
}

#[test]
fn removal_names_its_cause_and_its_pod_is_made_anew() {
    let mut scene = Scene::new(1, 1);
    scene.fault(0, 1, FaultAction::Replace);
    let revisions = vec![scene.record.clone()];
    let decided =
        plan(&scene.wanted, &scene.groups, &revisions, Some(IMAGE), &Evidence::default(), at(5)).unwrap();
    let observed =
        Observed { groups: scene.groups.clone(), revisions, objects: Objects::default(), now: at(5) };
    let prepared = build(&scene.wanted, &observed, &decided).unwrap();
    assert_eq!(prepared.removals[0].1.cause, Cause::DeviceFault("Ascend910-1: code 1, level X".into()));
    scene.groups[0].slots[1] = None;
    let belay_operator::reconcile::plan::Course::Run { create, .. } = &scene.plan()[0].course else {
        panic!()
    };
    assert_eq!(create, &[1]);
}

#[test]
fn a_worker_that_has_lost_a_device_is_replaced_whatever_the_policy() {
    use belay_proto::admin::{Phase, WorkerStatus};
    let says = |phase: Phase, reason: &str| WorkerStatus {
        phase: phase.into(),
        reason: reason.into(),
        message: "aclrtSynchronizeStreamWithTimeout failed with 507901".into(),
        ..WorkerStatus::default()
    };
    let finding = lost(&says(Phase::Failed, "DeviceLost")).unwrap();
    assert_eq!(finding.action, FaultAction::Replace);
    assert!(finding.message.contains("507901"), "{}", finding.message);
    for other in [says(Phase::Failed, "CheckpointInvalid"), says(Phase::Ready, "DeviceLost")] {
        assert_eq!(lost(&other), None);
    }
}
