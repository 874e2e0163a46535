//! `kubectl belay status`: the tree of a deployment, and the list of all.
use std::{collections::BTreeMap, time::Duration};

use belay_proto::admin::{Phase, RankStatus, WorkerStatus};
use jiff::Timestamp;
use kubectl_belay::{
    cluster::{Deployment, facts::Owned},
    status::{
        grow::{self, Seen},
        overview::{self, Overview},
        pace::Pace,
        text,
    },
    terminal::line::Line,
};
use serde_json::{Value, json};
use tokio::{
    io::{AsyncBufReadExt as _, BufReader},
    time::timeout,
};

use crate::support::{
    api_server::ApiServer,
    group::{self, Size, of},
    worker::PlayedWorker,
};

fn at(second: i64) -> Timestamp {
    "2026-11-27T10:00:00Z".parse::<Timestamp>().unwrap() + jiff::SignedDuration::from_secs(second)
}

fn deployment(status: Value) -> Deployment {
    let object = json!({
        "apiVersion": "serving.belay.dev/v1alpha1", "kind": "ModelDeployment",
        "metadata": {
            "name": "nano", "namespace": "models", "uid": "uid-nano", "generation": 7,
            "creationTimestamp": "2026-11-27T08:00:00Z",
        },
        "spec": {"replicas": 2, "model": {"name": "deepseek-v4-nano"}, "rollout": {"strategy": "Canary"}},
        "status": status,
    });
    Deployment::of(serde_json::from_value(object).unwrap())
}

fn pod(group: &str, worker: u32, spec: Value, status: Value) -> Value {
    let revision = group.split('-').nth(1).unwrap();
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": format!("{group}-{worker}"), "namespace": "models", "uid": format!("uid-{group}-{worker}"),
            "labels": {
                "serving.belay.dev/group": group, "serving.belay.dev/revision": revision,
                "serving.belay.dev/worker": worker.to_string(),
            },
        },
        "spec": spec, "status": status,
    })
}

fn running(ready: bool, restarts: i32) -> Value {
    let ready = if ready { "True" } else { "False" };
    json!({
        "phase": "Running", "conditions": [{"type": "Ready", "status": ready}],
        "containerStatuses": [{
            "name": "worker", "image": "", "imageID": "", "ready": true, "restartCount": restarts,
            "state": {"running": {"startedAt": "2026-11-27T10:00:00Z"}},
        }],
    })
}

fn on(node: &str) -> Value {
    json!({"nodeName": node, "containers": []})
}

