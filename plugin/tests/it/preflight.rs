//! `kubectl belay plan`: rollouts played through on nodes of several kinds.
use std::collections::BTreeMap;

use belay_crds::ModelDeployment;
use belay_operator::{
    group::{Group, WorkerPod},
    reconcile::{build, validate::validate},
    revision::{self, Record},
};
use belay_proto::admin::{ModelCard, Phase, WorkerStatus};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use kube::ResourceExt as _;
use kubectl_belay::preflight::{
    demand::{self, Amounts},
    judge::{Facts, judge},
    pack::{self, Candidate},
    report::{ChangeKind, Report, Verdict},
    room::Room,
    text,
};
use proptest::prelude::*;
use serde_json::{Value, json};

fn now() -> Timestamp {
    "2026-11-27T10:00:00Z".parse().unwrap()
}

fn node(name: &str, allocatable: Value) -> Node {
    let object = json!({"metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
        "status": {"allocatable": allocatable}});
    serde_json::from_value(object).unwrap()
}

fn cpu_nodes() -> Vec<Node> {
    let size = json!({"cpu": "8", "memory": "32Gi", "pods": "110"});
    vec![node("node-a", size.clone()), node("node-b", size)]
}

/// Atlas 800I A2: 8 devices, 192 processors. One is cordoned, one is for others.
fn ascend_nodes() -> Vec<Node> {
    let size = json!({"cpu": "192", "memory": "1500Gi", "pods": "110", "huawei.com/Ascend910": "8"});
    let mut nodes: Vec<Node> =
        ["a2-0", "a2-1", "a2-2", "a2-3", "a2-4"].map(|name| node(name, size.clone())).into();
    nodes[3].spec.get_or_insert_default().unschedulable = Some(true);
    let taint = json!([{"key": "team", "value": "vision", "effect": "NoSchedule"}]);
    nodes[4].spec.get_or_insert_default().taints = serde_json::from_value(taint).unwrap();
    nodes
}

fn spec(replicas: u32, image: &str, resources: Value) -> Value {
    json!({
        "replicas": replicas,
        "model": {"source": {"hostPath": {"path": "/models/nano"}}},
        "group": {"workers": 2, "device": "CPU", "devicesPerWorker": 2,
            "template": {"image": image, "resources": resources}},
    })
}

fn deployment(spec: &Value) -> ModelDeployment {
    let object = json!({
        "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {"name": "nano", "namespace": "models", "uid": "uid-nano", "generation": 1}, "spec": spec,
    });
    serde_json::from_value(object).unwrap()
}

/// `present` groups of a spec that serve, their pods on the given nodes in turn, and a change to another spec.
pub struct Case {
    pub present: Option<Value>,
    pub groups: usize,
    pub wanted: Value,
    pub nodes: Vec<Node>,
    pub on: Vec<&'static str>,
    pub card: Option<ModelCard>,
}

impl Case {
    fn facts(&self) -> Facts {
        let mut facts = Facts {
            wanted: deployment(&self.wanted),
            wanted_spec: self.wanted.clone(),
            present_spec: self.present.clone(),
            present_revision: None,
            groups: vec![],
            pods: vec![],
            services: vec![],
            revisions: vec![],
            past: BTreeMap::new(),
            rooms: Ok(vec![]),
            now: now(),
        };
        if let Some(present) = &self.present {
            let wanted = validate(&deployment(present)).unwrap();
            let record = revision::choose(&wanted.content, &[], Some("default")).unwrap();
            let mut nodes = self.on.iter().cycle();
            for ordinal in 0..self.groups {
                let name = format!("nano-{}-{ordinal}", record.revision);
                let workers = u32::try_from(record.data.content.group.workers).unwrap();
                let pods: Vec<Pod> = (0..workers)
                    .map(|worker| {
                        let mut pod = build::pod(&wanted, &record, &name, worker);
                        pod.spec.as_mut().unwrap().node_name = Some((*nodes.next().unwrap()).to_owned());
                        pod
                    })
                    .collect();
                facts.groups.push(serving(
                    &name,
                    &record,
                    &pods,
                    u32::try_from(ordinal).unwrap(),
                    self.card.clone(),
                ));
                facts.pods.extend(pods);
                facts.services.push(service(&name));
            }
            facts.present_revision = Some(record.revision.clone());
            facts.revisions = vec![record];
        }
        facts.rooms = Ok(self.nodes.iter().map(|node| Room::of(node, &facts.pods).unwrap()).collect());
        facts
    }

