//! The OpenAI HTTP API as clients see it.
use std::sync::atomic::Ordering;

use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{MODEL, Worker, answer, gateway, http as client, metric, metric_becomes};

const CHAT: &str = "/v1/chat/completions";

fn body(extra: Value) -> Value {
    let mut body =
        json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "seed": 7, "max_tokens": 9});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

fn expected(prompt: &str, length: usize) -> String {
    String::from_utf8_lossy(&answer(prompt, 7, length)).into_owned()
}

#[tokio::test]
async fn a_chat_is_answered_as_one_object() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let answer = client::post(gateway.api, CHAT, &body(json!({}))).await;
    assert_eq!(answer.status, 200);
    let mut object = answer.json();
    assert!(object["id"].as_str().unwrap().starts_with("chatcmpl-"));
    assert!(object["created"].as_i64().unwrap() > 1_700_000_000);
    object["id"] = json!("id");
    object["created"] = json!(0);
    let choice = json!({"index": 0, "message": {"role": "assistant", "content": expected("user: hi", 9)},
                        "logprobs": null, "finish_reason": "length"});
    let usage = json!({"prompt_tokens": 3, "completion_tokens": 9, "total_tokens": 12,
                       "prompt_tokens_details": {"cached_tokens": 0},
                       "completion_tokens_details": {"reasoning_tokens": 0}});
    let whole = json!({"id": "id", "object": "chat.completion", "created": 0, "model": MODEL,
                       "system_fingerprint": null, "choices": [choice], "usage": usage});
    assert_eq!(object, whole);
}

#[tokio::test]
async fn a_streamed_chat_begins_with_the_role_and_ends_with_done() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let streamed = json!({"stream": true, "stream_options": {"include_usage": true}});
    let answer = client::post(gateway.api, CHAT, &body(streamed)).await;
    let chunks = answer.chunks();
    assert_eq!(chunks[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
    assert!(
        chunks
            .iter()
            .all(|chunk| chunk["object"] == "chat.completion.chunk" && chunk["id"] == chunks[0]["id"])
    );
    let text: String =
        chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["content"].as_str()).collect();
    assert_eq!(text, expected("user: hi", 9));
    let [.., finish, usage] = chunks.as_slice() else { panic!("{chunks:?}") };
    assert_eq!(finish["choices"][0]["finish_reason"], "length");
    assert_eq!(usage["choices"], json!([]));
    assert_eq!(usage["usage"]["total_tokens"], 12);
}

#[tokio::test]
async fn a_completion_takes_text_or_ids() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    for (prompt, seen) in [(json!("p"), "p"), (json!(["p"]), "p"), (json!([1, 2]), "[1, 2]")] {
        let asked = json!({"model": MODEL, "prompt": prompt, "seed": 7, "max_tokens": 5});
        let object = client::post(gateway.api, "/v1/completions", &asked).await.json();
        assert_eq!(object["object"], "text_completion");
        assert_eq!(object["choices"][0]["text"], expected(seen, 5), "{prompt}");
    }
    let streamed = json!({"model": MODEL, "prompt": "p", "seed": 7, "stream": true});
    let chunks = client::post(gateway.api, "/v1/completions", &streamed).await.chunks();
    let text: String = chunks.iter().filter_map(|chunk| chunk["choices"][0]["text"].as_str()).collect();
    assert_eq!(text, expected("p", 16));
    assert!(chunks.iter().all(|chunk| chunk.get("usage").is_none()));
}

#[tokio::test]
async fn models_are_listed_and_found() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &["--worker=org/model:1=127.0.0.1:1"]).await;
    let list = client::get(gateway.api, "/v1/models").await.json();
    assert_eq!(list["object"], "list");
    let ids: Vec<_> = list["data"].as_array().unwrap().iter().map(|model| model["id"].clone()).collect();
    assert_eq!(ids, [MODEL, "org/model:1"]);
    assert_eq!(list["data"][0]["max_model_len"], 512, "what a worker says");
    let model = client::get(gateway.api, "/v1/models/org/model:1").await.json();
    assert_eq!((&model["id"], &model["object"]), (&json!("org/model:1"), &json!("model")));
    assert!(model.get("max_model_len").is_none(), "its worker cannot be reached");
    let unknown = client::get(gateway.api, "/v1/models/other").await;
    assert_eq!((unknown.status.as_u16(), &unknown.json()["error"]["code"]), (404, &json!("model_not_found")));
}

/// Checks status and shape, and gives the inner object.
fn refused(answer: &client::Answer, status: u16) -> Value {
    assert_eq!(answer.status.as_u16(), status, "{}", answer.text());
    assert_eq!(answer.headers["content-type"], "application/json");
    assert!(answer.headers.contains_key("x-request-id"));
    let error = answer.json()["error"].clone();
    let fields: Vec<_> = error.as_object().unwrap().keys().cloned().collect();
    assert_eq!(fields, ["message", "type", "param", "code"]);
    assert!(error["message"].is_string() && error["type"].is_string());
    error
}

