//! Nothing is lost and nothing comes twice, whatever happens to the workers.
use std::{sync::atomic::Ordering, time::Duration};

use axum::body::Body;
use belay_proto::inference::{FinishReason, Usage};
use futures::StreamExt;
use http::Method;
use http_body_util::BodyExt;
use proptest::prelude::*;
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{
    Fault, MODEL, Worker, answer, channel, eventually, gateway, generate, http as client, ids, metric,
    metric_becomes, request, text,
};

const LENGTH: u32 = 12;

fn expected_ids(prompt: &str, seed: u64, length: u32) -> Vec<u32> {
    answer(prompt, seed, length as usize).iter().map(|byte| u32::from(*byte) + 1000).collect()
}

fn expected_text(prompt: &str, seed: u64, length: u32) -> String {
    String::from_utf8_lossy(&answer(prompt, seed, length as usize)).into_owned()
}

fn chat_body(max_tokens: u32, stream: bool) -> Value {
    json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "seed": 7, "max_tokens": max_tokens,
           "stream": stream})
}

/// Three workers with these faults and a sound one; the stream must be exactly the undisturbed one.
async fn survives(faults: &[Vec<Fault>], batch: usize, length: u32) {
    let mut workers = Vec::new();
    for faults in faults {
        workers.push(Worker::with_faults(faults).await);
    }
    workers.push(Worker::start().await);
    for worker in &workers {
        worker.script.batch.store(batch, Ordering::SeqCst);
    }
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let pieces = generate(&gateway, request("p", length)).await.unwrap();
    assert_eq!(ids(&pieces), expected_ids("p", 7, length), "{faults:?}");
    assert_eq!(text(&pieces), expected_text("p", 7, length), "{faults:?}");
    let finishes = pieces.iter().filter(|piece| piece.finish_reason != 0).count();
    let last = pieces.last().unwrap();
    assert_eq!((finishes, last.finish_reason()), (1, FinishReason::Length));
    assert_eq!(last.usage, Some(Usage { prompt_tokens: 3, completion_tokens: length, ..Usage::default() }));
    let first_usage = Some(Usage { prompt_tokens: 3, ..Usage::default() });
    let counted: Vec<usize> = (0..pieces.len()).filter(|&i| pieces[i].usage.is_some()).collect();
    assert_eq!(counted, [0, pieces.len() - 1], "usage comes first and last, however many workers count");
    assert_eq!(pieces[0].usage, first_usage);
    gateway.shut_down().await;
}

#[tokio::test]
async fn a_stream_is_continued_from_every_position_and_every_kind_of_loss() {
    for position in 0..=LENGTH {
        for fault in [Fault::StepLost(position), Fault::Ends(position), Fault::Cut(position)] {
            survives(&[vec![fault]], 1, LENGTH).await;
        }
    }
}

fn fault() -> impl Strategy<Value = Fault> {
    let position = 0u32..8;
    prop_oneof![
        position.clone().prop_map(Fault::StepLost),
        position.clone().prop_map(Fault::Ends),
        position.prop_map(Fault::Cut),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_stream_survives_any_sequence_of_losses(
        faults in prop::collection::vec(prop::collection::vec(fault(), 0..2), 0..3),
        batch in 1usize..5,
        length in 1u32..24,
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(survives(&faults, batch, length));
    }
}

#[tokio::test]
async fn a_chat_over_http_is_continued_as_well() {
    let dies = Worker::with_faults(&[Fault::Cut(5)]).await;
    let other = Worker::start().await;
    other.script.draining.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&dies, &other], &[]).await;
    let api = gateway.api;
    let reading =
        tokio::spawn(
            async move { client::post(api, "/v1/chat/completions", &chat_body(LENGTH, true)).await },
        );
    eventually("the first worker dies", || dies.script.seen().len() == 1 && dies.active() == 0).await;
    other.script.draining.store(false, Ordering::SeqCst);
    drop(dies);
    let answer = reading.await.unwrap();
    let text: String =
        answer.chunks().iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected_text("user: hi", 7, LENGTH));
    // what the worker sent last may not have arrived
    let resumed = &other.script.seen()[0].resume;
    assert!(resumed.len() <= 5 && expected_ids("user: hi", 7, LENGTH).starts_with(resumed), "{resumed:?}");
}

