//! With a file of keys nothing is served without one, and each has its limits.
use std::{path::PathBuf, sync::atomic::Ordering};

use belay_gateway::run::Gateway;
use belay_proto::{
    inference::inference_client::InferenceClient,
    kserve::{
        ModelInferRequest, ServerLiveRequest, grpc_inference_service_client::GrpcInferenceServiceClient,
    },
};
use http::{Method, Request};
use serde_json::{Value, json};
use tonic::Code;

use crate::support::{LONG, MODEL, Worker, channel, gateway, http as client, metric_becomes, request};

/// A file that is gone with it.
struct Keys(PathBuf);

impl Keys {
    fn new(text: &str) -> Self {
        let path = std::env::temp_dir().join(format!("belay-keys-{}", uuid::Uuid::new_v4()));
        std::fs::write(&path, text).unwrap();
        Self(path)
    }

    /// As a whole, as a Secret changes.
    fn write(&self, text: &str) {
        let next = self.0.with_extension("next");
        std::fs::write(&next, text).unwrap();
        std::fs::rename(next, &self.0).unwrap();
    }

    fn flag(&self) -> String {
        format!("--keys-file={}", self.0.display())
    }
}

impl Drop for Keys {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

async fn ask(gateway: &Gateway, key: Option<&str>, path: &str, body: &Value) -> client::Answer {
    let mut request = Request::builder().method(Method::POST).uri(format!("http://{}{path}", gateway.api));
    if let Some(key) = key {
        request = request.header("authorization", format!("Bearer {key}"));
    }
    let request = request.body(axum::body::Body::from(body.to_string())).unwrap();
    client::read(client::send(request).await).await
}

fn completion() -> Value {
    json!({"model": MODEL, "prompt": "12345678", "max_tokens": 4})
}

fn message() -> Value {
    json!({"model": MODEL, "max_tokens": 4, "messages": [{"role": "user", "content": "hi"}]})
}

fn with_key<T>(message: T, key: &'static str) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    request.metadata_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
    request
}

#[tokio::test]
async fn without_a_known_key_every_api_says_so_in_its_own_words() {
    let worker = Worker::start().await;
    let keys = Keys::new("- {name: a, key: secret-a}\n- {name: b, key: secret-b, models: [other]}");
    let gateway = gateway(&[&worker], &[&keys.flag(), "--worker=other=127.0.0.1:1"]).await;
    for key in [None, Some("wrong")] {
        let answer = ask(&gateway, key, "/v1/completions", &completion()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["code"]),
            (401, &json!("invalid_api_key"))
        );
        let answer = ask(&gateway, key, "/v1/messages", &message()).await;
        assert_eq!(
            (answer.status.as_u16(), &answer.json()["error"]["type"]),
            (401, &json!("authentication_error"))
        );
    }
    assert_eq!(client::get(gateway.api, "/v1/models").await.status, 401);
    let mut grpc = InferenceClient::new(channel(&gateway).await);
    assert_eq!(grpc.generate(request("p", 2)).await.unwrap_err().code(), Code::Unauthenticated);
    let mut kserve = GrpcInferenceServiceClient::new(channel(&gateway).await);
    let infer = ModelInferRequest { model_name: MODEL.into(), ..ModelInferRequest::default() };
    assert_eq!(kserve.model_infer(infer.clone()).await.unwrap_err().code(), Code::Unauthenticated);
    assert!(kserve.server_live(ServerLiveRequest {}).await.unwrap().get_ref().live, "health is for all");
    assert!(worker.script.seen().is_empty());

    let answer = ask(&gateway, Some("secret-b"), "/v1/completions", &completion()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["code"]), (403, &json!("model_not_allowed")));
    let answer = ask(&gateway, Some("secret-b"), "/v1/messages", &message()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["type"]), (403, &json!("permission_error")));
    let status = grpc.generate(with_key(request("p", 2), "secret-b")).await.unwrap_err();
    assert_eq!(status.code(), Code::PermissionDenied);
    assert_eq!(
        kserve.model_infer(with_key(infer.clone(), "secret-b")).await.unwrap_err().code(),
        Code::PermissionDenied
    );

    assert_eq!(ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await.status, 200);
    assert_eq!(ask(&gateway, Some("secret-a"), "/v1/messages", &message()).await.status, 200);
    grpc.generate(with_key(request("p", 2), "secret-a")).await.unwrap();
    kserve.model_infer(with_key(infer, "secret-a")).await.unwrap();
    for (key, models) in [("secret-a", 2), ("secret-b", 1)] {
        let request = Request::get(format!("http://{}/v1/models", gateway.api));
        let request = request.header("x-api-key", key).body(axum::body::Body::empty()).unwrap();
        let list = client::read(client::send(request).await).await.json();
        assert_eq!(list["data"].as_array().unwrap().len(), models, "{key} sees what it may ask for");
    }
}

