//! What the operator reads of a gateway.
use std::sync::atomic::Ordering;

use belay_proto::gateway::{Histogram, Model, Revision};
use serde_json::json;

use crate::support::{
    Fault, LONG, MODEL, Worker, eventually, gateway, generate, http as client, measured, metric, request,
};

fn count(histogram: &Option<Histogram>) -> u64 {
    histogram.as_ref().unwrap().counts.iter().sum()
}

fn outcomes(revision: &Revision) -> [u64; 4] {
    [revision.served, revision.failed, revision.rejected, revision.passed_on]
}

async fn only(gateway: &belay_gateway::run::Gateway) -> (Model, Revision) {
    let mut model = measured(gateway).await.models.remove(0);
    let revision = model.revisions.pop().unwrap_or_default();
    assert!(model.revisions.is_empty(), "workers named by flag have no revision: {model:?}");
    (model, revision)
}

/// Reads until it is as wanted.
async fn becomes(gateway: &belay_gateway::run::Gateway, what: &str, wanted: impl Fn(&Model) -> bool) {
    let waiting = async {
        while !wanted(&measured(gateway).await.models[0]) {
            tokio::time::sleep(std::time::Duration::from_millis(2)).await;
        }
    };
    tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("never measured: {what}"));
}

#[tokio::test]
async fn answers_are_counted_with_their_times_and_tokens() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let before = measured(&gateway).await;
    assert_eq!(before.models.len(), 1, "a model that nobody has asked for is there");
    assert_eq!((before.models[0].name.as_str(), before.models[0].arrived), (MODEL, 0));
    generate(&gateway, request("p", 5)).await.unwrap();
    let body = json!({"model": MODEL, "prompt": "p", "max_tokens": 7, "n": 2});
    assert_eq!(client::post(gateway.api, "/v1/completions", &body).await.status, 200);
    let (model, revision) = only(&gateway).await;
    assert_eq!((model.arrived, model.refused, model.held, model.outstanding), (2, 0, 0, 0));
    assert_eq!((model.held_tokens, model.outstanding_tokens), (0, 0));
    assert_eq!(count(&model.first_token), 2, "one a request");
    assert_eq!(outcomes(&revision), [3, 0, 0, 0]);
    assert_eq!(count(&revision.first_token), 3, "one an attempt");
    assert_eq!(count(&revision.inter_token), 4 + 6 + 6);
    assert_eq!((revision.prompt_tokens, revision.completion_tokens), (9, 19));
    assert_eq!(measured(&gateway).await.instance, before.instance);
    let attempts = "belay_gateway_attempts_total{model=\"nano\",revision=\"\",outcome=\"served\"}";
    assert_eq!(metric(&gateway, attempts).await, 3.0);
    let gaps = "belay_gateway_inter_token_seconds_count{model=\"nano\",revision=\"\"}";
    assert_eq!(metric(&gateway, gaps).await, 16.0);
}

#[tokio::test]
async fn attempts_end_in_one_of_four_ways() {
    let worker = Worker::with_faults(&[Fault::StepLost(3), Fault::Cut(2)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    generate(&gateway, request("p", 6)).await.unwrap();
    let (model, revision) = only(&gateway).await;
    assert_eq!((model.arrived, outcomes(&revision)), (1, [1, 2, 0, 0]));
    assert_eq!(revision.completion_tokens, 6, "each came once");
    generate(&gateway, request("too long", 6)).await.unwrap_err();
    assert_eq!(outcomes(&only(&gateway).await.1), [1, 2, 1, 0]);
    worker.script.faults.lock().unwrap().push_back(Fault::Breaks(0));
    generate(&gateway, request("p", 6)).await.unwrap_err();
    assert_eq!(outcomes(&only(&gateway).await.1), [1, 3, 1, 0]);
    worker.script.overloaded.store(true, Ordering::SeqCst);
    generate(&gateway, request("p", 6)).await.unwrap_err();
    let (model, revision) = only(&gateway).await;
    assert_eq!((model.refused, outcomes(&revision)), (1, [1, 3, 1, 1]));
}

#[tokio::test]
async fn what_waits_and_what_runs_is_told_with_an_estimate_of_its_tokens() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &["--hold-seconds=3600"]).await;
    worker.script.stalled.store(true, Ordering::SeqCst);
    let body = json!({"model": MODEL, "prompt": "12345678", "max_tokens": 10, "stream": true}).to_string();
    let running = client::open(gateway.api, http::Method::POST, "/v1/completions", body.clone()).await;
    becomes(&gateway, "one runs", |model| (model.outstanding, model.outstanding_tokens) == (1, 12)).await;
    worker.script.draining.store(true, Ordering::SeqCst);
    let api = gateway.api;
    let waiting =
        tokio::spawn(
            async move { client::open(api, http::Method::POST, "/v1/completions", body.clone()).await },
        );
    becomes(&gateway, "one waits", |model| (model.held, model.held_tokens) == (1, 12)).await;
    waiting.abort();
    drop(running);
    becomes(&gateway, "nothing is left", |model| {
        [model.held, model.held_tokens, model.outstanding, model.outstanding_tokens] == [0; 4]
    })
    .await;
    eventually("the worker is left alone", || worker.active() == 0).await;
    let (model, revision) = only(&gateway).await;
    assert_eq!(model.arrived, 2);
    assert_eq!(outcomes(&revision)[..3], [0, 0, 0], "a client that goes away is nobody's fault");
    assert!(model.idle_milliseconds < 60_000);
}

#[tokio::test]
async fn what_is_asked_about_a_model_is_no_answer_of_it() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    client::get(gateway.api, "/v1/models").await;
    assert_eq!(only(&gateway).await.0.arrived, 0, "whoever lists models wants none");
    let body = json!({"model": MODEL, "prompt": "p"});
    assert_eq!(client::post(gateway.api, "/tokenize", &body).await.status, 200);
    let (model, revision) = only(&gateway).await;
    assert_eq!((model.arrived, outcomes(&revision)), (1, [0; 4]));
}

#[tokio::test]
async fn it_is_not_served_where_clients_are() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let channel = crate::support::channel(&gateway).await;
    let mut measurements = belay_proto::gateway::measurements_client::MeasurementsClient::new(channel);
    let status = measurements.read(belay_proto::gateway::ReadRequest {}).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unimplemented);
}
