//! What surrounds the answers: health, reflection, metrics, refusals, draining, cancelling, failing.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "tests")]

mod common;

use std::path::Path;
use std::time::Duration;

use belay_proto::admin::{Phase, SetDrainRequest, SetPlacementRequest};
use belay_proto::inference::generate_request::Prompt;
use belay_proto::inference::{ChatRequest, GenerateRequest, Message, Sampling};
use common::{
    Process, admin, ask, cases, channel, collect, endless, generate, greedy, http_get, ids, inference, nano,
    retry_hint, stand_alone, started, status, until, wait_phase, wait_status,
};
use futures::TryStreamExt;
use tonic::Code;
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

async fn health(address: impl std::fmt::Display, service: &str) -> ServingStatus {
    let mut client = HealthClient::new(channel(address).await);
    client.check(HealthCheckRequest { service: service.into() }).await.unwrap().into_inner().status()
}

#[tokio::test]
async fn health_says_serving_only_while_requests_are_taken() {
    let worker = stand_alone(&[]).await;
    let addresses = worker.addresses();
    for service in ["", "belay.inference.v1.Inference", "inference.GRPCInferenceService"] {
        assert_eq!(health(addresses.grpc, service).await, ServingStatus::Serving);
    }
    assert_eq!(http_get(addresses.http, "/healthz").await.0, 200);
    assert_eq!(http_get(addresses.http, "/readyz").await.0, 200);
    admin(addresses.admin).await.set_drain(SetDrainRequest { draining: true }).await.unwrap();
    let deadline = std::time::Instant::now() + Duration::from_secs(10);
    while health(addresses.grpc, "").await != ServingStatus::NotServing {
        assert!(std::time::Instant::now() < deadline);
    }
    assert_eq!(http_get(addresses.http, "/readyz").await, (503, "draining\n".into()));
    assert_eq!(http_get(addresses.http, "/healthz").await.0, 200);
    worker.stop().await;
}

#[tokio::test]
async fn reflection_lists_the_services_and_finds_a_method() {
    let worker = stand_alone(&[]).await;
    let mut client = ServerReflectionClient::new(channel(worker.addresses().grpc).await);
    let requests = [
        MessageRequest::ListServices(String::new()),
        MessageRequest::FileContainingSymbol("belay.inference.v1.Inference.Chat".into()),
        MessageRequest::FileContainingSymbol("inference.GRPCInferenceService".into()),
    ];
    let requests = requests
        .map(|message| ServerReflectionRequest { host: String::new(), message_request: Some(message) });
    let answers = client.server_reflection_info(futures::stream::iter(requests)).await.unwrap().into_inner();
    let answers: Vec<_> =
        answers.map_ok(|answer| answer.message_response.unwrap()).try_collect().await.unwrap();
    let MessageResponse::ListServicesResponse(list) = &answers[0] else { panic!("{:?}", answers[0]) };
    let names: Vec<&str> = list.service.iter().map(|service| service.name.as_str()).collect();
    for expected in
        ["belay.inference.v1.Inference", "inference.GRPCInferenceService", "grpc.health.v1.Health"]
    {
        assert!(names.contains(&expected), "{names:?}");
    }
    for answer in &answers[1..] {
        assert!(matches!(answer, MessageResponse::FileDescriptorResponse(_)), "{answer:?}");
    }
    worker.stop().await;
}

