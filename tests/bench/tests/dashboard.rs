//! The chart's dashboard names only metrics that some program exports. Here, because no other crate has all three programs.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use belay_crds::{GroupExpertsStatus, GroupStatus, ModelDeploymentStatus, OperationStatus};
use belay_engine::{FinishReason, Observer as _, StepReport};
use belay_epoch::{Kind, Operation, Phase};
use belay_fabric::{CircleState, Coverage, Health, PeerState, Stats};
use belay_gateway::keys::Reason;
use belay_gateway::observe::{Flights, Metrics, Record, RetryKind};
use belay_gateway::request_id::RequestId;
use belay_gateway::routing::{ConnectOptions, Fleet, PolicyName};
use belay_operator::reconcile::plan::Experts;
use belay_proto::admin::{Placement, RankStatus};
use belay_proto::inference::GenerateResponse;
use belay_worker::metrics::{self, Reading, RequestMetrics, Source};
use belay_worker::state::State;
use serde_json::Value;

/// What npu-exporter exports, of the metrics that its documentation lists. It is not here to be asked.
const NPU_EXPORTER: [&str; 13] = [
    "npu_chip_info_bandwidth_rx",
    "npu_chip_info_bandwidth_tx",
    "npu_chip_info_cube_utilization",
    "npu_chip_info_error_code",
    "npu_chip_info_hbm_ecc_double_bit_error_cnt",
    "npu_chip_info_hbm_total_memory",
    "npu_chip_info_hbm_used_memory",
    "npu_chip_info_health_status",
    "npu_chip_info_link_status",
    "npu_chip_info_network_status",
    "npu_chip_info_power",
    "npu_chip_info_temperature",
    "npu_chip_info_utilization",
];

fn dashboard() -> Value {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../../charts/belay/files/dashboards/belay.json");
    serde_json::from_str(&std::fs::read_to_string(path).unwrap()).unwrap()
}

/// A worker of a group on NPUs that has everything.
#[derive(Debug)]
struct Everything;

impl Source for Everything {
    fn read(&self) -> Reading {
        let rank = RankStatus { rank: 0, experts: 1, expert_bytes: 1 };
        let peer = PeerState { worker: 1, uid: "b".into(), health: Health::Live, message: String::new() };
        let mut engine = belay_engine::Stats::default();
        (engine.drafted, engine.accepted) = (vec![1], vec![1]);
        Reading {
            state: State { ranks: vec![rank], ..State::default() },
            in_flight: 0,
            loaded: (0, 0),
            fused: vec![("MoeGatingTopK", true)],
            engine: Some(engine),
            fabric: Some(Stats::default().snapshot()),
            peers: vec![peer],
            circle: Some(CircleState { workers: vec![0], rounds: 0 }),
            coverage: Some(Coverage::default()),
        }
    }
}

/// What a worker writes that has served a request and refused one. (Families without a series are not written.)
fn worker() -> String {
    let requests = Arc::new(RequestMetrics::default());
    requests.step(&StepReport::default());
    requests.refused(tonic::Code::Unavailable);
    requests.clone().start().finished(&FinishReason::EndOfSequence);
    let mut text = String::new();
    let registry = metrics::registry(&requests, Arc::new(Everything));
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    text
}

/// What a gateway writes that has answered, tried again, and limited a key.
fn gateway() -> String {
    let fleet = Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default());
    let metrics = Metrics::new(fleet);
    metrics.retry("nano", RetryKind::Resume);
    metrics.limited("key", Reason::Concurrent);
    let mut record = Record::begin(&metrics, &Flights::default(), RequestId("a".into()), "/v1/completions");
    record.piece(&GenerateResponse { ids: vec![1], ..GenerateResponse::default() });
    drop(record);
    metrics.text().unwrap()
}

/// What an operator writes that has a deployment, has completed a change of placement, and has met every trouble.
fn operator() -> String {
    let metrics = belay_operator::metrics::Metrics::default();
    metrics.observe_reconcile(Duration::from_millis(1), Some("Api"));
    metrics.observe_request("get", "pods");
    metrics.observe_violation("OneCopy");
    let experts =
        GroupExpertsStatus { total: 48, covered: 48, imbalance_percent: Some(100), ..Default::default() };
    let group = GroupStatus {
        name: "nano-0a1b2c3d-0".into(),
        placement_epoch: Some(1),
        experts: Some(experts),
        operation: Some(OperationStatus::default()),
        ..GroupStatus::default()
    };
    let status = ModelDeploymentStatus { groups: vec![group], ..ModelDeploymentStatus::default() };
    metrics.observe_status("models", "nano", 1, &status);
    let before = Operation {
        epoch: 1,
        kind: Kind::Rebalance,
        phase: Phase::Retire,
        target: None,
        reason: String::new(),
        started: "2026-11-27T10:00:00Z".into(),
    };
    let mut after = Experts::default();
    after.intent.in_force = Some(Placement { epoch: 1, ..Placement::default() });
    metrics.observe_operation(Some(&before), &after, "2026-11-27T10:01:00Z".parse().unwrap());
    metrics.text().unwrap()
}

/// Labels of a metric's series; `None` where there is no series to look at.
type Exported = BTreeMap<String, Option<BTreeSet<String>>>;

/// Names of series by what the programs themselves write.
fn exported() -> Exported {
    let mut names = Exported::new();
    for text in [worker(), gateway(), operator()] {
        for (name, kind) in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' ')) {
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "gauge" => &[""],
                other => panic!("{name}: a {other}"),
            };
            names.extend(endings.iter().map(|ending| (format!("{name}{ending}"), None)));
        }
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            let (series, _) = line.rsplit_once(' ').unwrap();
            let (name, labels) = series.split_once('{').unwrap_or((series, ""));
            let found = names.get_mut(name).unwrap_or_else(|| panic!("{line}: of no kind"));
            let labels = labels.split(',').filter_map(|label| Some(label.split_once("=\"")?.0.to_owned()));
            found.get_or_insert_default().extend(labels);
        }
    }
    names
}

