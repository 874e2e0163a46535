//! The chart's dashboard names only metrics that some program exports.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "test code")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use belay_fabric::{CircleState, Coverage, Stats};
use belay_gateway::routing::{ConnectOptions, Fleet, PolicyName};
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
        Reading {
            state: State::default(),
            in_flight: 0,
            loaded: (0, 0),
            fused: vec![("MoeGatingTopK", true)],
            engine: Some(belay_engine::Stats::default()),
            fabric: Some(Stats::default().snapshot()),
            peers: vec![],
            circle: Some(CircleState { workers: vec![0], rounds: 0 }),
            coverage: Some(Coverage::default()),
        }
    }
}

/// Names of series by what the programs themselves write, whether there are any series yet or not.
fn exported() -> BTreeSet<String> {
    let mut worker = String::new();
    let registry = metrics::registry(&RequestMetrics::default(), Arc::new(Everything));
    prometheus_client::encoding::text::encode(&mut worker, &registry).unwrap();
    let fleet = Fleet::new(PolicyName::LeastLoad.build(), ConnectOptions::default());
    let gateway = belay_gateway::observe::Metrics::new(fleet).text().unwrap();
    let operator = belay_operator::metrics::Metrics::default().text().unwrap();
    let mut names = BTreeSet::new();
    for text in [&worker, &gateway, &operator] {
        let kinds = text.lines().filter_map(|line| line.strip_prefix("# TYPE ")?.split_once(' '));
        let before = names.len();
        for (name, kind) in kinds {
            let endings: &[&str] = match kind {
                "counter" => &["_total"],
                "histogram" => &["_bucket", "_sum", "_count"],
                "gauge" => &[""],
                other => panic!("{name}: a {other}"),
            };
            names.extend(endings.iter().map(|ending| format!("{name}{ending}")));
        }
        assert!(names.len() > before + 10, "{text}");
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
                let known = exported.contains(metric) || NPU_EXPORTER.contains(&metric);
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

#[test]
fn a_metric_that_nobody_exports_is_found() {
    let exported = exported();
    let metrics = metrics_of("sum(rate(belay_tokens_guessed_total{pod=~\"a\"}[5m])) / belay_phase");
    let unknown: Vec<&str> = metrics.into_iter().filter(|name| !exported.contains(*name)).collect();
    assert_eq!(unknown, ["belay_tokens_guessed_total"]);
    // a counter has its ending, and a histogram is asked for its buckets
    for name in ["belay_steps", "belay_step_seconds"] {
        assert!(!exported.contains(name) && exported.iter().any(|other| other.starts_with(name)), "{name}");
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