#[tokio::test]
async fn a_limit_says_when_it_is_worth_asking_again() {
    let worker = Worker::start().await;
    let keys = Keys::new("[{name: a, key: secret-a, requestsPerMinute: 4}]");
    // two replicas: this one grants two requests a minute
    let gateway = gateway(&[&worker], &[&keys.flag(), "--replicas=2"]).await;
    for _ in 0..2 {
        assert_eq!(ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await.status, 200);
    }
    let answer = ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await;
    assert_eq!(
        (answer.status.as_u16(), &answer.json()["error"]["code"]),
        (429, &json!("rate_limit_exceeded"))
    );
    assert!(answer.text().contains("requestsPerMinute"), "{}", answer.text());
    let after: u64 = answer.headers["retry-after"].to_str().unwrap().parse().unwrap();
    assert!((1..=30).contains(&after), "{after}");
    let answer = ask(&gateway, Some("secret-a"), "/v1/messages", &message()).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["error"]["type"]), (429, &json!("rate_limit_error")));
    let mut grpc = InferenceClient::new(channel(&gateway).await);
    let status = grpc.generate(with_key(request("p", 2), "secret-a")).await.unwrap_err();
    assert_eq!(status.code(), Code::ResourceExhausted);
    assert!(status.metadata().contains_key("retry-after"));
    let limited = "belay_gateway_limited_requests_total{key=\"a\",limit=\"requestsPerMinute\"}";
    metric_becomes(&gateway, limited, |count| count == 3.0).await;
}

#[tokio::test]
async fn tokens_are_charged_as_they_were_used() {
    let worker = Worker::start().await;
    // the double counts 3 tokens of any prompt: 7 a request; 1006 are expected of one that may produce any number
    let keys = Keys::new("[{name: a, key: secret-a, tokensPerDay: 1013}]");
    let gateway = gateway(&[&worker], &[&keys.flag()]).await;
    let open_ended =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "1234"}], "max_tokens": 1000});
    let short = ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await;
    assert_eq!(short.status, 200);
    let answer = ask(&gateway, Some("secret-a"), "/v1/chat/completions", &open_ended).await;
    assert_eq!((answer.status.as_u16(), &answer.json()["usage"]["total_tokens"]), (200, &json!(1003)));
    let answer = ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await;
    assert_eq!(answer.status, 429, "1010 of 1013 are used");
    assert!(answer.text().contains("tokensPerDay"), "{}", answer.text());
}

#[tokio::test]
async fn requests_under_way_are_bounded_and_given_back() {
    let worker = Worker::start().await;
    worker.script.stalled.store(true, Ordering::SeqCst);
    let keys = Keys::new("[{name: a, key: secret-a, maxConcurrent: 1}, {name: b, key: secret-b}]");
    let gateway = gateway(&[&worker], &[&keys.flag()]).await;
    let mut body = completion();
    body["stream"] = json!(true);
    let open = Request::post(format!("http://{}/v1/completions", gateway.api))
        .header("x-api-key", "secret-a")
        .body(axum::body::Body::from(body.to_string()))
        .unwrap();
    let open = client::send(open).await;
    assert_eq!(ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await.status, 429);
    worker.script.stalled.store(false, Ordering::SeqCst);
    assert_eq!(ask(&gateway, Some("secret-b"), "/v1/completions", &completion()).await.status, 200);
    assert_eq!(client::read(open).await.status, 200);
    let free = async {
        while ask(&gateway, Some("secret-a"), "/v1/completions", &completion()).await.status != 200 {}
    };
    tokio::time::timeout(LONG, free).await.expect("its one seat is free again");
}

#[tokio::test]
async fn a_changed_file_counts_and_a_broken_one_does_not() {
    let worker = Worker::start().await;
    let keys = Keys::new("[{name: a, key: secret-a}]");
    let gateway = gateway(&[&worker], &[&keys.flag()]).await;
    let becomes = async |key: &str, status: u16| {
        let waiting = async {
            while ask(&gateway, Some(key), "/v1/completions", &completion()).await.status != status {}
        };
        tokio::time::timeout(LONG, waiting).await.unwrap_or_else(|_| panic!("{key} never got {status}"));
    };
    becomes("secret-a", 200).await;
    keys.write("[{name: b, key: secret-b}]");
    becomes("secret-b", 200).await;
    becomes("secret-a", 401).await;
    keys.write("[{name: c, key: secret-c, name: ");
    metric_becomes(&gateway, "belay_gateway_keys_current", |value| value == 0.0).await;
    becomes("secret-b", 200).await;
    keys.write("[{name: c, key: secret-c}]");
    becomes("secret-c", 200).await;
    metric_becomes(&gateway, "belay_gateway_keys_current", |value| value == 1.0).await;
}