/// Every query, by the panel or variable that has it.
fn queries(dashboard: &Value) -> BTreeMap<String, Vec<String>> {
    let mut queries: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().into_iter().flatten() {
            let title = format!("panel {}", panel["title"].as_str().unwrap());
            queries.entry(title).or_default().push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for variable in dashboard["templating"]["list"].as_array().unwrap() {
        if variable["type"] == "query" {
            let name = format!("variable {}", variable["name"].as_str().unwrap());
            queries.entry(name).or_default().push(variable["query"]["query"].as_str().unwrap().to_owned());
        }
    }
    queries
}

/// Words of a query that can only be names of metrics: those with one of the programs' prefixes.
fn metrics_of(query: &str) -> Vec<&str> {
    let words = query.split(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_' && letter != ':');
    let prefixes = ["belay_", "npu_", "container_npu_", "machine_npu_"];
    words.filter(|word| prefixes.iter().any(|prefix| word.starts_with(prefix))).collect()
}

#[test]
fn panels_name_metrics_that_exist() {
    let (exported, mut named) = (exported(), BTreeSet::new());
    for (place, queries) in queries(&dashboard()) {
        for query in queries {
            let metrics = metrics_of(&query);
            assert!(!metrics.is_empty(), "{place}: {query} names no metric");
            for metric in metrics {
                let known = exported.contains_key(metric) || NPU_EXPORTER.contains(&metric);
                assert!(known, "{place}: nobody exports {metric}");
                named.insert(metric.to_owned());
            }
        }
    }
    // what the page is for
    for needed in [
        "belay_gateway_time_to_first_token_seconds_bucket",
        "belay_gateway_inter_token_seconds_bucket",
        "belay_num_requests_waiting",
        "belay_gateway_workers_ready",
        "belay_operator_experts_uncovered",
        "belay_operator_groups",
        "belay_fabric_exchange_seconds_bucket",
        "npu_chip_info_health_status",
    ] {
        assert!(named.contains(needed), "{needed} is on no panel");
    }
}

/// Labels that a scrape adds, or that npu-exporter has.
const OTHER_LABELS: [&str; 4] = ["namespace", "pod", "pod_name", "id"];

/// Labels that a query groups or joins by, and those that it selects by, each with the metric.
fn labels_of(query: &str) -> (Vec<&str>, Vec<(&str, &str)>) {
    let lists = ["by (", "on ("].iter().flat_map(|word| query.split(word).skip(1));
    let grouped = lists.flat_map(|rest| rest.split(')').next().unwrap().split(", ")).collect();
    let mut selected = vec![];
    for (before, rest) in query.match_indices('{').map(|(at, _)| (&query[..at], &query[at + 1..])) {
        let start = before.rfind(|letter: char| !letter.is_ascii_alphanumeric() && letter != '_');
        let metric = &before[start.map_or(0, |at| at + 1)..];
        let labels = rest.split('}').next().unwrap().split(", ");
        selected.extend(labels.map(|label| (metric, label.split(['=', '!']).next().unwrap())));
    }
    (grouped, selected)
}

#[test]
fn panels_tell_series_apart_by_labels_that_they_have() {
    let exported = exported();
    let mut checked = 0;
    for (place, queries) in queries(&dashboard()) {
        for query in queries {
            let (grouped, selected) = labels_of(&query);
            let labels = |metric: &str| exported.get(metric).cloned().flatten();
            let all: Vec<_> = metrics_of(&query).into_iter().map(labels).collect();
            for label in grouped {
                // without a series, nothing is known of the labels
                let known =
                    all.iter().any(|labels| labels.as_ref().is_none_or(|labels| labels.contains(label)));
                assert!(known || OTHER_LABELS.contains(&label), "{place}: no series of {query} has {label}");
                checked += 1;
            }
            for (metric, label) in selected {
                let known = labels(metric).is_none_or(|labels| labels.contains(label));
                assert!(known || OTHER_LABELS.contains(&label), "{place}: {metric} has no label {label}");
                checked += 1;
            }
        }
    }
    assert!(checked > 100, "{checked}");
}

#[test]
fn a_metric_that_nobody_exports_is_found() {
    let exported = exported();
    let metrics = metrics_of("sum(rate(belay_tokens_guessed_total{pod=~\"a\"}[5m])) / belay_phase");
    let unknown: Vec<&str> = metrics.into_iter().filter(|name| !exported.contains_key(*name)).collect();
    assert_eq!(unknown, ["belay_tokens_guessed_total"]);
    // a counter has its ending, and a histogram is asked for its buckets
    for name in ["belay_steps", "belay_step_seconds"] {
        assert!(
            !exported.contains_key(name) && exported.keys().any(|other| other.starts_with(name)),
            "{name}"
        );
    }
}

#[test]
fn panels_are_told_apart_and_do_not_overlap() {
    let dashboard = dashboard();
    let (mut ids, mut cells) = (BTreeSet::new(), BTreeSet::new());
    for panel in dashboard["panels"].as_array().unwrap() {
        let number = |key: &str| panel["gridPos"][key].as_u64().unwrap();
        assert!(ids.insert(panel["id"].as_u64().unwrap()), "{panel}");
        assert!(number("x") + number("w") <= 24, "{panel}");
        for x in number("x")..number("x") + number("w") {
            for y in number("y")..number("y") + number("h") {
                assert!(cells.insert((x, y)), "{} is over another panel", panel["title"]);
            }
        }
    }
    assert!(ids.len() > 40);
}