#[tokio::test]
async fn a_missing_seed_is_drawn_once_for_all_workers_of_a_request() {
    let first = Worker::with_faults(&[Fault::StepLost(3)]).await;
    let second = Worker::with_faults(&[Fault::StepLost(3)]).await;
    let gateway = gateway(&[&first, &second], &[]).await;
    let mut unseeded = request("p", LENGTH);
    unseeded.sampling.as_mut().unwrap().seed = None;
    let pieces = generate(&gateway, unseeded).await.unwrap();
    let seeds: Vec<u64> = [&first, &second]
        .iter()
        .flat_map(|worker| worker.script.seen())
        .filter_map(|seen| seen.seed)
        .collect();
    assert_eq!(seeds.len(), 3);
    assert!(seeds.iter().all(|seed| *seed == seeds[0]), "{seeds:?}");
    assert_eq!(ids(&pieces), expected_ids("p", seeds[0], LENGTH));
    assert_eq!(metric(&gateway, "belay_gateway_retries_total{model=\"nano\",kind=\"resume\"}").await, 2.0);
}

#[tokio::test]
async fn tokens_that_the_client_brings_count_as_streamed() {
    let worker = Worker::with_faults(&[Fault::StepLost(2)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    let all = expected_ids("p", 7, LENGTH);
    let mut resumed = request("p", LENGTH);
    resumed.resume_ids = all[..4].to_vec();
    let pieces = generate(&gateway, resumed).await.unwrap();
    assert_eq!(ids(&pieces), all[4..]);
    assert_eq!(worker.script.seen()[1].resume, all[..6]);
}

#[tokio::test]
async fn a_request_is_held_until_a_worker_is_ready() {
    let worker = Worker::start().await;
    worker.script.draining.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let api = gateway.api;
    let asking =
        tokio::spawn(async move { client::post(api, "/v1/chat/completions", &chat_body(4, false)).await });
    metric_becomes(&gateway, "belay_gateway_requests_held", |value| value >= 1.0).await;
    assert!(!asking.is_finished());
    worker.script.draining.store(false, Ordering::SeqCst);
    let answer = asking.await.unwrap();
    assert_eq!(answer.status, 200);
    assert_eq!(metric(&gateway, "belay_gateway_requests_held").await, 0.0);
}

#[tokio::test]
async fn a_worker_that_comes_back_at_its_address_is_found_again() {
    let worker = Worker::start().await;
    let address = worker.address;
    let gateway = gateway(&[&worker], &[]).await;
    generate(&gateway, request("p", 2)).await.unwrap();
    drop(worker);
    let api = gateway.api;
    let asking =
        tokio::spawn(async move { client::post(api, "/v1/chat/completions", &chat_body(4, false)).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let _again = Worker::at(address).await;
    assert_eq!(asking.await.unwrap().status, 200);
}

#[tokio::test]
async fn holding_is_bounded_in_count_and_time() {
    let worker = Worker::start().await;
    worker.script.draining.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &["--hold-requests=1", "--hold-seconds=1"]).await;
    let api = gateway.api;
    let first =
        tokio::spawn(async move { client::post(api, "/v1/chat/completions", &chat_body(4, true)).await });
    metric_becomes(&gateway, "belay_gateway_requests_held", |value| value >= 1.0).await;
    // the seat is given up for the moment of an attempt: the second request may get in between, but not both
    let second = client::post(api, "/v1/chat/completions", &chat_body(4, true)).await;
    let first = first.await.unwrap();
    let mut answers = [(first.status.as_u16(), first), (second.status.as_u16(), second)];
    answers.sort_by_key(|(status, _)| *status);
    assert_eq!(answers.each_ref().map(|(status, _)| *status), [429, 503]);
    for (_, answer) in answers {
        assert!(answer.headers.contains_key("retry-after"), "{answer:?}");
        assert!(answer.json()["error"]["message"].as_str().unwrap().contains(MODEL));
    }
}

#[tokio::test]
async fn a_stream_that_cannot_be_continued_ends_with_an_error_and_no_done() {
    let worker = Worker::with_faults(&[Fault::StepLost(5)]).await;
    let gateway = gateway(&[&worker], &["--hold-seconds=0.3"]).await;
    worker.script.pace.store(20, Ordering::SeqCst);
    let api = gateway.api;
    let asking =
        tokio::spawn(
            async move { client::post(api, "/v1/chat/completions", &chat_body(LENGTH, true)).await },
        );
    eventually("the request runs", || worker.active() == 1).await;
    worker.script.draining.store(true, Ordering::SeqCst);
    let answer = asking.await.unwrap();
    assert_eq!(answer.status, 200);
    let events = answer.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "no_ready_worker", "{events:?}");
    assert!(
        events.iter().all(|data| data != "[DONE]" && !data.contains("\"finish_reason\":\"")),
        "{events:?}"
    );
    assert_eq!(
        metric(
            &gateway,
            "belay_gateway_requests_total{model=\"nano\",path=\"/v1/chat/completions\",code=\"503\"}"
        )
        .await,
        1.0
    );
}

#[tokio::test]
async fn over_grpc_it_ends_with_unavailable() {
    let worker = Worker::with_faults(&[Fault::StepLost(5)]).await;
    let gateway = gateway(&[&worker], &["--hold-seconds=0.2"]).await;
    worker.script.pace.store(20, Ordering::SeqCst);
    let asking = generate(&gateway, request("p", LENGTH));
    let draining = async {
        eventually("the request runs", || worker.active() == 1).await;
        worker.script.draining.store(true, Ordering::SeqCst);
    };
    let (answer, ()) = tokio::join!(asking, draining);
    let status = answer.unwrap_err();
    assert_eq!(status.code(), Code::Unavailable);
    assert!(status.metadata().contains_key("retry-after"));
}

#[tokio::test]
async fn an_overloaded_worker_is_left_for_another() {
    let (busy, idle) = (Worker::start().await, Worker::start().await);
    busy.script.overloaded.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&busy, &idle], &[]).await;
    for _ in 0..4 {
        assert_eq!(client::post(gateway.api, "/v1/chat/completions", &chat_body(4, false)).await.status, 200);
    }
    assert_eq!(idle.script.seen().len(), 4);
}

