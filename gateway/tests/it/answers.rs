//! Several answers, probabilities, calls, echoes: each comes once and whole, whatever happens to the workers.
use std::{sync::atomic::Ordering, time::Duration};

use belay_proto::inference::{GenerateResponse, Options};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tonic::Code;

use crate::support::{
    Fault, LONG, MODEL, Worker, answer, call_id, eventually, gateway, generate, http as client, logprob,
    metric, request, text,
};

const CHAT: &str = "/v1/chat/completions";
const COMPLETIONS: &str = "/v1/completions";
const LENGTH: u32 = 12;

fn expected(prompt: &str, seed: u64) -> Vec<u8> {
    answer(prompt, seed, LENGTH as usize)
}

fn said(prompt: &str, seed: u64) -> String {
    String::from_utf8_lossy(&expected(prompt, seed)).into_owned()
}

/// Workers that all fail in the middle, and one that does not.
async fn unsound_workers() -> Vec<Worker> {
    let mut workers = Vec::new();
    for faults in [[Fault::StepLost(3), Fault::Ends(1)], [Fault::Cut(2), Fault::StepLost(0)]] {
        workers.push(Worker::with_faults(&faults).await);
    }
    workers.push(Worker::start().await);
    workers
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": MODEL, "messages": [{"role": "user", "content": "hi"}], "seed": 7,
                          "max_tokens": LENGTH});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

#[tokio::test]
async fn several_answers_come_whole_from_workers_that_fail() {
    let workers = unsound_workers().await;
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let object = client::post(gateway.api, CHAT, &chat(json!({"n": 3}))).await.json();
    let choices = object["choices"].as_array().unwrap();
    for (index, choice) in choices.iter().enumerate() {
        assert_eq!(choice["index"], index);
        assert_eq!(choice["message"]["content"], said("user: hi", 7 + index as u64), "{object}");
    }
    assert_eq!(choices.len(), 3);
    let usage = &object["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(3), &json!(36)), "one prompt");
    assert_eq!(
        metric(&gateway, "belay_gateway_tokens_total{model=\"nano\",kind=\"completion\"}").await,
        36.0
    );

    let streamed = chat(json!({"n": 3, "stream": true, "stream_options": {"include_usage": true}}));
    let chunks = client::post(gateway.api, CHAT, &streamed).await.chunks();
    for index in 0..3u64 {
        let mine = chunks.iter().filter_map(|chunk| chunk["choices"].get(0)).filter(|c| c["index"] == index);
        let mine: Vec<_> = mine.collect();
        let content: String = mine.iter().filter_map(|choice| choice["delta"]["content"].as_str()).collect();
        assert_eq!(content, said("user: hi", 7 + index));
        assert_eq!(mine[0]["delta"]["role"], "assistant");
        assert_eq!(mine.iter().filter(|choice| !choice["finish_reason"].is_null()).count(), 1);
    }
    assert_eq!(chunks.last().unwrap()["usage"]["completion_tokens"], 36);
}

#[tokio::test]
async fn several_answers_over_grpc() {
    let workers = unsound_workers().await;
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    let mut several = request("p", LENGTH);
    several.sampling.as_mut().unwrap().n = Some(2);
    let pieces = generate(&gateway, several.clone()).await.unwrap();
    for index in 0..2 {
        let mine: Vec<GenerateResponse> =
            pieces.iter().filter(|piece| piece.index == index).cloned().collect();
        assert_eq!(text(&mine), said("p", 7 + u64::from(index)));
        assert_eq!(mine.last().unwrap().usage.unwrap().completion_tokens, LENGTH);
    }
    let mut resumed = several.clone();
    resumed.resume_ids = vec![1097];
    let status = generate(&gateway, resumed).await.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::InvalidArgument, "resume_ids: must be empty with n > 1")
    );
    several.sampling.as_mut().unwrap().n = Some(5000);
    assert_eq!(generate(&gateway, several).await.unwrap_err().code(), Code::InvalidArgument);
}

