//! What the status says about what was observed and done.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use belay_crds::{FaultAction, ModelDeploymentStatus, Reason};
use belay_operator::{
    faults::Finding,
    group::{Group, Trouble},
    reconcile::{
        apply::Applied,
        observe::{Objects, Observed},
        plan::plan,
        status::{refused, status},
        validate::Validated,
    },
    revision::Record,
    rollout::{Evidence, Strategy},
};
use belay_proto::admin::{Coverage, Phase};
use common::{IMAGE, at, group, record, validated};

fn look(
    groups: Vec<Group>,
    applied: &Applied,
    previous: Option<&ModelDeploymentStatus>,
) -> ModelDeploymentStatus {
    look_at(&validated("harbour"), groups, applied, previous)
}

fn look_at(
    wanted: &Validated,
    groups: Vec<Group>,
    applied: &Applied,
    previous: Option<&ModelDeploymentStatus>,
) -> ModelDeploymentStatus {
    let revisions = vec![record("harbour")];
    let plan = plan(wanted, &groups, &revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    let observed = Observed { groups, revisions, objects: Objects::default(), now: at(0) };
    status(wanted, &observed, &plan, applied, previous).0
}

fn serving() -> Vec<Group> {
    common::serving("harbour", &validated("harbour"), 2).1
}

#[track_caller]
fn says(status: &ModelDeploymentStatus, kind: &str, value: &str, reason: &str, words: &str) {
    let condition = status.conditions.iter().find(|condition| condition.type_ == kind).unwrap();
    assert_eq!((condition.status.as_str(), condition.reason.as_str()), (value, reason), "{condition:?}");
    assert!(condition.message.contains(words), "{}", condition.message);
}

#[test]
fn all_is_well() {
    let status = look(serving(), &Applied::default(), None);
    says(&status, "Available", "True", "GroupsReady", "2 of 2 groups");
    says(&status, "Progressing", "False", "Settled", "");
    says(&status, "ExpertsCovered", "True", "AllExpertsLive", "2 groups");
    says(&status, "Degraded", "False", "AsExpected", "");
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (2, 2, 2));
    assert_eq!(status.selector, "serving.belay.dev/model-deployment=harbour,serving.belay.dev/worker=0");
    assert_eq!(status.observed_generation, Some(7));
    let experts = status.experts.unwrap();
    assert_eq!((experts.total, experts.copies, experts.min_live_copies), (48, 96, 2));
}

#[test]
fn faults_of_devices_are_told_and_break_nothing() {
    let mut groups = serving();
    let message = "Ascend910-3: code 80E01801, level SeparateNPU: the worker is made anew";
    let fault = Finding { action: FaultAction::Replace, message: message.into() };
    groups[1].slots[2].as_mut().unwrap().fault = Some(fault);
    let status = look(groups.clone(), &Applied::default(), None);
    says(&status, "Degraded", "True", "DeviceFault", &format!("{}-2: {message}", groups[1].name));
    says(&status, "Available", "True", "GroupsReady", "2 of 2 groups");
    assert_eq!(status.ready_replicas, 2);
}

#[test]
fn cluster_without_the_scheduler_is_told() {
    let group = group(&record("harbour"), "harbour", 0, Phase::Starting);
    let words = "the PodGroup of scheduler Volcano (scheduling.volcano.sh/v1beta1) is not taken";
    let applied = Applied { unscheduled: vec![(group.name.clone(), words.into())], ..Applied::default() };
    let status = look(vec![Group { slots: vec![None; 3], ..group }], &applied, None);
    says(&status, "Degraded", "True", "SchedulerMissing", words);
}

#[test]
fn created_groups_are_there_but_not_ready() {
    let applied = Applied { created_groups: vec!["harbour-dcd10987-0".into()], ..Applied::default() };
    let status = look(vec![], &applied, None);
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (1, 0, 1));
    says(&status, "Available", "False", "NoGroupReady", "0 of 2");
    says(&status, "Progressing", "True", "GroupsStarting", "harbour-dcd10987-0");
    says(&status, "ExpertsCovered", "False", "NotLoaded", "");
    says(&status, "Degraded", "False", "AsExpected", "");
}

#[test]
fn progress_of_loading_is_shown() {
    let record = record("harbour");
    let mut loading = group(&record, "harbour", 0, Phase::Loading);
    for slot in loading.slots.iter_mut().flatten() {
        let status = slot.worker.as_mut().unwrap().as_mut().unwrap();
        (status.load_bytes_done, status.load_bytes_total) = (10, 40);
        status.message = "layer 1 of 4".into();
    }
    let status = look(vec![loading], &Applied::default(), None);
    let group = &status.groups[0];
    let loading = group.loading.as_ref().unwrap();
    assert_eq!((loading.bytes_done, loading.bytes_total), (30, 120));
    assert!(group.message.as_ref().unwrap().contains("layer 1 of 4"));
}