#[tokio::test]
async fn when_all_are_overloaded_the_client_is_told_to_come_back() {
    let (one, two) = (Worker::start().await, Worker::start().await);
    for worker in [&one, &two] {
        worker.script.overloaded.store(true, Ordering::SeqCst);
    }
    let gateway = gateway(&[&one, &two], &[]).await;
    let answer = client::post(gateway.api, "/v1/chat/completions", &chat_body(4, false)).await;
    assert_eq!(answer.status, 429);
    assert_eq!(answer.headers["retry-after"], "1");
    assert_eq!(answer.json()["error"]["code"], "overloaded");
    one.script.room_after.store(9000, Ordering::SeqCst);
    two.script.room_after.store(2500, Ordering::SeqCst);
    let answer = client::post(gateway.api, "/v1/chat/completions", &chat_body(4, false)).await;
    assert_eq!(answer.headers["retry-after"], "3", "the first of the workers to have room, in whole seconds");
    assert_eq!(answer.headers["retry-after-ms"], "2500");
    let status = generate(&gateway, request("p", 4)).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert_eq!(status.metadata().get("retry-after").unwrap(), "3");
}

#[tokio::test]
async fn overload_is_told_at_once_though_another_worker_is_down() {
    let (down, busy) = (Worker::start().await, Worker::start().await);
    down.script.draining.store(true, Ordering::SeqCst);
    busy.script.overloaded.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&down, &busy], &["--hold-seconds=3600"]).await;
    for _ in 0..4 {
        let answer = client::post(gateway.api, "/v1/chat/completions", &chat_body(4, false)).await;
        assert_eq!(answer.status, 429);
    }
}