#[tokio::test]
async fn metrics_tell_the_shares_and_count_what_happened() {
    let worker = stand_alone(&["--devices-per-worker", "2"]).await;
    let case = &cases("fact", 1)[0];
    let mut client = inference(&worker).await;
    generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
    generate(&mut client, ask(ids(&[]))).await.unwrap_err();
    let (code, text) = http_get(worker.addresses().http, "/metrics").await;
    assert_eq!(code, 200);
    let value = |series: &str| -> f64 {
        let line = text.lines().find(|line| line.starts_with(&format!("{series} ")));
        line.unwrap_or_else(|| panic!("no {series} in\n{text}")).rsplit(' ').next().unwrap().parse().unwrap()
    };
    // 5 layers x 16 experts x 3 matrices of 128 x 64 in two bytes
    let whole = 5.0 * 16.0 * 3.0 * 128.0 * 64.0 * 2.0;
    for rank in 0..2 {
        assert_eq!(value(&format!("belay_expert_bytes{{rank=\"{rank}\"}}")), whole / 2.0);
        assert_eq!(value(&format!("belay_experts{{rank=\"{rank}\"}}")), 40.0);
    }
    assert!(value("belay_dense_bytes") > 1e6);
    assert_eq!(value("belay_prompt_tokens_total"), case.prompt_ids.len() as f64);
    assert_eq!(value("belay_generation_tokens_total"), case.greedy_ids.len() as f64);
    assert_eq!(value("belay_request_success_total{finished_reason=\"stop\"}"), 1.0);
    assert_eq!(value("belay_request_failure_total{code=\"INVALID_ARGUMENT\"}"), 1.0);
    assert_eq!(value("belay_time_to_first_token_seconds_count"), 1.0);
    assert_eq!(value("belay_request_queue_time_seconds_count"), 1.0);
    assert_eq!(value("belay_request_generation_tokens_sum"), case.greedy_ids.len() as f64);
    assert_eq!(value("belay_inter_token_latency_seconds_count"), case.greedy_ids.len() as f64 - 1.0);
    let (timed, counted) = (value("belay_step_seconds_count{phase=\"forward\"}"), value("belay_steps_total"));
    assert!((timed - counted).abs() <= 1.0, "{timed} of {counted}: the last step may be under way");
    assert!(value("belay_prefix_cache_queries_total") > 0.0);
    assert_eq!(value("belay_kv_cache_bytes"), 0.0, "nothing runs any more");
    let limit = (4_u64 << 30) as f64;
    assert!((0.99 * limit..=limit).contains(&value("belay_kv_cache_bytes_limit")), "whole pages of it");
    assert_eq!(value("belay_requests_in_flight"), 0.0);
    assert_eq!(value("belay_phase{phase=\"ready\"}"), 1.0);
    assert!(value("belay_fabric_exchange_seconds_count") > 0.0);
    assert!(text.ends_with("# EOF\n"), "complete OpenMetrics");
    worker.stop().await;
}

#[tokio::test]
async fn bad_requests_are_refused_with_the_field_and_lose_nothing() {
    let worker = stand_alone(&["--max-context-tokens", "200"]).await;
    let mut client = inference(&worker).await;
    let good = &cases("fact", 1)[0];
    let sampled =
        |sampling: Sampling| GenerateRequest { sampling: Some(sampling), ..ask(ids(&good.prompt_ids)) };
    let cases = [
        ("prompt", GenerateRequest { prompt: None, ..ask(ids(&[])) }),
        ("prompt", ask(ids(&[]))),
        ("prompt", ask(Prompt::Text(String::new()))),
        ("prompt", ask(ids(&[5; 200]))),
        ("2048", ask(ids(&[0, 2048]))),
        ("resume_ids", GenerateRequest { resume_ids: vec![9999], ..ask(ids(&good.prompt_ids)) }),
        ("temperature", sampled(Sampling { temperature: Some(-1.0), ..greedy(5) })),
        ("temperature", sampled(Sampling { temperature: Some(f32::NAN), ..greedy(5) })),
        ("top_p", sampled(Sampling { top_p: Some(1.5), ..greedy(5) })),
        ("max_tokens", sampled(greedy(0))),
    ];
    for (field, request) in cases {
        let refused = generate(&mut client, request).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{refused}");
        assert!(refused.message().contains(field), "{field}: {refused}");
    }
    let unknown = generate(&mut client, GenerateRequest { model: "gpt".into(), ..ask(ids(&[0])) }).await;
    let unknown = unknown.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("\"gpt\"") && unknown.message().contains("\"nano\""));

    let odd_role = Message { role: "wizard".into(), content: "hi".into(), ..Message::default() };
    for (messages, named) in [(vec![], "messages"), (vec![odd_role], "wizard")] {
        let refused = client.chat(ChatRequest { messages, ..ChatRequest::default() }).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument);
        assert!(refused.message().contains(named), "{refused}");
    }
    let answer = generate(&mut client, ask(ids(&good.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, good.greedy_ids, "it still serves");
    assert_eq!(worker.context().shared.in_flight(), 0);
    worker.stop().await;
}

#[tokio::test]
async fn a_full_queue_is_resource_exhausted() {
    let worker = stand_alone(&["--max-sessions", "1", "--max-queued", "1"]).await;
    let mut client = inference(&worker).await;
    let prompt = &cases("fact", 1)[0].prompt_ids;
    let mut open = Vec::new();
    let full = loop {
        match client.generate(endless(prompt)).await {
            Ok(stream) => open.push(stream),
            Err(status) => break status,
        }
        assert!(open.len() <= 3);
    };
    assert_eq!(full.code(), Code::ResourceExhausted, "{full}");
    drop(open);
    worker.stop().await;
}

#[tokio::test]
async fn a_client_that_goes_away_frees_its_session() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let prompt = &cases("fact", 1)[0].prompt_ids;
    let mut stream = client.generate(endless(prompt)).await.unwrap().into_inner();
    assert!(stream.try_next().await.unwrap().is_some());
    assert_eq!(worker.context().shared.in_flight(), 1);
    drop(stream);
    let engine = worker.context().engine.load_full().unwrap();
    until("the session is gone", || {
        let stats = engine.stats();
        stats.running + stats.queued == 0 && worker.context().shared.in_flight() == 0
    })
    .await;
    let tokens = engine.stats().generated_tokens;
    assert!(tokens < 3500, "it was cut short, after {tokens} tokens");
    drop(engine);
    worker.stop().await;
}