    pub fn judged(&self) -> Report {
        judge(&self.facts()).unwrap()
    }
}

fn serving(name: &str, record: &Record, pods: &[Pod], ordinal: u32, card: Option<ModelCard>) -> Group {
    let slots = pods.iter().map(|pod| {
        let mut status = WorkerStatus { card: card.clone(), ..WorkerStatus::default() };
        status.set_phase(Phase::Ready);
        Some(WorkerPod {
            name: pod.name_any(),
            uid: pod.name_any(),
            ip: Some("10.0.0.1".into()),
            ready: true,
            running: true,
            worker: Some(Ok(status)),
            ..WorkerPod::default()
        })
    });
    Group {
        name: name.to_owned(),
        revision: record.revision.clone(),
        ordinal,
        recorded: true,
        first_ready: Some(now()),
        slots: slots.collect(),
        ..Group::default()
    }
}

/// A record of a group that took 90 s to get ready.
fn service(name: &str) -> Service {
    serde_json::from_value(json!({"metadata": {
        "name": name, "creationTimestamp": "2026-11-27T08:00:00Z",
        "annotations": {"serving.belay.dev/first-ready": "2026-11-27T08:01:30Z"},
    }}))
    .unwrap()
}

fn resources(cpu: &str, memory: &str) -> Value {
    json!({"requests": {"cpu": cpu, "memory": memory}, "limits": {"memory": memory}})
}

fn devices(count: &str) -> Value {
    json!({"limits": {"huawei.com/Ascend910": count, "memory": "300Gi"}})
}

pub fn card() -> ModelCard {
    ModelCard {
        layers: 4,
        experts: 64,
        expert_bytes: 16 << 20,
        dense_bytes: 2 << 30,
        digest: "d".into(),
        ..ModelCard::default()
    }
}

pub fn plain(report: &Report) -> String {
    text::render(report, 110).iter().map(|line| line.plain() + "\n").collect()
}

#[test]
fn a_new_image_with_room_for_surge() {
    let case = Case {
        present: Some(spec(2, "worker:1", resources("1", "8Gi"))),
        groups: 2,
        wanted: spec(2, "worker:2", resources("1", "8Gi")),
        nodes: cpu_nodes(),
        on: vec!["node-a", "node-b"],
        card: Some(card()),
    };
    let report = case.judged();
    assert_eq!((report.verdict, report.change.kind), (Verdict::Fits, ChangeKind::Revision));
    let course = report.course.as_ref().unwrap();
    assert_eq!((course.fewest_ready, course.most_groups, course.loads, course.drains), (2, 3, 2, 2));
    assert_eq!(report.demand.surge["memory"], 16 << 30);
    assert_eq!(report.duration.as_ref().unwrap().load_seconds, 180);
    assert_eq!(course.updated, 2);
    insta::assert_snapshot!("new_image", plain(&report));
}

#[test]
fn without_devices_for_surge_it_stalls_and_says_what_helps() {
    let case = Case {
        present: Some(spec(1, "worker:1", devices("8"))),
        groups: 1,
        wanted: spec(1, "worker:2", devices("8")),
        nodes: ascend_nodes(),
        on: vec!["a2-0", "a2-1"],
        card: None,
    };
    let report = case.judged();
    assert_eq!(report.verdict, Verdict::DoesNotFit);
    let course = report.course.as_ref().unwrap();
    assert_eq!((course.updated, course.left.len(), course.fewest_ready), (0, 1, 1), "the old group stays");
    assert_eq!(course.misfits.len(), 1, "one of the two pods finds the last free node");
    insta::assert_snapshot!("no_surge", plain(&report));
    // what it says would help does
    let mut wanted = case.wanted.clone();
    wanted["rollout"] = json!({"maxUnavailable": 1});
    let helped = Case { wanted, ..case };
    let report = helped.judged();
    assert_eq!(report.verdict, Verdict::Fits, "{}", plain(&report));
    assert_eq!(report.course.unwrap().fewest_ready, 0);
}