#[tokio::test]
async fn a_started_stream_waits_for_room_when_all_are_overloaded() {
    let worker = Worker::with_faults(&[Fault::StepLost(5)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    worker.script.pace.store(10, Ordering::SeqCst);
    let asking = generate(&gateway, request("p", LENGTH));
    let making_room = async {
        eventually("the request runs", || worker.active() == 1).await;
        worker.script.overloaded.store(true, Ordering::SeqCst);
        eventually("the step is lost", || worker.active() == 0).await;
        tokio::time::sleep(Duration::from_millis(150)).await;
        worker.script.overloaded.store(false, Ordering::SeqCst);
    };
    let (answer, ()) = tokio::join!(asking, making_room);
    assert_eq!(ids(&answer.unwrap()), expected_ids("p", 7, LENGTH));
}

#[tokio::test]
async fn a_worker_that_serves_another_model_is_left_for_one_that_does_not() {
    let (stranger, right) = (Worker::start().await, Worker::start().await);
    stranger.script.stranger.store(true, Ordering::SeqCst);
    let both = gateway(&[&stranger, &right], &[]).await;
    for _ in 0..3 {
        generate(&both, request("p", 2)).await.unwrap();
    }
    let alone = gateway(&[&stranger], &[]).await;
    assert_eq!(generate(&alone, request("p", 2)).await.unwrap_err().code(), Code::Internal);
}

#[tokio::test]
async fn what_a_worker_says_about_the_request_reaches_the_client() {
    let worker = Worker::with_faults(&[Fault::Breaks(0), Fault::Breaks(2)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    let body = json!({"model": MODEL, "prompt": "x", "stream": true});
    let broken = client::post(gateway.api, "/v1/completions", &body).await;
    assert_eq!((broken.status.as_u16(), &broken.json()["error"]["code"]), (500, &json!("worker_failed")));
    let broken = client::post(gateway.api, "/v1/completions", &body).await;
    assert_eq!(broken.status, 200);
    let last: Value = serde_json::from_str(broken.events().last().unwrap()).unwrap();
    assert_eq!(last["error"]["message"], "the worker failed: Internal: division by zero");
    let body = json!({"model": MODEL, "prompt": "too long"});
    let long = client::post(gateway.api, "/v1/completions", &body).await;
    let error = &long.json()["error"];
    assert_eq!((long.status.as_u16(), &error["param"]), (400, &json!("prompt")));
    assert_eq!(error["code"], "context_length_exceeded");
    assert_eq!(worker.script.seen().len(), 2, "none of these is tried again");
}

#[tokio::test]
async fn a_request_that_kills_every_worker_is_given_up() {
    let workers = [Worker::start().await, Worker::start().await, Worker::start().await];
    for worker in &workers {
        worker.script.faults.lock().unwrap().extend([Fault::Cut(0); 9]);
    }
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let status = generate(&gateway, request("p", 4)).await.unwrap_err();
    assert!(status.message().contains("in a row"), "{status:?}");
    let asked: usize = workers.iter().map(|worker| worker.script.seen().len()).sum();
    assert_eq!(asked, 4);
}

#[tokio::test]
async fn a_client_that_goes_away_cancels_the_work() {
    let worker = Worker::start().await;
    worker.script.pace.store(5, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let cancelled = |count: usize| {
        let script = worker.script.clone();
        move || script.cancelled.load(Ordering::SeqCst) == count && script.active.load(Ordering::SeqCst) == 0
    };

    // while it reads a stream
    let body = chat_body(100_000, true).to_string();
    let response = client::open(gateway.api, Method::POST, "/v1/chat/completions", body).await;
    let mut frames = response.into_body().into_data_stream();
    frames.next().await.unwrap().unwrap();
    drop(frames);
    eventually("the stream is cancelled", cancelled(1)).await;

    // while it waits for a whole answer
    let body = chat_body(100_000, false).to_string();
    let api = gateway.api;
    let asking =
        tokio::spawn(async move { client::open(api, Method::POST, "/v1/chat/completions", body).await });
    eventually("the request runs", || worker.active() == 1).await;
    asking.abort();
    eventually("the request is cancelled", cancelled(2)).await;

    // over gRPC
    let mut grpc = belay_proto::inference::inference_client::InferenceClient::new(channel(&gateway).await);
    let mut stream = grpc.generate(request("p", 100_000)).await.unwrap().into_inner();
    stream.message().await.unwrap();
    drop(stream);
    eventually("the call is cancelled", cancelled(3)).await;

    // while it is held
    worker.script.draining.store(true, Ordering::SeqCst);
    let body = chat_body(4, false).to_string();
    let asking =
        tokio::spawn(async move { client::open(api, Method::POST, "/v1/chat/completions", body).await });
    metric_becomes(&gateway, "belay_gateway_requests_held", |value| value >= 1.0).await;
    asking.abort();
    metric_becomes(&gateway, "belay_gateway_requests_held", |value| value <= 0.0).await;
    gateway.shut_down().await;
}

#[tokio::test]
async fn requests_go_to_the_worker_with_the_fewest() {
    let workers = [Worker::start().await, Worker::start().await, Worker::start().await];
    for worker in &workers {
        worker.script.stalled.store(true, Ordering::SeqCst);
    }
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let mut streams = Vec::new();
    for _ in 0..9 {
        let body = chat_body(1, true).to_string();
        streams.push(client::open(gateway.api, Method::POST, "/v1/chat/completions", Body::from(body)).await);
    }
    assert_eq!(workers.each_ref().map(Worker::active), [3, 3, 3]);
    workers[1].script.stalled.store(false, Ordering::SeqCst);
    metric_becomes(&gateway, "belay_gateway_requests_in_flight", |value| value <= 6.0).await;
    for _ in 0..3 {
        workers[1].script.stalled.store(true, Ordering::SeqCst);
        let body = chat_body(1, true).to_string();
        streams.push(client::open(gateway.api, Method::POST, "/v1/chat/completions", Body::from(body)).await);
    }
    assert_eq!(workers[1].active(), 3);
}
