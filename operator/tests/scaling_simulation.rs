//! What `make bench-scaling` shows, in small: the autoscaler's own code in simulated time.
#![allow(clippy::unwrap_used, clippy::expect_used, missing_docs, dead_code, reason = "test code")]

#[path = "../benches/simulation/mod.rs"]
mod simulation;

use serde_json::{Value, json};
use simulation::{
    others::{Hpa, HpaMetric},
    ours::Belay,
    plant::HOLD,
    result::Outcome,
    run,
    trace::{Trace, herd},
};

const LOAD_SECONDS: f64 = 90.0;

fn spec(min: u32) -> Value {
    json!({ "minReplicas": min, "maxReplicas": 12, "targetOutstandingTokensPerReplica": 4096,
        "targetTimeToFirstTokenMilliseconds": 1500 })
}

fn ours(trace: &Trace, min: u32) -> Outcome {
    run(trace, &mut Belay::new(spec(min), min), LOAD_SECONDS)
}

#[test]
fn steady_load_is_met_once() {
    let trace = Trace::poisson("steady", 11, 3000, |_| 14.0);
    let outcome = ours(&trace, 1);
    assert_eq!((outcome.requests, outcome.refused), (trace.requests.len(), 0));
    assert_eq!(outcome.flaps(), 0, "{:?}", outcome.changes);
    let turns = outcome.changes.windows(2).filter(|pair| (pair[0].1 > 0) != (pair[1].1 > 0)).count();
    assert!(turns <= 1, "up, then down to what is needed: {:?}", outcome.changes);
    assert_eq!(outcome, ours(&trace, 1), "the same each time");
}

#[test]
fn herd_from_zero_is_answered_within_the_bounds_of_the_queue() {
    let trace = herd();
    let outcome = ours(&trace, 0);
    assert_eq!(outcome.requests, trace.requests.len());
    assert_eq!(outcome.refused, 0, "the queue is long enough for the time that a group takes to load");
    let first_tokens = 10.0; // from the queue to the first token
    assert!(outcome.worst_seconds <= HOLD.0 + first_tokens, "{}", outcome.worst_seconds);
    assert_eq!(outcome.changes[0].1, 1, "woken: {:?}", outcome.changes);
    assert!(outcome.changes.iter().filter(|(at, _)| *at < 600.0).count() == 0, "not before anybody asked");
    // a queue that is too short for it: late, or refused, but never left without an answer
    let slow = run(&trace, &mut Belay::new(spec(0), 0), 3.0 * LOAD_SECONDS);
    assert_eq!(slow.requests, trace.requests.len());
    assert!(slow.refused > 0 && slow.worst_seconds <= HOLD.0 + first_tokens, "{slow:?}");
}

#[test]
fn bursts_find_the_groups_of_the_burst_before() {
    let trace = Trace::poisson("bursts", 6, 3600, |t| if t % 360.0 < 120.0 { 20.0 } else { 1.0 });
    let outcome = ours(&trace, 1);
    assert_eq!(outcome.flaps(), 0, "{:?}", outcome.changes);
    for metric in [HpaMetric::Requests(12.0), HpaMetric::Use(0.7)] {
        let other = run(&trace, &mut Hpa::new(metric, 12), LOAD_SECONDS);
        assert!(outcome.late < other.late, "{} and {} ({})", outcome.late, other.late, other.autoscaler);
        assert!(outcome.refused < other.refused, "{} and {}", outcome.refused, other.refused);
    }
}

#[test]
fn trace_is_read_back_from_its_file() {
    let trace = Trace::hawkes("recorded", 3, 60, 2.0, 0.5, 5.0);
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("recorded.csv");
    std::fs::write(&path, trace.csv()).unwrap();
    let read = Trace::read(&path);
    assert_eq!((read.name.as_str(), read.requests.len()), ("recorded", trace.requests.len()));
    for (read, made) in read.requests.iter().zip(&trace.requests) {
        assert!((read.arrival - made.arrival).abs() < 0.001);
        assert_eq!((read.prompt_tokens, read.output_tokens), (made.prompt_tokens, made.output_tokens));
    }
}