#[test]
fn tolerations_and_selectors_open_nodes() {
    let mut wanted = spec(2, "worker:1", devices("8"));
    let case = |wanted: Value| Case {
        present: None,
        groups: 0,
        wanted,
        nodes: ascend_nodes(),
        on: vec![],
        card: None,
    };
    let report = case(wanted.clone()).judged();
    assert_eq!((report.verdict, report.change.kind), (Verdict::DoesNotFit, ChangeKind::Creation));
    assert_eq!(
        report.reasons[0].split_once(": ").unwrap().1,
        "0/5 nodes take it: 1 cordoned, 1 with the taint team=vision, which is not tolerated, \
         3 with too little huawei.com/Ascend910 (asks 8, at most 0 free)"
    );
    assert_eq!(report.help, ["spec.replicas: 1: so many groups fit"]);
    wanted["group"]["template"]["tolerations"] = json!([{"key": "team", "operator": "Exists"}]);
    assert_eq!(case(wanted.clone()).judged().verdict, Verdict::Fits);
    wanted["group"]["template"]["nodeSelector"] = json!({"kubernetes.io/hostname": "a2-4"});
    let report = case(wanted.clone()).judged();
    assert!(report.reasons[0].contains("4 without the labels"), "{:?}", report.reasons);
    // what other pods are on decides, too, and is not looked at
    wanted["group"]["template"]["nodeSelector"] = json!({});
    wanted["group"]["template"]["affinity"] = json!({"podAntiAffinity": {
        "requiredDuringSchedulingIgnoredDuringExecution": [{"topologyKey": "kubernetes.io/hostname"}]}});
    assert_eq!(case(wanted).judged().verdict, Verdict::Unknown);
}

#[test]
fn settings_move_no_pod_and_nothing_is_nothing() {
    let present = spec(2, "worker:1", resources("1", "8Gi"));
    let mut wanted = present.clone();
    let case = |wanted: &Value| Case {
        present: Some(present.clone()),
        groups: 2,
        wanted: wanted.clone(),
        nodes: cpu_nodes(),
        on: vec!["node-a", "node-b"],
        card: None,
    };
    let report = case(&wanted).judged();
    assert_eq!((report.verdict, report.change.kind), (Verdict::Fits, ChangeKind::None));
    assert!(report.course.unwrap().rounds.is_empty());
    wanted["rollout"] = json!({"drainSeconds": 60});
    let report = case(&wanted).judged();
    assert_eq!((report.change.kind, report.course.unwrap().rounds.len()), (ChangeKind::Settings, 0));
    wanted["replicas"] = 1.into();
    let report = case(&wanted).judged();
    assert_eq!(report.course.as_ref().unwrap().rounds[0].drain.len(), 1);
    // a paused rollout stays where it is
    wanted = spec(2, "worker:2", resources("1", "8Gi"));
    wanted["rollout"] = json!({"progress": "Paused"});
    let report = case(&wanted).judged();
    assert_eq!(report.course.as_ref().unwrap().left.len(), 2);
    assert!(report.notes[0].contains("spec.rollout.progress is Paused"), "{:?}", report.notes);
}

#[test]
fn a_model_that_is_too_large_for_its_workers_does_not_fit() {
    let case = |memory: &str, extra: Value| {
        let mut wanted = spec(1, "worker:2", resources("1", memory));
        wanted["experts"] = extra;
        Case {
            present: Some(spec(1, "worker:1", resources("1", "8Gi"))),
            groups: 1,
            wanted,
            nodes: cpu_nodes(),
            on: vec!["node-a"],
            card: Some(card()),
        }
    };
    // 4 GiB of experts over 2 workers, 2 GiB dense weights, 4 GiB cache
    let fits = case("8Gi", json!({})).judged();
    let memory = fits.memory.clone().unwrap();
    assert_eq!(
        (memory.total_bytes, memory.expert_bytes, memory.rank_expert_bytes),
        (8 << 30, 2 << 30, 1 << 30)
    );
    assert_eq!((fits.verdict, memory.problem), (Verdict::Fits, None));
    let short = case("7Gi", json!({})).judged();
    assert_eq!(short.verdict, Verdict::DoesNotFit);
    assert!(short.reasons[0].contains("one copy of each expert take 2.0 GiB"), "{:?}", short.reasons);
    let fewer = case("8Gi", json!({"minCopies": 2})).judged();
    assert_eq!(fewer.verdict, Verdict::Fits);
    assert!(fewer.notes[0].contains("fewer copies will be made"), "{:?}", fewer.notes);
}