#[test]
fn lost_worker_uncovers_experts_although_another_group_serves() {
    let mut groups = serving();
    groups[0].slots[1] = None;
    let status = look(groups, &Applied::default(), None);
    assert_eq!(status.ready_replicas, 1);
    says(&status, "Available", "True", "GroupsReady", "1 of 2 groups take");
    says(&status, "ExpertsCovered", "False", "ExpertsLost", "16 of 48 experts");
    says(&status, "Progressing", "True", "Recovering", "-0");
    says(&status, "Degraded", "True", "RankLost", "worker 1 is lost: ranks 4-7 (layers 0-1 experts 8-15)");
    says(&status, "Degraded", "True", "RankLost", "16 experts have fewer copies than asked, 16 none");
    says(&status, "Degraded", "True", "RankLost", "is being created");
    assert_eq!(status.groups[0].lost_workers, [1]);
    let experts = status.groups[0].experts.clone().unwrap();
    assert_eq!((experts.covered, experts.total, experts.min_live_copies), (32, 48, 0));
    assert_eq!(status.experts.unwrap().min_live_copies, 1);
}

/// One group that is asked for, with a number of copies of each expert.
fn alone(copies: u32) -> (Validated, Vec<Group>) {
    let mut wanted = validated("harbour");
    wanted.budget.desired = 1;
    wanted.experts.copies.min = copies;
    let (_, groups) = common::serving("harbour", &wanted, 1);
    (wanted, groups)
}

#[test]
fn group_without_a_worker_serves_while_every_expert_has_a_copy() {
    let (wanted, mut groups) = alone(2);
    groups[0].slots[1] = None;
    let status = look_at(&wanted, groups.clone(), &Applied::default(), None);
    says(&status, "Available", "True", "GroupsIncomplete", "-0 serves with 2 of 3 workers");
    says(&status, "ExpertsCovered", "True", "AllExpertsLive", "");
    says(&status, "Degraded", "True", "RankLost", "32 experts have fewer copies than asked, 0 none");
    says(&status, "Progressing", "True", "Recovering", "");
    assert_eq!((status.ready_replicas, status.groups[0].ready_workers), (0, 2));
    assert_eq!(status.experts.unwrap().min_live_copies, 1);

    // the others see what is missing, and do not take requests
    for slot in [0, 2] {
        groups[0].slots[slot].as_mut().unwrap().ready = false;
    }
    let status = look_at(&wanted, groups, &Applied::default(), None);
    says(&status, "Available", "False", "NoGroupReady", "0 of 1");
}

#[test]
fn adopted_copies_cover_experts() {
    let (wanted, mut groups) = alone(1);
    groups[0].slots[1] = None;
    let report = |uncovered, adopted| Coverage {
        epoch: 1,
        experts: 48,
        uncovered,
        min_live_copies: u32::from(uncovered == 0),
        adopted,
        ..Coverage::default()
    };
    for slot in [0, 2] {
        common::tell(&mut groups[0], slot, |status| status.coverage = Some(report(8, 4)));
    }
    let status = look_at(&wanted, groups.clone(), &Applied::default(), None);
    says(&status, "ExpertsCovered", "False", "ExpertsLost", "8 of 48 experts");
    for slot in [0, 2] {
        common::tell(&mut groups[0], slot, |status| status.coverage = Some(report(0, 8)));
    }
    let status = look_at(&wanted, groups, &Applied::default(), None);
    says(&status, "ExpertsCovered", "True", "AllExpertsLive", "");
    says(&status, "Available", "True", "GroupsIncomplete", "");
    let experts = status.groups[0].experts.as_ref().unwrap();
    assert_eq!((experts.covered, experts.adopted, experts.min_live_copies), (48, 16, 1));
    assert_eq!(status.experts.unwrap().copies, 48);
}

