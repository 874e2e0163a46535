//! The Anthropic Messages API as clients see it.
use std::sync::atomic::Ordering;

use axum::body::Body;
use http::{Method, Request};
use serde_json::{Value, json};

use crate::support::{Fault, MODEL, Worker, answer, call_id, eventually, gateway, http as client, metric};

const MESSAGES: &str = "/v1/messages";
const LENGTH: u32 = 12;

fn body(extra: Value) -> Value {
    let mut body =
        json!({"model": MODEL, "max_tokens": LENGTH, "messages": [{"role": "user", "content": "hi"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// What a worker says to that. The API has no seed, so each request has one of its own.
fn said(worker: &Worker) -> Vec<u8> {
    let seed = worker.script.seen().last().unwrap().seed.unwrap();
    answer("user: hi", seed, LENGTH as usize)
}

/// The events of a stream; checks that each is named by its type.
fn events(answer: &client::Answer) -> Vec<Value> {
    assert_eq!(answer.headers["content-type"], "text/event-stream", "{}", answer.text());
    let text = answer.text();
    let frames = text.trim_end_matches('\n').split("\n\n");
    let event = |frame: &str| {
        let (name, data) = frame.split_once('\n').unwrap();
        let data: Value = serde_json::from_str(data.strip_prefix("data: ").unwrap()).unwrap();
        assert_eq!(name.strip_prefix("event: ").unwrap(), data["type"]);
        data
    };
    frames.map(event).collect()
}

fn kinds(events: &[Value]) -> Vec<&str> {
    let mut kinds: Vec<&str> = events.iter().map(|event| event["type"].as_str().unwrap()).collect();
    kinds.dedup();
    kinds
}

async fn unsound_workers() -> [Worker; 2] {
    [Worker::with_faults(&[Fault::StepLost(3), Fault::Ends(1), Fault::Cut(2)]).await, Worker::start().await]
}

#[tokio::test]
async fn a_message_is_answered_whole() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let request = Request::builder()
        .method(Method::POST)
        .uri(format!("http://{}{MESSAGES}?beta=true", gateway.api))
        .header("x-api-key", "any")
        .header("anthropic-version", "2023-06-01")
        .header("anthropic-beta", "one,two")
        .header("x-request-id", "mine")
        .body(Body::from(body(json!({"metadata": {"user_id": "u"}})).to_string()))
        .unwrap();
    let answer = client::read(client::send(request).await).await;
    assert_eq!(answer.status, 200, "{}", answer.text());
    assert_eq!(answer.headers["request-id"], "mine");
    let mut message = answer.json();
    assert!(message["id"].as_str().unwrap().starts_with("msg_"));
    message["id"] = json!("id");
    let text = String::from_utf8_lossy(&said(&worker)).into_owned();
    let usage = json!({"input_tokens": 3, "cache_creation_input_tokens": 0, "cache_read_input_tokens": 0,
                       "output_tokens": LENGTH, "output_tokens_details": {"thinking_tokens": 0}});
    let expected = json!({"id": "id", "type": "message", "role": "assistant", "model": MODEL,
                          "content": [{"type": "text", "text": text}], "stop_reason": "max_tokens",
                          "stop_sequence": null, "usage": usage});
    assert_eq!(message, expected);
    let series = format!("belay_gateway_requests_total{{model=\"nano\",path=\"{MESSAGES}\",code=\"200\"}}");
    assert_eq!(metric(&gateway, &series).await, 1.0);
}

#[tokio::test]
async fn a_streamed_message_is_whole_though_workers_fail() {
    let workers = unsound_workers().await;
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let answer = client::post(gateway.api, MESSAGES, &body(json!({"stream": true}))).await;
    let events = events(&answer);
    assert_eq!(
        kinds(&events),
        [
            "message_start",
            "ping",
            "content_block_start",
            "content_block_delta",
            "content_block_stop",
            "message_delta",
            "message_stop"
        ]
    );
    assert_eq!(events[0]["message"]["usage"]["input_tokens"], 3);
    let text: String = events.iter().filter_map(|event| event["delta"]["text"].as_str()).collect();
    let expected = said(workers.iter().find(|worker| !worker.script.seen().is_empty()).unwrap());
    assert_eq!(text, String::from_utf8_lossy(&expected));
    let end = &events[events.len() - 2];
    assert_eq!(
        (&end["delta"]["stop_reason"], &end["usage"]["output_tokens"]),
        (&json!("max_tokens"), &json!(LENGTH))
    );
}

#[tokio::test]
async fn a_streamed_call_is_whole_though_workers_fail() {
    let workers = unsound_workers().await;
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let asked = body(json!({"stream": true, "tools": [{"name": "look", "input_schema": {"type": "object"}}],
                            "tool_choice": {"type": "tool", "name": "look"}}));
    let answer = client::post(gateway.api, MESSAGES, &asked).await;
    let events = events(&answer);
    let said = said(workers.iter().find(|worker| !worker.script.seen().is_empty()).unwrap());
    let starts: Vec<_> = events.iter().filter(|event| event["type"] == "content_block_start").collect();
    let block = json!({"type": "tool_use", "id": call_id(&said), "name": "look", "input": {}});
    assert_eq!(starts.iter().map(|event| &event["content_block"]).collect::<Vec<_>>(), [&block]);
    let input: String = events.iter().filter_map(|event| event["delta"]["partial_json"].as_str()).collect();
    assert_eq!(input, String::from_utf8_lossy(&said));
    assert_eq!(events[events.len() - 2]["delta"]["stop_reason"], "tool_use");
}

#[tokio::test]
async fn refusals_have_anthropic_s_shape() {
    let worker = Worker::with_faults(&[Fault::Breaks(0), Fault::Breaks(2)]).await;
    let gateway = gateway(&[&worker], &["--max-body-bytes=2000"]).await;
    let refused = async |asked: &Value| {
        let answer = client::post(gateway.api, MESSAGES, asked).await;
        let object = answer.json();
        assert_eq!(object["type"], "error");
        assert_eq!(object["request_id"], answer.headers["request-id"].to_str().unwrap());
        let message = object["error"]["message"].as_str().unwrap().to_owned();
        (answer.status.as_u16(), object["error"]["type"].as_str().unwrap().to_owned(), message)
    };
    let (status, kind, _) = refused(&body(json!({}))).await;
    assert_eq!((status, kind.as_str()), (500, "api_error"));
    let (status, kind, message) = refused(&body(json!({"max_tokens": null}))).await;
    assert_eq!((status, kind.as_str()), (400, "invalid_request_error"));
    assert!(message.contains("max_tokens"), "{message}");
    let image = json!({"messages": [{"role": "user", "content": [{"type": "image"}]}]});
    let (_, _, message) = refused(&body(image)).await;
    assert!(message.contains("messages[0].content[0].type"), "{message}");
    let (status, kind, _) = refused(&body(json!({"model": "other"}))).await;
    assert_eq!((status, kind.as_str()), (404, "not_found_error"));
    let (status, kind, _) = refused(&body(json!({"system": "x".repeat(3000)}))).await;
    assert_eq!((status, kind.as_str()), (413, "request_too_large"));

    // in the middle of a stream
    let answer = client::post(gateway.api, MESSAGES, &body(json!({"stream": true}))).await;
    let events = events(&answer);
    assert_eq!(events.last().unwrap()["error"]["type"], "api_error", "{events:?}");
    assert!(!kinds(&events).contains(&"message_stop"));

    worker.script.overloaded.store(true, Ordering::SeqCst);
    let answer = client::post(gateway.api, MESSAGES, &body(json!({}))).await;
    assert_eq!((answer.status.as_u16(), &answer.headers["retry-after"]), (429, &"1".parse().unwrap()));
    assert_eq!(answer.json()["error"]["type"], "rate_limit_error");
    eventually("nothing is left", || worker.active() == 0).await;
}

#[tokio::test]
async fn tokens_of_a_message_are_counted() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let asked = json!({"model": MODEL, "system": "abc", "messages": [{"role": "user", "content": "de"}],
                       "tools": [{"name": "f", "input_schema": {}}]});
    let answer = client::post(gateway.api, "/v1/messages/count_tokens", &asked).await;
    assert_eq!(answer.json(), json!({"input_tokens": 5}));
    let seen = worker.script.chats();
    assert_eq!(seen[0].functions, ["{\"name\":\"f\",\"parameters\":{}}"]);
    let wrong = client::post(gateway.api, "/v1/messages/count_tokens", &json!({"model": MODEL})).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["type"]), (400, &json!("error")));
}