#[tokio::test]
async fn one_answer_that_fails_fails_the_request_and_cancels_the_others() {
    let worker = Worker::with_faults(&[Fault::Breaks(2)]).await;
    worker.script.pace.store(3, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let long = chat(json!({"n": 3, "stream": true, "max_tokens": 100_000}));
    let events = client::post(gateway.api, CHAT, &long).await.events();
    let last: Value = serde_json::from_str(events.last().unwrap()).unwrap();
    assert_eq!(last["error"]["code"], "worker_failed");
    eventually("the others are cancelled", || worker.active() == 0).await;
}

#[tokio::test]
async fn probabilities_come_once_for_each_token() {
    let wanted: Vec<f64> = (0..LENGTH as usize).map(|place| f64::from(logprob(place, 0))).collect();
    for stream in [false, true] {
        let workers = unsound_workers().await;
        let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
        let asked = chat(json!({"logprobs": true, "top_logprobs": 2, "stream": stream}));
        let answer = client::post(gateway.api, CHAT, &asked).await;
        let choices: Vec<Value> = match stream {
            false => vec![answer.json()["choices"][0].clone()],
            true => answer.chunks().iter().map(|chunk| chunk["choices"][0].clone()).collect(),
        };
        let tokens = choices.iter().filter_map(|choice| choice["logprobs"]["content"].as_array()).flatten();
        let tokens: Vec<_> = tokens.collect();
        let found: Vec<f64> = tokens.iter().map(|token| token["logprob"].as_f64().unwrap()).collect();
        assert_eq!(found, wanted, "stream: {stream}");
        let bytes: Vec<u64> = tokens.iter().map(|token| token["bytes"][0].as_u64().unwrap()).collect();
        let said: Vec<u64> = expected("user: hi", 7).into_iter().map(u64::from).collect();
        assert_eq!(bytes, said);
        assert!(tokens.iter().all(|token| token["top_logprobs"].as_array().unwrap().len() == 2));
    }
}

#[tokio::test]
async fn a_call_comes_once_whichever_workers_make_it() {
    let tool = json!({"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}});
    let named = json!({"type": "function", "function": {"name": "look"}});
    let id = call_id(&expected("user: hi", 7));
    for stream in [false, true] {
        let workers = unsound_workers().await;
        let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
        let asked = chat(json!({"tools": [tool], "tool_choice": named, "stream": stream}));
        let answer = client::post(gateway.api, CHAT, &asked).await;
        let (call, reason) = match stream {
            false => {
                let choice = answer.json()["choices"][0].clone();
                assert_eq!(choice["message"]["content"], Value::Null);
                (choice["message"]["tool_calls"][0].clone(), choice["finish_reason"].clone())
            }
            true => {
                let chunks = answer.chunks();
                let parts =
                    chunks.iter().filter_map(|chunk| chunk["choices"][0]["delta"]["tool_calls"].get(0));
                let parts: Vec<_> = parts.collect();
                assert!(parts.iter().all(|part| part["index"] == 0));
                assert_eq!(parts.iter().filter(|part| part.get("id").is_some()).count(), 1);
                let arguments = parts.iter().map(|part| part["function"]["arguments"].as_str().unwrap());
                let arguments: String = arguments.collect();
                let mut call = parts[0].clone();
                call.as_object_mut().unwrap().remove("index");
                call["function"]["arguments"] = arguments.into();
                (call, chunks.last().unwrap()["choices"][0]["finish_reason"].clone())
            }
        };
        let function = json!({"name": "look", "arguments": said("user: hi", 7)});
        assert_eq!(call, json!({"id": id, "type": "function", "function": function}), "stream: {stream}");
        assert_eq!(reason, "tool_calls");
        let seen = workers.iter().flat_map(|worker| worker.script.chats()).next().unwrap();
        assert_eq!(seen.functions, ["{\"name\":\"look\",\"parameters\":{\"type\":\"object\"}}"]);
    }
}

#[tokio::test]
async fn an_echo_and_its_scores_come_once() {
    let workers = unsound_workers().await;
    for worker in &workers {
        worker.script.batch.store(2, Ordering::SeqCst);
    }
    let gateway = gateway(&workers.iter().collect::<Vec<_>>(), &[]).await;
    for stream in [false, true] {
        let asked = json!({"model": MODEL, "prompt": "abc", "echo": true, "logprobs": 1, "seed": 7,
                           "max_tokens": LENGTH, "stream": stream});
        let answer = client::post(gateway.api, COMPLETIONS, &asked).await;
        let choices: Vec<Value> = match stream {
            false => vec![answer.json()["choices"][0].clone()],
            true => answer.chunks().iter().map(|chunk| chunk["choices"][0].clone()).collect(),
        };
        let text: String = choices.iter().map(|choice| choice["text"].as_str().unwrap()).collect();
        assert_eq!(text, format!("abc{}", said("abc", 7)));
        let list = |name: &str| -> Vec<Value> {
            let lists = choices.iter().filter_map(|choice| choice["logprobs"][name].as_array());
            lists.flatten().cloned().collect()
        };
        assert_eq!(list("tokens").len(), 3 + LENGTH as usize, "stream: {stream}");
        assert_eq!(list("text_offset")[..4], [json!(0), json!(1), json!(2), json!(3)]);
        assert_eq!(list("token_logprobs")[..2], [Value::Null, json!(logprob(1, 0))]);
        assert_eq!(list("top_logprobs")[0], Value::Null);
    }
}

#[tokio::test]
async fn a_batch_of_prompts_is_answered_in_order() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    let asked =
        json!({"model": MODEL, "prompt": ["a", "b", [1, 2]], "n": 2, "seed": 7, "max_tokens": LENGTH});
    let object = client::post(gateway.api, COMPLETIONS, &asked).await.json();
    let texts: Vec<_> = object["choices"].as_array().unwrap().iter().map(|c| c["text"].clone()).collect();
    let prompts = ["a", "b", "[1, 2]"];
    let wanted: Vec<_> = prompts.iter().flat_map(|prompt| [said(prompt, 7), said(prompt, 8)]).collect();
    assert_eq!(texts, wanted);
    let usage = &object["usage"];
    assert_eq!((&usage["prompt_tokens"], &usage["completion_tokens"]), (&json!(9), &json!(72)));
    let mut of_workers: Vec<_> = worker.script.seen().into_iter().map(|seen| seen.request_id).collect();
    of_workers.sort();
    of_workers.dedup();
    assert_eq!(of_workers.len(), 6, "each answer has an id of its own");
}

#[tokio::test]
async fn tokens_of_text_and_conversations() {
    let worker = Worker::with_faults(&[Fault::StepLost(0)]).await;
    let gateway = gateway(&[&worker], &[]).await;
    let asked = json!({"prompt": "ab", "return_token_strs": true});
    let object = client::post(gateway.api, "/tokenize", &asked).await.json();
    let wanted = json!({"count": 2, "max_model_len": 512, "tokens": [1097, 1098], "token_strs": ["a", "b"]});
    assert_eq!(object, wanted);
    let asked = json!({"model": MODEL, "messages": [{"role": "user", "content": "abc"}], "thinking": {"type": "enabled"}});
    assert_eq!(client::post(gateway.api, "/tokenize", &asked).await.json()["count"], 3);
    assert_eq!(worker.script.chats()[0].thinking, Some(true));
    let asked = json!({"tokens": [1104, 1105]});
    assert_eq!(client::post(gateway.api, "/detokenize", &asked).await.json(), json!({"prompt": "hi"}));
    let wrong = client::post(gateway.api, "/detokenize", &json!({"tokens": [5]})).await;
    assert_eq!((wrong.status.as_u16(), &wrong.json()["error"]["param"]), (400, &json!("tokens")));
    let unknown = client::post(gateway.api, "/tokenize", &json!({"prompt": "a", "model": "other"})).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn a_deadline_ends_a_request_wherever_it_is() {
    let worker = Worker::start().await;
    worker.script.stalled.store(true, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let late = |milliseconds| {
        let mut late = request("p", LENGTH);
        late.options = Some(Options { timeout_milliseconds: Some(milliseconds), ..Options::default() });
        late
    };
    let status = generate(&gateway, late(150)).await.unwrap_err();
    assert_eq!(status.code(), Code::DeadlineExceeded);
    let told = worker.script.seen()[0].timeout.unwrap();
    assert!((1..=150).contains(&told), "the worker is told what is left: {told}");
    eventually("the worker is free", || worker.active() == 0).await;
    // while it is held
    worker.script.draining.store(true, Ordering::SeqCst);
    assert_eq!(generate(&gateway, late(50)).await.unwrap_err().code(), Code::DeadlineExceeded);
    // gRPC's own
    let mut grpc = belay_proto::inference::inference_client::InferenceClient::new(
        crate::support::channel(&gateway).await,
    );
    let mut asked = tonic::Request::new(request("p", LENGTH));
    asked.metadata_mut().insert("grpc-timeout", "40m".parse().unwrap());
    let mut stream = grpc.generate(asked).await.unwrap().into_inner();
    assert_eq!(stream.message().await.unwrap_err().code(), Code::DeadlineExceeded);
}

#[tokio::test]
async fn a_client_that_half_closes_has_gone() {
    let worker = Worker::start().await;
    worker.script.pace.store(5, Ordering::SeqCst);
    let gateway = gateway(&[&worker], &[]).await;
    let body = chat(json!({"max_tokens": 100_000, "stream": true})).to_string();
    let mut socket = tokio::net::TcpStream::connect(gateway.api).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: {}\r\n\r\n{body}", body.len());
    socket.write_all(head.as_bytes()).await.unwrap();
    eventually("the request runs", || worker.active() == 1).await;
    socket.shutdown().await.unwrap();
    eventually("the request is cancelled", || worker.active() == 0).await;
    // half a body, then nothing more to come
    let mut socket = tokio::net::TcpStream::connect(gateway.api).await.unwrap();
    let head = format!("POST {CHAT} HTTP/1.1\r\nhost: x\r\ncontent-length: 1000\r\n\r\n{{");
    socket.write_all(head.as_bytes()).await.unwrap();
    socket.shutdown().await.unwrap();
    let mut answer = Vec::new();
    tokio::time::timeout(LONG, socket.read_to_end(&mut answer)).await.expect("an end").unwrap();
    let answer = String::from_utf8_lossy(&answer).into_owned();
    assert!(answer.is_empty() || answer.starts_with("HTTP/1.1 400"), "{answer}");
}

#[tokio::test]
async fn slow_readers_hold_back_their_own_answers_and_no_others() {
    let worker = Worker::start().await;
    // all of it runs on one thread, which has more to do than to answer pings
    let gateway = gateway(&[&worker], &["--keep-alive-seconds", "60"]).await;
    worker.script.batch.store(50, Ordering::SeqCst);
    // some 80 MB each, far more than the sockets and windows in between hold
    let body = chat(json!({"max_tokens": 60_000, "stream": true, "logprobs": true, "top_logprobs": 20}));
    let mut slow = Vec::new();
    for _ in 0..4 {
        slow.push(client::open(gateway.api, http::Method::POST, CHAT, body.to_string()).await);
    }
    // until nothing moves any more
    let mut before = usize::MAX;
    while worker.script.sent.load(Ordering::SeqCst) != before {
        before = worker.script.sent.load(Ordering::SeqCst);
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
    let quick = client::post(gateway.api, CHAT, &chat(json!({}))).await;
    assert_eq!(quick.status, 200);
    assert_eq!(worker.active(), 4, "none of the slow ones is over");
    drop(slow);
    eventually("the slow ones are cancelled", || worker.active() == 0).await;
}