#[test]
fn change_of_placement_is_shown_with_what_it_waits_for() {
    let (wanted, mut groups) = alone(1);
    let name = groups[0].name.clone();
    groups[0].slots[1] = Some(common::pod(&name, 1, "b", Phase::WaitingForPlacement, 0));
    let revisions = [record("harbour")];
    let plan = plan(&wanted, &groups, &revisions, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    groups[0].intent = plan.groups[0].experts.intent.clone();
    common::tell(&mut groups[0], 1, |status| status.prepare_bytes_done = 4000);
    let status = look_at(&wanted, groups.clone(), &Applied::default(), None);
    let operation = status.groups[0].operation.as_ref().unwrap();
    assert_eq!(
        (operation.kind.as_str(), operation.phase.as_str(), operation.epoch),
        ("Recover", "Prepare", 2)
    );
    assert_eq!((operation.bytes_done, operation.bytes_total), (4000, 16_000));
    assert!(
        operation.reason.contains("worker 1 (pod harbour-dcd10987-0-1, ranks 4-7) is back"),
        "{operation:?}"
    );
    assert!(
        operation.waiting_for.as_ref().unwrap().contains("worker 1 loads: 4000 of 16000"),
        "{operation:?}"
    );
    assert_eq!(operation.eta_seconds, Some(3), "a quarter took no more than a second");
}

#[test]
fn missing_copies_are_told() {
    let (mut wanted, groups) = alone(1);
    wanted.experts.copies.redundant = 10_000;
    let status = look_at(&wanted, groups, &Applied::default(), None);
    says(&status, "Degraded", "True", "CopiesMissing", "copies that spec.experts asks for");
}

#[test]
fn silent_node_is_told_before_the_pods_are_gone() {
    let mut groups = serving();
    groups[0].slots[1].as_mut().unwrap().node_lost = true;
    let status = look(groups, &Applied::default(), None);
    says(&status, "Degraded", "True", "NodeLost", "node node-1 does not respond");
    says(&status, "ExpertsCovered", "False", "ExpertsLost", "");
}

#[test]
fn pod_that_ends_is_not_called_unreachable() {
    let mut groups = serving();
    let pod = groups[0].slots[1].as_mut().unwrap();
    pod.worker = Some(Err("no answer".into()));
    says(
        &look(groups.clone(), &Applied::default(), None),
        "Degraded",
        "True",
        "WorkerUnreachable",
        "no answer",
    );
    groups[0].slots[1].as_mut().unwrap().terminating = true;
    groups[0].slots[1].as_mut().unwrap().ready = false;
    says(&look(groups, &Applied::default(), None), "Degraded", "True", "RankLost", "is ending");
}

#[test]
fn failed_worker_is_quoted() {
    let record = record("harbour");
    let mut failed = group(&record, "harbour", 0, Phase::WaitingForPlacement);
    let worker = failed.slots[1].as_mut().unwrap().worker.as_mut().unwrap().as_mut().unwrap();
    worker.set_phase(Phase::Failed);
    worker.reason = "CheckpointInvalid".into();
    worker.message = "model-00002.safetensors: tensor head.weight is missing".into();
    let status = look(vec![failed], &Applied::default(), None);
    let told = "harbour-dcd10987-0-1: model-00002.safetensors: tensor head.weight is missing; \
                after mending it, delete the pod";
    says(&status, "Degraded", "True", "CheckpointInvalid", told);
    assert_eq!(status.groups[0].message.as_deref(), Some(told));
}

#[test]
fn the_way_on_is_told_once_and_only_where_a_new_pod_is_what_helps() {
    const WAY_ON: &str = "; after mending it, delete the pod";
    let record = record("harbour");
    let fail = |group: &mut Group, slot: usize, reason: &str, message: &str| {
        let worker = group.slots[slot].as_mut().unwrap().worker.as_mut().unwrap().as_mut().unwrap();
        worker.set_phase(Phase::Failed);
        (worker.reason, worker.message) = (reason.into(), message.into());
    };
    let degraded = |failed: &Group| {
        let status = look(vec![failed.clone()], &Applied::default(), None);
        status.conditions.iter().find(|condition| condition.type_ == "Degraded").unwrap().message.clone()
    };
    let mut failed = group(&record, "harbour", 0, Phase::WaitingForPlacement);
    fail(&mut failed, 0, "CheckpointNotFound", "/model: no such directory");
    fail(&mut failed, 1, "CheckpointNotFound", "/model: no such directory");
    let told = degraded(&failed);
    assert_eq!(told.matches(WAY_ON).count(), 1, "{told}");
    assert!(told.ends_with(&format!("no such directory{WAY_ON}")), "{told}");

    // The kubelet restarts these by itself.
    fail(&mut failed, 0, "EngineStopped", "the step loop panicked: x");
    fail(&mut failed, 1, "EngineStopped", "the step loop panicked: x");
    let told = degraded(&failed);
    assert!(told.ends_with("EngineStopped: the step loop panicked: x"), "{told}");

    // What is wrong is the node, not what the worker said last.
    fail(&mut failed, 1, "CheckpointNotFound", "/model: no such directory");
    failed.slots[1].as_mut().unwrap().node_lost = true;
    let told = degraded(&failed);
    assert!(!told.contains(WAY_ON), "{told}");
}

#[test]
fn refused_pod_is_quoted() {
    let name = "harbour-dcd10987-0";
    let words = "violates PodSecurity \"restricted:latest\": hostPath volumes";
    let applied = Applied {
        created_groups: vec![name.into()],
        refused: vec![(format!("{name}-1"), words.into())],
        ..Applied::default()
    };
    says(&look(vec![], &applied, None), "Degraded", "True", "PodRefused", words);
}

#[test]
fn real_faults_come_before_what_follows_from_them() {
    let mut groups = serving();
    groups[0].slots[1] = None; // recovering
    let pod = groups[1].slots[0].as_mut().unwrap();
    pod.ready = false;
    pod.running = false;
    pod.worker = None;
    pod.trouble =
        Some(Trouble { reason: Reason::ImageUnavailable, message: "ErrImagePull: no such tag".into() });
    let status = look(groups, &Applied::default(), None);
    says(&status, "Degraded", "True", "ImageUnavailable", "no such tag");
    says(&status, "Degraded", "True", "ImageUnavailable", "is being created");
}

#[test]
fn draining_group_serves_no_more_and_does_not_count_as_a_fault() {
    let mut groups = serving();
    groups[1].draining_since = Some(at(-5));
    groups[1].slots[0] = None;
    for slot in groups[1].slots.iter_mut().flatten() {
        slot.worker.as_mut().unwrap().as_mut().unwrap().requests_in_flight = 2;
    }
    let status = look(groups, &Applied::default(), None);
    assert_eq!((status.replicas, status.ready_replicas, status.updated_replicas), (2, 1, 1));
    let line = &status.groups[1];
    assert!(line.draining && line.ready_workers == 0 && line.requests_in_flight == Some(4));
    says(&status, "Degraded", "False", "AsExpected", "");
    says(&status, "ExpertsCovered", "True", "AllExpertsLive", "");
}

#[test]
fn current_revision_changes_when_the_rollout_is_complete() {
    let before = ModelDeploymentStatus { current_revision: Some("aaaaaaaa".into()), ..Default::default() };
    let mut groups = serving();
    assert_eq!(
        look(groups.clone(), &Applied::default(), Some(&before)).current_revision,
        record("harbour").revision.into()
    );
    groups[1].revision = "aaaaaaaa".into();
    let status = look(groups, &Applied::default(), Some(&before));
    assert_eq!(status.current_revision, before.current_revision);
    says(&status, "Progressing", "True", "RollingOut", "harbour-dcd10987-1");
}

#[test]
fn rollout_that_is_to_stay_where_it_is_says_so() {
    let mut wanted = validated("harbour");
    let mut groups = serving();
    groups[1].revision = "0ld0ld00".into();
    let target = record("harbour");
    let old = Record { revision: "0ld0ld00".into(), number: target.number - 1, ..target.clone() };
    let records = [old, target];
    let look = |wanted: &Validated, groups: &[Group]| {
        let plan = plan(wanted, groups, &records, Some(IMAGE), &Evidence::default(), at(0)).unwrap();
        let observed = Observed {
            groups: groups.to_vec(),
            revisions: records.to_vec(),
            objects: Objects::default(),
            now: at(0),
        };
        status(wanted, &observed, &plan, &Applied::default(), None).0
    };
    wanted.rules.paused = true;
    says(&look(&wanted, &groups), "Progressing", "False", "RolloutPaused", "1 of 2 groups have revision");
    wanted.rules.paused = false;
    wanted.rules.strategy = Strategy::RollingUpdate { partition: 1 };
    says(&look(&wanted, &groups), "Progressing", "False", "RolloutPartitioned", "1 of 2 groups");
    groups[0].slots[0].as_mut().unwrap().ready = false;
    says(&look(&wanted, &groups), "Progressing", "True", "RollingOut", "still there");
    wanted.rules.strategy = Strategy::RollingUpdate { partition: 0 };
    says(&look(&wanted, &groups), "Progressing", "True", "RollingOut", "still there");
}

#[test]
fn same_observation_gives_the_same_status() {
    let first = look(serving(), &Applied::default(), None);
    assert_eq!(look(serving(), &Applied::default(), Some(&first)), first, "or it would be written for ever");
}

#[test]
fn refusal_keeps_what_was_known_and_names_the_field() {
    let known = look(serving(), &Applied::default(), None);
    let next =
        refused(Some(&known), Some(8), Reason::InvalidSpec, "spec.replicas: must not be negative", at(1));
    assert_eq!((next.ready_replicas, next.observed_generation), (2, Some(8)));
    says(&next, "Degraded", "True", "InvalidSpec", "spec.replicas");
    says(&next, "Available", "True", "GroupsReady", "");
}