/// A canary half way: one group drains, one serves, of the new one a worker loads and one has no node.
fn canary() -> Seen {
    let group = |name: &str, revision: &str, ready: i32, draining: bool| {
        json!({
            "name": name, "revision": revision, "workers": 2, "readyWorkers": ready, "draining": draining,
        })
    };
    let status = json!({
        "observedGeneration": 7, "replicas": 3, "readyReplicas": 1, "updatedReplicas": 1,
        "currentRevision": "bbbb2222", "updatedRevision": "cccc3333",
        "conditions": [
            {"type": "Available", "status": "True", "reason": "GroupsReady", "message": "1 group"},
            {"type": "Progressing", "status": "True", "reason": "GroupsStarting", "message": "starting: nano-cccc3333-0"},
            {"type": "Degraded", "status": "True", "reason": "PodUnschedulable", "message": "pod nano-cccc3333-0-1: no room"},
        ],
        "traffic": [
            {"revision": "cccc3333", "weightPercent": 0, "role": "Canary"},
            {"revision": "bbbb2222", "weightPercent": 100, "role": "Stable"},
        ],
        "rollout": {
            "revision": "cccc3333", "phase": "Starting", "step": 1, "steps": 2, "weightPercent": 0,
            "message": "0 of 1 groups are ready",
            "lastRollback": {"revision": "aaaa1111", "reason": "AnalysisFailed", "message": "5% errors", "time": "2026-11-26T09:00:00Z"},
        },
        "groups": [
            group("nano-bbbb2222-0", "bbbb2222", 2, false), group("nano-bbbb2222-1", "bbbb2222", 2, true),
            group("nano-cccc3333-0", "cccc3333", 0, false),
        ],
    });
    let unschedulable = json!({"phase": "Pending", "conditions": [{
        "type": "PodScheduled", "status": "False", "reason": "Unschedulable",
        "message": "0/3 nodes are available: 3 Insufficient huawei.com/Ascend910.",
    }]});
    let pods = [
        pod("nano-cccc3333-0", 1, json!({"containers": []}), unschedulable),
        pod("nano-cccc3333-0", 0, on("node-c"), running(false, 1)),
        pod("nano-bbbb2222-0", 0, on("node-a"), running(true, 0)),
        pod("nano-bbbb2222-0", 1, on("node-b"), running(true, 0)),
        pod("nano-bbbb2222-1", 0, on("node-a"), running(true, 0)),
        pod("nano-bbbb2222-1", 1, on("node-b"), running(true, 0)),
    ];
    let service = json!({"metadata": {
        "name": "nano-bbbb2222-1",
        "labels": {"serving.belay.dev/group": "nano-bbbb2222-1", "serving.belay.dev/revision": "bbbb2222"},
        "annotations": {"serving.belay.dev/draining-since": "2026-11-27T10:00:15Z"},
    }});
    let told = |phase: Phase, requests: u32| WorkerStatus {
        phase: phase.into(),
        requests_in_flight: requests,
        ranks: vec![RankStatus { expert_bytes: 3 << 29, ..RankStatus::default() }],
        ..WorkerStatus::default()
    };
    let loading = WorkerStatus {
        message: "loading layer 12 of 43".into(),
        load_bytes_done: 12 << 30,
        load_bytes_total: 96 << 30,
        ..told(Phase::Loading, 0)
    };
    let drains = WorkerStatus { draining: true, ..told(Phase::Ready, 3) };
    let unreached = Err("port-forward to pod nano-bbbb2222-1-1: pods \"x\" is forbidden".to_owned());
    let answers = [
        ("nano-cccc3333-0-0", Ok(loading)),
        ("nano-bbbb2222-0-0", Ok(told(Phase::Ready, 2))),
        ("nano-bbbb2222-0-1", Ok(told(Phase::Ready, 5))),
        ("nano-bbbb2222-1-0", Ok(drains)),
        ("nano-bbbb2222-1-1", unreached),
    ];
    let event = |kind: &str, reason: &str, at: &str, subject: &str, note: &str| {
        json!({
            "metadata": {"name": reason}, "type": kind, "reason": reason, "message": note, "lastTimestamp": at,
            "involvedObject": {"kind": "ModelDeployment", "name": "nano", "uid": "uid-nano"}, "related": {"name": subject},
            "count": 2,
        })
    };
    let events = [
        event(
            "Normal",
            "GroupCreated",
            "2026-11-27T09:59:50Z",
            "nano-cccc3333-0",
            "group nano-cccc3333-0 created",
        ),
        event("Warning", "RankLost", "2026-11-27T10:00:20Z", "nano-bbbb2222-0", "worker 1 is lost"),
        event("Normal", "GroupReady", "2026-11-27T06:00:00Z", "nano-bbbb2222-0", "long ago"),
    ];
    let read = |value: Value| serde_json::from_value(value).unwrap();
    Seen {
        deployment: deployment(status),
        owned: Owned {
            pods: pods.into_iter().map(read).collect(),
            services: vec![serde_json::from_value(service).unwrap()],
        },
        workers: answers.into_iter().map(|(pod, answer)| (format!("uid-{pod}"), answer)).collect(),
        events: events.into_iter().map(|event| serde_json::from_value(event).unwrap()).collect(),
        now: at(60),
    }
}

fn plain(lines: &[Line]) -> String {
    lines.iter().map(|line| line.plain() + "\n").collect()
}

#[test]
fn a_canary_as_people_see_it() {
    let tree = grow::tree(&canary(), &mut Pace::default());
    for width in [60, 110] {
        let lines = text::render(&tree, width);
        assert!(lines.iter().all(|line| line.width() <= width));
        insta::assert_snapshot!(format!("canary_{width}"), plain(&lines));
    }
}

#[test]
fn a_canary_as_programs_see_it() {
    let tree = serde_json::to_value(grow::tree(&canary(), &mut Pace::default())).unwrap();
    let group = &tree["revisions"][0]["groups"][0];
    assert_eq!(tree["revisions"][0]["age"], "updated");
    assert_eq!(tree["revisions"][0]["trafficPercent"], 0);
    assert_eq!(
        group["pods"][0]["loading"],
        json!({
            "bytesDone": 12u64 << 30, "bytesTotal": 96u64 << 30, "bytesPerSecond": (12u64 << 30) / 60, "etaSeconds": 421,
        })
    );
    assert_eq!(
        (&group["pods"][1]["phase"], &group["pods"][1]["toldBy"]),
        (&json!("PodUnschedulable"), &json!("pod"))
    );
    let drains = &tree["revisions"][1]["groups"][1];
    assert_eq!(
        (&drains["drainingSince"], &drains["requestsInFlight"]),
        (&json!("2026-11-27T10:00:15Z"), &json!(3))
    );
    assert_eq!(tree["events"].as_array().unwrap().len(), 2, "what is long ago is no news");
}

