//! Objects and answers become groups; specs become budgets.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, reason = "test code")]
#![allow(dead_code, reason = "each test takes what it needs of the common part")]
mod common;

use std::{collections::BTreeMap, sync::Arc};

use belay_crds::labels;
use belay_operator::{
    group::Group,
    nodes::{NodeState, Nodes},
    reconcile::{
        build::build,
        observe::{Answers, Objects, Observed, assemble},
        plan::plan,
        validate::validate,
    },
    rollout::{Budget, Evidence},
};
use belay_proto::admin::{PeerHealth, PeerStatus, Phase, WorkerStatus};
use common::{IMAGE, at, fixture, group, record, validated};
use k8s_openapi::{api::core::v1::Pod, apimachinery::pkg::util::intstr::IntOrString};
use serde_json::json;

struct TestNodes(BTreeMap<&'static str, NodeState>);

impl Nodes for TestNodes {
    fn state(&self, name: &str) -> Option<NodeState> {
        self.0.get(name).cloned()
    }
}

fn nodes() -> TestNodes {
    let domain = Some("east".to_owned());
    let up = NodeState { ready: true, since: at(-1000), unschedulable: false, domain };
    let silent = NodeState { ready: false, since: at(-20), unschedulable: false, domain: None };
    let leaving = NodeState { unschedulable: true, ..up.clone() };
    TestNodes(BTreeMap::from([("up", up), ("silent", silent), ("leaving", leaving)]))
}

/// What the operator made for a fixture, as the API server would list it.
fn listed(name: &str) -> Objects {
    let wanted = validated(name);
    let plan = plan(&wanted, &[], &[], Some(IMAGE), &Evidence::default(), at(0)).unwrap();
    let nothing = Observed { groups: vec![], revisions: vec![], objects: Objects::default(), now: at(0) };
    let prepared = build(&wanted, &nothing, &plan).unwrap();
    let mut pods: Vec<Pod> = prepared.pods.into_iter().map(|new| *new.pod).collect();
    for (i, pod) in pods.iter_mut().enumerate() {
        pod.metadata.uid = Some(format!("uid-{i}"));
    }
    let services = prepared.services.into_iter().map(Arc::new).collect();
    Objects { pods: pods.into_iter().map(Arc::new).collect(), services, ..Objects::default() }
}

fn seen(objects: &Objects, answers: &Answers) -> Vec<Group> {
    assemble("harbour", objects, &[record("harbour")], answers, &nodes(), 10, at(0))
}

fn set_status(pod: &mut Arc<Pod>, node: &str, status: serde_json::Value) {
    let pod = Arc::make_mut(pod);
    pod.spec.as_mut().unwrap().node_name = Some(node.into());
    pod.status = Some(serde_json::from_value(status).unwrap());
}

fn running() -> serde_json::Value {
    json!({ "phase": "Running", "podIP": "10.1.2.3", "conditions": [{ "type": "Ready", "status": "True" }],
        "containerStatuses": [{ "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": 0,
            "state": { "running": {} } }] })
}

#[test]
fn what_was_built_is_recognised() {
    let groups = seen(&listed("harbour"), &Answers::default());
    assert_eq!(groups.len(), 2);
    for (ordinal, group) in groups.iter().enumerate() {
        assert_eq!((group.ordinal as usize, group.slots.len(), group.recorded), (ordinal, 3, true));
        assert!(group.pods().all(|(index, pod)| pod.name == labels::pod_name(&group.name, index)));
        assert!(!group.draining() && group.first_ready.is_none());
    }
}

#[test]
fn missing_pods_leave_empty_slots() {
    let mut objects = listed("harbour");
    objects.pods.retain(|pod| pod.metadata.labels.as_ref().unwrap()[labels::WORKER] == "0");
    let groups = seen(&objects, &Answers::default());
    assert!(groups.iter().all(|group| group.slots.len() == 3 && group.pods().count() == 1));
}

#[test]
fn record_of_a_drain_survives_in_the_service() {
    let mut objects = listed("harbour");
    let note = [(labels::DRAINING_SINCE.to_owned(), at(-30).to_string())];
    Arc::make_mut(&mut objects.services[1]).metadata.annotations = Some(note.into());
    let groups = seen(&objects, &Answers::default());
    assert_eq!(groups[1].draining_since, Some(at(-30)));
}

#[test]
fn marked_pods_drain_on_without_their_service() {
    let mut objects = listed("harbour");
    objects.services.clear();
    let mark = (labels::DRAINING.to_owned(), "true".to_owned());
    Arc::make_mut(&mut objects.pods[0]).metadata.annotations.as_mut().unwrap().extend([mark]);
    let groups = seen(&objects, &Answers::default());
    assert_eq!((groups[0].draining_since, groups[1].draining_since), (Some(at(0)), None));
}

#[test]
fn pods_know_how_their_node_is() {
    let mut objects = listed("harbour");
    for (pod, node) in objects.pods.iter_mut().zip(["up", "silent", "leaving"]) {
        set_status(pod, node, running());
    }
    let groups = seen(&objects, &Answers::default());
    let flags: Vec<_> =
        groups[0].pods().map(|(_, pod)| (pod.node_lost, pod.node_leaving, pod.ready)).collect();
    assert_eq!(flags, [(false, false, true), (true, false, true), (false, true, true)]);
    let serves: Vec<bool> = groups[0].pods().map(|(_, pod)| pod.serves()).collect();
    assert_eq!(
        serves,
        [true, false, true],
        "a pod on a silent node does not serve, whatever its status says"
    );
}

#[test]
fn worker_that_nobody_reaches_does_not_serve_whatever_its_pod_says() {
    let mut objects = listed("harbour");
    for pod in &mut objects.pods[..3] {
        set_status(pod, "up", running());
    }
    let answer = |worker: u32, of_the_last: PeerHealth| {
        let mut peer = PeerStatus { worker: 2, ..PeerStatus::default() };
        peer.set_health(of_the_last);
        let mut status = WorkerStatus { worker, peers: vec![peer], ..WorkerStatus::default() };
        status.set_phase(Phase::Ready);
        (format!("uid-{worker}"), Ok(status))
    };
    let serves = |first: PeerHealth, second: PeerHealth| {
        let silent = ("uid-2".to_owned(), Err("no answer".to_owned()));
        let workers = [answer(0, first), answer(1, second), silent].into();
        seen(&objects, &Answers { workers, ..Answers::default() })[0].ready()
    };
    assert!(!serves(PeerHealth::Lost, PeerHealth::Lost));
    assert!(serves(PeerHealth::Lost, PeerHealth::Live), "one that a peer reaches is not lost");
    assert!(serves(PeerHealth::Live, PeerHealth::Live), "it may be the operator that is cut off");
    let silent = |worker: u32| (format!("uid-{worker}"), Err("no answer".to_owned()));
    let workers = (0..3).map(silent).collect();
    let alone = seen(&objects, &Answers { workers, ..Answers::default() });
    assert!(alone[0].ready(), "whom nobody answers knows nothing");
}

#[test]
fn worker_that_answers_is_not_given_up_with_its_node() {
    let mut objects = listed("harbour");
    for pod in &mut objects.pods[..2] {
        set_status(pod, "silent", running());
    }
    let peer = group(&record("harbour"), "harbour", 0, Phase::Ready);
    let status = peer.slots[0].as_ref().unwrap().worker.clone().unwrap();
    let answers = [("uid-0".to_owned(), status), ("uid-1".to_owned(), Err("no answer".to_owned()))];
    let groups = seen(&objects, &Answers { workers: answers.into(), ..Answers::default() });
    let lost: Vec<bool> = groups[0].pods().map(|(_, pod)| pod.node_lost).collect();
    assert_eq!(lost, [false, true, false]);
    let told = groups[0].slots[0].as_ref().unwrap().problem().unwrap();
    assert!(told.message.contains("left alone"), "{}", told.message);
}

#[test]
fn worker_that_contradicts_the_kubelet_is_believed() {
    let mut objects = listed("harbour");
    set_status(&mut objects.pods[0], "up", running());
    let record = record("harbour");
    let peer = group(&record, "harbour", 0, Phase::Connecting);
    let status = peer.slots[0].as_ref().unwrap().worker.clone().unwrap();
    let answers = Answers { workers: [("uid-0".to_owned(), status)].into(), ..Answers::default() };
    let groups = seen(&objects, &answers);
    let pod = groups[0].slots[0].as_ref().unwrap();
    assert!(pod.ready && !pod.serves());
}

#[test]
fn budgets_follow_the_conventions_of_deployments() {
    let budget = |replicas: i32, surge: IntOrString, unavailable: IntOrString| {
        let mut deployment = fixture("skiff");
        deployment.spec.replicas = replicas;
        deployment.spec.rollout.max_surge = surge;
        deployment.spec.rollout.max_unavailable = unavailable;
        validate(&deployment).map(|valid| valid.budget).map_err(|invalid| invalid.to_string())
    };
    let percent = |text: &str| IntOrString::String(text.into());
    let is = |desired, surge, unavailable| Ok(Budget { desired, surge, unavailable });
    assert_eq!(budget(4, percent("30%"), percent("30%")), is(4, 2, 1), "up for surge, down for unavailable");
    assert_eq!(budget(1, percent("0%"), percent("30%")), is(1, 0, 1), "something must move");
    assert_eq!(budget(0, IntOrString::Int(1), IntOrString::Int(0)), is(0, 1, 0));
    for (surge, words) in [
        (percent("120%"), "spec.rollout.maxSurge"),
        (percent("many"), "spec.rollout.maxSurge"),
        (IntOrString::Int(-1), "spec.rollout.maxSurge"),
        (IntOrString::Int(0), "must not both be 0"),
    ] {
        let error = budget(1, surge, IntOrString::Int(0)).unwrap_err();
        assert!(error.contains(words), "{error}");
    }
    assert!(budget(-1, IntOrString::Int(1), IntOrString::Int(0)).unwrap_err().contains("spec.replicas"));
}
