//! Fixtures for the tests of the pure steps.
use belay_crds::ModelDeployment;
use belay_operator::{
    group::{Group, WorkerPod},
    reconcile::validate::{Validated, validate},
    revision::{self, Record},
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
    revision::choose(&validated(name).content, &[], Some(IMAGE)).unwrap()
}

pub fn at(seconds: i64) -> Timestamp {
    Timestamp::from_second(1_800_000_000 + seconds).unwrap()
}

pub fn card() -> ModelCard {
    ModelCard { layers: 2, experts: 24, digest: "d1".into(), ..ModelCard::default() }
}

/// A pod whose worker is in a phase.
pub fn pod(group: &str, worker: u32, life: &str, phase: Phase, epoch: u64) -> WorkerPod {
    let uid = format!("{group}-{worker}-{life}");
    let mut status = WorkerStatus {
        group: group.into(),
        worker,
        uid: uid.clone(),
        card: Some(card()),
        placement_epoch: epoch,
        ..WorkerStatus::default()
    };
    status.set_phase(phase);
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
