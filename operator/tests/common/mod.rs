//! Fixtures for the tests of the pure steps.
use belay_crds::ModelDeployment;
use belay_operator::{
    group::{Group, WorkerPod},
    reconcile::{
        plan::plan,
        validate::{Validated, validate},
    },
    revision::{self, Record},
    rollout::{Evidence, State},
};
use belay_proto::admin::{ModelCard, Phase, WorkerStatus};
use k8s_openapi::jiff::Timestamp;

pub const IMAGE: &str = "registry.example/default-worker:9";

pub fn fixture(name: &str) -> ModelDeployment {
    let path = format!("{}/tests/fixtures/{name}.yaml", env!("CARGO_MANIFEST_DIR"));
    serde_saphyr::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

pub fn validated(name: &str) -> Validated {
    validate(&fixture(name)).unwrap()
}

pub fn record(name: &str) -> Record {
    promoted(revision::choose(&validated(name).content, &[], Some(IMAGE)).unwrap(), -100)
}

/// A revision that was found good at a time.
pub fn promoted(record: Record, seconds: i64) -> Record {
    let state = State { promoted: Some(at(seconds)), ..State::new(record.number, at(seconds)) };
    Record { state: Some(state), ..record }
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub fn card() -> ModelCard {
    ModelCard { layers: 2, experts: 24, expert_bytes: 1000, digest: "d1".into(), ..ModelCard::default() }
}

/// A pod whose worker is in a phase.
pub fn pod(group: &str, worker: u32, life: &str, phase: Phase, epoch: u64) -> WorkerPod {
    let uid = format!("{group}-{worker}-{life}");
    let mut status = WorkerStatus {
        group: group.into(),
        worker,
        uid: uid.clone(),
        card: Some(card()),
        ..WorkerStatus::default()
    };
    status.set_phase(phase);
    use_epoch(&mut status, epoch);
    WorkerPod {
        name: format!("{group}-{worker}"),
        ip: Some(format!("10.0.{worker}.7")),
        node: Some(format!("node-{worker}")),
        ready: phase == Phase::Ready,
        running: true,
        worker: Some(Ok(status)),
        uid,
        ..WorkerPod::default()
    }
}

/// A worker that uses an epoch and holds nothing else.
pub fn use_epoch(status: &mut WorkerStatus, epoch: u64) {
    (status.placement_epoch, status.prepared_epoch, status.retired_epoch) = (epoch, epoch, epoch);
}

/// Changes what the worker of a slot says.
pub fn tell(group: &mut Group, slot: usize, change: impl FnOnce(&mut WorkerStatus)) {
    change(group.slots[slot].as_mut().unwrap().worker.as_mut().unwrap().as_mut().unwrap());
}

/// Groups that serve, with the placements that they would have got.
pub fn serving(name: &str, deployment: &Validated, groups: u32) -> (Record, Vec<Group>) {
    let record = record(name);
    let mut groups: Vec<Group> = (0..groups).map(|n| group(&record, name, n, Phase::Ready)).collect();
    for group in &mut groups {
        for slot in 0..group.slots.len() {
            tell(group, slot, |status| use_epoch(status, 0));
        }
    }
    let plans =
        plan(deployment, &groups, std::slice::from_ref(&record), Some(IMAGE), &Evidence::default(), at(0))
            .unwrap()
            .groups;
    for (group, plan) in groups.iter_mut().zip(plans) {
        group.intent = plan.experts.intent;
        group.rebalances = plan.experts.rebalances;
        group.written = Some("1".into());
        let epoch = group.intent.in_force.as_ref().unwrap().epoch;
        for slot in 0..group.slots.len() {
            tell(group, slot, |status| use_epoch(status, epoch));
        }
    }
    (record, groups)
}

/// A group of a revision with a pod in every slot.
pub fn group(record: &Record, deployment: &str, ordinal: u32, phase: Phase) -> Group {
    let name = belay_crds::labels::group_name(deployment, &record.revision, ordinal);
    let workers = u32::try_from(record.data.content.group.workers).unwrap();
    let ready = phase == Phase::Ready;
    let slots = (0..workers).map(|worker| Some(pod(&name, worker, "a", phase, u64::from(ready)))).collect();
    Group {
        revision: record.revision.clone(),
        ordinal,
        recorded: true,
        first_ready: ready.then(|| at(-100)),
        slots,
        name,
        ..Group::default()
    }
}