#[test]
fn canaries_and_previews_are_played_through_with_their_shares_and_holds() {
    let case = |rollout: Value, nodes: usize| {
        let mut wanted = spec(2, "worker:2", resources("4", "8Gi"));
        wanted["rollout"] = rollout;
        let size = json!({"cpu": "8", "memory": "32Gi", "pods": "110"});
        let names = ["n0", "n1", "n2", "n3"];
        Case {
            present: Some(spec(2, "worker:1", resources("4", "8Gi"))),
            groups: 2,
            wanted,
            nodes: names[..nodes].iter().map(|name| node(name, size.clone())).collect(),
            on: vec!["n0", "n0", "n1", "n1"],
            card: None,
        }
    };
    let steps = json!([{"weightPercent": 10, "holdSeconds": 30}, {"weightPercent": 50, "holdSeconds": 90}]);
    let canary = case(json!({"strategy": "Canary", "canary": {"steps": steps}}), 3).judged();
    assert_eq!(canary.verdict, Verdict::Fits, "{}", plain(&canary));
    let course = canary.course.as_ref().unwrap();
    assert_eq!((course.updated, course.left.len(), course.hold_seconds), (2, 0, 120));
    assert_eq!((course.fewest_ready, course.most_groups, course.phase.as_str()), (2, 3, "Complete"));
    let shares: Vec<u32> = course.rounds.iter().filter_map(|round| round.weight_percent).collect();
    assert!(shares.contains(&10) && shares.contains(&50), "{shares:?}");
    insta::assert_snapshot!("canary", plain(&canary));
    // a preview takes twice the devices
    let preview = case(json!({"strategy": "BlueGreen"}), 4).judged();
    assert_eq!(preview.verdict, Verdict::Fits, "{}", plain(&preview));
    let course = preview.course.as_ref().unwrap();
    assert_eq!((course.most_groups, course.surge_groups, course.hold_seconds), (4, 2, 60));
    let tight = case(json!({"strategy": "BlueGreen"}), 3).judged();
    assert_eq!(tight.verdict, Verdict::DoesNotFit);
    assert!(tight.help[0].starts_with("spec.rollout.strategy: RollingUpdate"), "{:?}", tight.help);
    // nobody promotes it here
    let manual = case(json!({"strategy": "BlueGreen", "blueGreen": {"promotion": "Manual"}}), 4).judged();
    let course = manual.course.as_ref().unwrap();
    assert_eq!((course.phase.as_str(), course.left.len()), ("WaitingForPromotion", 2));
    assert!(manual.notes[0].contains("a person has to promote the preview"), "{:?}", manual.notes);
}

#[test]
fn a_spec_that_contradicts_itself_is_refused_with_its_field() {
    let mut wanted = spec(1, "worker:1", json!({}));
    wanted["rollout"] = json!({"maxSurge": 0, "maxUnavailable": 0});
    let case = Case { present: None, groups: 0, wanted, nodes: cpu_nodes(), on: vec![], card: None };
    let report = case.judged();
    assert_eq!((report.verdict, report.refusals[0].field.as_str()), (Verdict::Refused, "spec.rollout"));
}

fn amounts(list: &[(&str, u32)]) -> Amounts {
    list.iter().map(|(resource, amount)| ((*resource).to_owned(), i128::from(*amount))).collect()
}

fn candidate(index: usize, cpu: u32, device: u32, zone: Option<u8>) -> Candidate {
    let mut object = json!({"metadata": {"name": format!("pod-{index}")}, "spec": {"containers": [{
        "name": "w", "resources": {"requests": {"cpu": format!("{cpu}m"), "d": device.to_string()}}}]}});
    if let Some(zone) = zone {
        object["spec"]["nodeSelector"] = json!({"zone": zone.to_string()});
    }
    let pod: Pod = serde_json::from_value(object).unwrap();
    Candidate { asked: demand::of_pod(&pod).unwrap(), pod }
}

fn room(index: usize, cpu: u32, device: u32, pods: u32) -> Room {
    Room {
        node: format!("node-{index}"),
        labels: BTreeMap::from([("zone".to_owned(), (index % 2).to_string())]),
        taints: vec![],
        allocatable: amounts(&[("cpu", cpu), ("d", device), ("pods", pods)]),
        used: Amounts::new(),
    }
}