#[tokio::test]
async fn a_reader_that_does_not_read_holds_up_nobody() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let case = &cases("fact", 1)[0];
    let idle = client.generate(endless(&case.prompt_ids)).await.unwrap();
    let answer = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap();
    assert_eq!(answer.ids, case.greedy_ids);
    drop(idle);
    worker.stop().await;
}

#[tokio::test]
async fn a_draining_worker_finishes_what_it_has_and_refuses_the_rest_retryably() {
    let worker = stand_alone(&[]).await;
    let mut client = inference(&worker).await;
    let mut operator = admin(worker.addresses().admin).await;
    let case = &cases("fact", 1)[0];
    let request = GenerateRequest {
        sampling: Some(Sampling { ignore_eos: true, ..greedy(300) }),
        ..ask(ids(&case.prompt_ids))
    };
    let mut under_way = client.generate(request).await.unwrap().into_inner();
    assert!(under_way.try_next().await.unwrap().is_some());

    let drained = operator.set_drain(SetDrainRequest { draining: true }).await.unwrap().into_inner();
    assert_eq!(drained.requests_in_flight, 1);
    let refused = generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap_err();
    assert_eq!((refused.code(), retry_hint(&refused)), (Code::Unavailable, Some("draining")));
    assert!(status(&mut operator).await.draining);
    assert!(collect(under_way).await.is_ok(), "the request under way ends well");
    wait_status(&mut operator, "empty", |status| status.requests_in_flight == 0).await;

    operator.set_drain(SetDrainRequest { draining: false }).await.unwrap();
    assert_eq!(generate(&mut client, ask(ids(&case.prompt_ids))).await.unwrap().ids, case.greedy_ids);
    worker.stop().await;
}