#[test]
fn an_overview_names_the_worst_first() {
    let now = at(0);
    let of = |conditions: Value| {
        Overview::of(&deployment(json!({"conditions": conditions, "readyReplicas": 2})), now)
    };
    let condition =
        |kind: &str, status: &str, reason: &str| json!({"type": kind, "status": status, "reason": reason});
    let settled = of(json!([
        condition("Available", "True", "GroupsReady"),
        condition("Progressing", "False", "Settled")
    ]));
    assert_eq!(
        (settled.state.as_str(), settled.trouble, settled.age_seconds),
        ("Settled", false, Some(7200))
    );
    let bad =
        of(json!([condition("Available", "False", "NoGroupReady"), condition("Degraded", "True", "NoRoom")]));
    assert_eq!((bad.state.as_str(), bad.trouble), ("Degraded=True NoRoom", true));
    let table = plain(&overview::render(&[settled, bad], true, 100));
    insta::assert_snapshot!("overview", table);
}

async fn play() -> (ApiServer, Vec<PlayedWorker>) {
    let mut group = group::group(Size::SMALL);
    let api = ApiServer::start().await;
    api.knows(&group, json!({"replicas": 1}));
    let mut workers = vec![];
    for worker in 0..Size::SMALL.workers as usize {
        workers.push(PlayedWorker::start(of(&mut group, worker).clone()).await);
    }
    let addresses: BTreeMap<_, _> =
        (0..).zip(&workers).map(|(index, worker)| (group::pod(index).name, worker.address)).collect();
    api.objects.lock().unwrap().workers = addresses;
    (api, workers)
}

#[tokio::test]
async fn the_tree_through_port_forwards() {
    let (api, workers) = play().await;
    workers[0].change(|script| script.answer.status.requests_in_flight = 4);
    let ran = api.run(&["status", "nano"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (0, ""));
    for words in ["revision ec7356da", "2/2 workers ready  4 requests", "READY  on node-a  4 requests"] {
        assert!(ran.stdout.contains(words), "{words}: {}", ran.stdout);
    }
    // a worker that can't be reached is told by its pod
    api.objects.lock().unwrap().workers.remove(&group::pod(1).name);
    let ran = api.run(&["status", "nano", "-o", "json"]).await;
    let tree: Value = serde_json::from_str(&ran.stdout).unwrap();
    let pods = &tree["revisions"][0]["groups"][0]["pods"];
    assert_eq!((&pods[0]["toldBy"], &pods[1]["toldBy"]), (&json!("worker"), &json!("pod")));
    assert_eq!(pods[1]["phase"], "Ready");
    assert!(pods[1]["message"].as_str().unwrap().contains("not found"), "{pods}");
}

#[tokio::test]
async fn all_deployments_in_a_line_each() {
    let (api, _workers) = play().await;
    for (arguments, words) in [(&["status"][..], "nano  "), (&["status", "-A"], "models     nano  ")] {
        let ran = api.run(arguments).await;
        assert_eq!((ran.code, ran.stdout.lines().count()), (0, 2), "{}", ran.stderr);
        assert!(ran.stdout.lines().nth(1).unwrap().starts_with(words), "{}", ran.stdout);
    }
    api.objects.lock().unwrap().deployment = Value::Null;
    let ran = api.run(&["status"]).await;
    assert_eq!((ran.code, ran.stderr.as_str()), (1, "error: namespace models has no modeldeployments\n"));
    let gone = api.run(&["status", "nano"]).await;
    assert!(gone.stderr.contains("modeldeployments.serving.belay.dev \"nano\" not found"), "{}", gone.stderr);
    assert_eq!(api.run(&["status", "nano", "-A"]).await.code, 2);
}

#[tokio::test]
async fn watching_without_a_terminal_tells_what_has_changed() {
    let (api, workers) = play().await;
    let mut watch = api.command(&["status", "nano", "--watch", "-o", "json"]);
    let mut child = watch.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut look = async || {
        let line = timeout(Duration::from_secs(20), lines.next_line()).await.expect("nothing is told");
        serde_json::from_str::<Value>(&line.unwrap().unwrap()).unwrap()
    };
    let requests = |tree: &Value| tree["revisions"][0]["groups"][0]["requestsInFlight"].clone();
    assert_eq!(requests(&look().await), 0);
    workers[1].change(|script| script.answer.status.requests_in_flight = 9);
    // the next line is the change, however many looks there were in between
    assert_eq!(requests(&look().await), 9);
}