#[tokio::test]
async fn every_refusal_has_openai_s_shape_and_says_what_is_wrong() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &["--max-body-bytes=2000"]).await;
    let raw = |method: Method, path: &'static str, body: Body| async move {
        client::read(client::open(gateway.api, method, path, body).await).await
    };
    let post = |body: &'static [u8]| raw(Method::POST, CHAT, Body::from(body));

    let error = refused(&post(b"{\"model\": \"nano\", }").await, 400);
    assert!(error["message"].as_str().unwrap().contains("line 1 column 19"), "{error}");
    let error = refused(&post(b"{\"model\": \"na\xffno\"}").await, 400);
    assert!(error["message"].as_str().unwrap().contains("UTF-8"), "{error}");
    refused(&post(b"").await, 400);
    refused(&post(b"[]").await, 400);
    assert_eq!(refused(&post(b"{\"messages\": []}").await, 400)["param"], "model");
    assert_eq!(refused(&post(b"{\"model\": \"nano\"}").await, 400)["param"], "messages");

    for (extra, param) in [
        (json!({"temperature": "hot"}), "temperature"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (json!({"tools": [{"type": "function"}]}), "tools[0].function"),
    ] {
        let error = refused(&client::post(gateway.api, CHAT, &body(extra)).await, 400);
        assert_eq!(error["param"], param);
        assert!(error["message"].as_str().unwrap().contains(param), "{error}");
    }
    let empty = json!({"model": MODEL, "prompt": ""});
    assert_eq!(refused(&client::post(gateway.api, "/v1/completions", &empty).await, 400)["param"], "prompt");
    let error = refused(&client::post(gateway.api, CHAT, &body(json!({"model": "other"}))).await, 404);
    assert_eq!((&error["param"], &error["code"]), (&json!("model"), &json!("model_not_found")));
    assert!(error["message"].as_str().unwrap().contains("other"));

    refused(&raw(Method::GET, CHAT, Body::empty()).await, 405);
    refused(&raw(Method::DELETE, "/v1/models", Body::empty()).await, 405);
    refused(&raw(Method::GET, "/v2/other", Body::empty()).await, 404);
    let error = refused(&raw(Method::POST, CHAT, Body::from(vec![b' '; 2001])).await, 413);
    assert!(error["message"].as_str().unwrap().contains("2000 bytes"));
    // much larger than what the sockets buffer: the client must be able to send it all and read the answer
    refused(&raw(Method::POST, CHAT, Body::from(vec![b' '; 15_000])).await, 413);
    assert!(worker.script.seen().is_empty(), "none of these reached a worker");
}

#[tokio::test]
async fn the_request_id_goes_in_and_out_and_to_the_worker() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}{CHAT}", gateway.api))
        .header("x-request-id", "mine-1")
        .body(Body::from(body(json!({})).to_string()))
        .unwrap();
    let answer = client::read(client::send(request).await).await;
    assert_eq!(answer.headers["x-request-id"], "mine-1");
    let answer = client::post(gateway.api, CHAT, &body(json!({}))).await;
    let made = answer.headers["x-request-id"].to_str().unwrap();
    let seen: Vec<_> = worker.script.seen().into_iter().map(|seen| seen.request_id).collect();
    assert_eq!(seen, ["mine-1", made]);
}

#[tokio::test]
async fn requests_are_measured_by_model_path_and_code() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    client::post(gateway.api, CHAT, &body(json!({}))).await;
    client::post(gateway.api, CHAT, &body(json!({"stream": true}))).await;
    client::post(gateway.api, CHAT, &body(json!({"model": "a name that clients make up"}))).await;
    let series = |model: &str, code: &str| {
        format!("belay_gateway_requests_total{{model=\"{model}\",path=\"{CHAT}\",code=\"{code}\"}}")
    };
    assert_eq!(metric(&gateway, &series(MODEL, "200")).await, 2.0);
    assert_eq!(metric(&gateway, &series("", "404")).await, 1.0);
    assert_eq!(metric(&gateway, "belay_gateway_requests_in_flight").await, 0.0);
    assert_eq!(
        metric(&gateway, "belay_gateway_time_to_first_token_seconds_count{model=\"nano\"}").await,
        2.0
    );
    assert_eq!(
        metric(&gateway, "belay_gateway_tokens_total{model=\"nano\",kind=\"completion\"}").await,
        18.0
    );
    assert_eq!(metric(&gateway, "belay_gateway_workers_known{model=\"nano\"}").await, 1.0);
    assert_eq!(metric(&gateway, "belay_gateway_workers_ready{model=\"nano\"}").await, 1.0);
    worker.script.stalled.store(true, Ordering::SeqCst);
    let asked = body(json!({"stream": true})).to_string();
    let open = client::open(gateway.api, Method::POST, CHAT, asked).await;
    assert_eq!(metric(&gateway, "belay_gateway_requests_in_flight").await, 1.0);
    drop(open);
    metric_becomes(&gateway, "belay_gateway_requests_in_flight", |value| value <= 0.0).await;
    assert_eq!(metric(&gateway, &series(MODEL, "client_gone")).await, 1.0);
}