#[tokio::test]
async fn sigterm_waits_for_the_requests_in_flight_and_exits_with_success() {
    let mut process = Process::start(&[]);
    wait_phase(&mut admin(&process.admin).await, Phase::Ready).await;
    let mut client =
        belay_proto::inference::inference_client::InferenceClient::new(channel(&process.grpc).await);
    let prompt = &cases("fact", 1)[0].prompt_ids;
    let request =
        GenerateRequest { sampling: Some(Sampling { ignore_eos: true, ..greedy(300) }), ..ask(ids(prompt)) };
    let mut stream = client.generate(request).await.unwrap().into_inner();
    let first = stream.try_next().await.unwrap().unwrap();
    process.terminate();
    let rest = collect(stream).await.unwrap();
    assert_eq!(first.ids.len() + rest.ids.len(), 300);
    let ended = tokio::task::spawn_blocking(move || process.child.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
}

#[tokio::test]
async fn sigterm_ends_a_request_over_the_drain_time_with_a_retryable_status() {
    let mut process = Process::start(&["--drain-seconds", "0"]);
    wait_phase(&mut admin(&process.admin).await, Phase::Ready).await;
    let mut client =
        belay_proto::inference::inference_client::InferenceClient::new(channel(&process.grpc).await);
    let mut stream = client.generate(endless(&cases("fact", 1)[0].prompt_ids)).await.unwrap().into_inner();
    assert!(stream.try_next().await.unwrap().is_some());
    process.terminate();
    let lost = collect(stream).await.unwrap_err();
    assert_eq!((lost.code(), retry_hint(&lost)), (Code::Unavailable, Some("draining")), "{lost}");
    let ended = tokio::task::spawn_blocking(move || process.child.wait().unwrap()).await.unwrap();
    assert!(ended.success(), "{ended}");
}

/// Copies nano's bf16 directory, so that it can be spoilt.
fn copy_of_nano(dir: &Path) {
    for entry in std::fs::read_dir(nano().join("bf16")).unwrap() {
        let entry = entry.unwrap();
        std::fs::copy(entry.path(), dir.join(entry.file_name())).unwrap();
    }
}

async fn failure_of(model_dir: &Path, extra: &[&str]) -> (String, String) {
    let worker = started(model_dir, extra).await;
    let addresses = worker.addresses();
    let failed = wait_phase(&mut admin(addresses.admin).await, Phase::Failed).await;
    assert_eq!(health(addresses.grpc, "").await, ServingStatus::NotServing);
    let (code, body) = http_get(addresses.http, "/readyz").await;
    assert!(code == 503 && body.contains(&failed.reason), "{body}");
    assert_eq!(http_get(addresses.http, "/healthz").await.0, 200, "the process lives on");
    let refused = generate(&mut inference(&worker).await, ask(ids(&[0]))).await.unwrap_err();
    assert_eq!((refused.code(), retry_hint(&refused)), (Code::Unavailable, Some("not-ready")));
    worker.stop().await;
    (failed.reason, failed.message)
}

#[tokio::test]
async fn a_bad_checkpoint_fails_with_a_reason_and_the_process_stays_up() {
    let missing = failure_of(Path::new("/no/such/model"), &[]).await;
    assert_eq!(missing.0, "CheckpointNotFound");
    assert!(missing.1.contains("/no/such/model"), "{missing:?}");

    let empty = tempfile::tempdir().unwrap();
    let no_config = failure_of(empty.path(), &[]).await;
    assert_eq!(no_config.0, "CheckpointNotFound");
    assert!(no_config.1.contains("config.json"), "{no_config:?}");

    let truncated = tempfile::tempdir().unwrap();
    copy_of_nano(truncated.path());
    let weights = truncated.path().join("model.safetensors");
    let file = std::fs::OpenOptions::new().write(true).open(&weights).unwrap();
    file.set_len(file.metadata().unwrap().len() - 1000).unwrap();
    let cut = failure_of(truncated.path(), &[]).await;
    assert_eq!(cut.0, "CheckpointInvalid");
    assert!(cut.1.contains("model.safetensors") && cut.1.contains("truncated"), "{cut:?}");

    let speechless = tempfile::tempdir().unwrap();
    copy_of_nano(speechless.path());
    std::fs::remove_file(speechless.path().join("tokenizer.json")).unwrap();
    let no_tokenizer = failure_of(speechless.path(), &[]).await;
    assert_eq!(no_tokenizer.0, "CheckpointInvalid");
    assert!(no_tokenizer.1.contains("tokenizer.json"), "{no_tokenizer:?}");
}

#[tokio::test]
async fn options_that_the_model_can_not_fill_fail_with_numbers() {
    let nano = nano().join("bf16");
    let small = failure_of(&nano, &["--memory", "64Ki"]).await;
    assert_eq!(small.0, "OptionsInvalid");
    assert!(small.1.starts_with("BELAY_KV_MEMORY: memory: 65536 bytes are too few"), "{small:?}");
    let some = failure_of(&nano, &["--memory", "1Mi", "--max-context-tokens", "4096"]).await;
    assert!(some.1.ends_with("but a request of 4096 must fit"), "{some:?}");
    let long = failure_of(&nano, &["--max-context-tokens", "5000"]).await;
    assert_eq!(long.0, "OptionsInvalid");
    assert!(long.1.contains("5000") && long.1.contains("4096"), "{long:?}");
    let wide = failure_of(&nano, &["--devices-per-worker", "17"]).await;
    assert!(wide.1.contains("16 experts") && wide.1.contains("17 ranks"), "{wide:?}");
}

#[tokio::test]
async fn a_stand_alone_worker_refuses_a_placement() {
    let worker = stand_alone(&[]).await;
    let mut operator = admin(worker.addresses().admin).await;
    let request = SetPlacementRequest { in_force: Some(Default::default()), ..Default::default() };
    let refused = operator.set_placement(request).await.unwrap_err();
    assert_eq!(refused.code(), Code::FailedPrecondition);
    let card = status(&mut operator).await.card.unwrap();
    assert_eq!((card.layers, card.experts, card.experts_per_token), (5, 16, 2));
    assert_eq!((card.max_context_tokens, card.digest.len()), (4096, 64));
    worker.stop().await;
}