/// Whether any way to put pods on nodes keeps every rule.
fn possible(pods: &[Candidate], rooms: &[Room]) -> bool {
    let Some((first, rest)) = pods.split_first() else { return true };
    (0..rooms.len()).any(|index| {
        let mut rooms = rooms.to_vec();
        let takes = rooms[index].obstacles(&first.pod, &first.asked).is_empty();
        rooms[index].put(&first.asked);
        takes && possible(rest, &rooms)
    })
}

proptest! {
    #[test]
    fn what_is_said_to_fit_fits(
        pods in prop::collection::vec((1u32..5, 0u32..4, prop::option::of(0u8..2)), 0..6),
        nodes in prop::collection::vec((0u32..9, 0u32..7, 0u32..4), 0..4),
    ) {
        let pods: Vec<Candidate> =
            pods.into_iter().enumerate().map(|(i, (cpu, device, zone))| candidate(i, cpu, device, zone)).collect();
        let rooms: Vec<Room> = nodes.into_iter().enumerate().map(|(i, (cpu, d, pods))| room(i, cpu, d, pods)).collect();
        let mut after = rooms.clone();
        let places = pack::place(&pods, &mut after);
        // nothing is promised twice, and each pod is where it may be
        for (index, room) in after.iter().enumerate() {
            let mut used = Amounts::new();
            for (pod, _) in pods.iter().zip(&places).filter(|(_, place)| **place == Some(index)) {
                demand::add(&mut used, &pod.asked);
                let zone = pod.pod.spec.as_ref().unwrap().node_selector.as_ref().map(|selector| &selector["zone"]);
                prop_assert!(zone.is_none_or(|zone| *zone == room.labels["zone"]));
            }
            prop_assert_eq!(&used, &room.used);
            for (resource, amount) in &used {
                prop_assert!(*amount == 0 || *amount <= room.allocatable[resource]);
            }
        }
        if places.iter().all(Option::is_some) {
            prop_assert!(possible(&pods, &rooms));
        }
    }

    #[test]
    fn of_pods_that_are_alike_it_is_exact(
        count in 0usize..6, cpu in 1u32..4, device in 0u32..3, zone in prop::option::of(0u8..2),
        nodes in prop::collection::vec((0u32..9, 0u32..7, 0u32..4), 0..4),
    ) {
        let pods: Vec<Candidate> = (0..count).map(|i| candidate(i, cpu, device, zone)).collect();
        let rooms: Vec<Room> = nodes.into_iter().enumerate().map(|(i, (cpu, d, pods))| room(i, cpu, d, pods)).collect();
        let placed = pack::place(&pods, &mut rooms.clone()).iter().all(Option::is_some);
        prop_assert_eq!(placed, possible(&pods, &rooms));
    }

    /// A course that is said to fit ends with what is wanted, and never leaves the budget.
    #[test]
    fn courses_keep_the_budget(
        groups in 0usize..4, replicas in 0u32..5, surge in 0u32..3, unavailable in 0u32..3, nodes in 1usize..6,
    ) {
        prop_assume!(surge + unavailable > 0);
        let mut wanted = spec(replicas, "worker:2", resources("2", "1Gi"));
        wanted["rollout"] = json!({"maxSurge": surge, "maxUnavailable": unavailable});
        let size = json!({"cpu": "4", "memory": "32Gi", "pods": "10"});
        let names = ["n0", "n1", "n2", "n3", "n4", "n5"];
        let case = Case {
            present: Some(spec(u32::try_from(groups).unwrap(), "worker:1", resources("2", "1Gi"))),
            groups: groups.min(nodes), wanted,
            nodes: names[..nodes].iter().map(|name| node(name, size.clone())).collect(),
            on: names[..nodes].iter().flat_map(|name| [*name, *name]).collect(), card: None,
        };
        let report = case.judged();
        let course = report.course.clone().unwrap();
        let present = u32::try_from(groups.min(nodes)).unwrap();
        prop_assert!(course.most_groups <= (replicas + surge).max(present));
        prop_assert!(course.fewest_ready >= replicas.saturating_sub(unavailable).min(present));
        match report.verdict {
            Verdict::Fits => prop_assert_eq!((course.updated, course.left.len()), (replicas, 0)),
            _ => prop_assert!(course.updated < replicas || !course.left.is_empty()),
        }
    }
}
