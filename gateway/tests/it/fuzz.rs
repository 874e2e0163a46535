//! Whatever a client sends: a translation or a refusal that says what is wrong, never a panic, in bounded time.
use std::time::{Duration, Instant};

use belay_gateway::{
    anthropic,
    edge::ApiError,
    life::{Call, MOST_ANSWERS},
    openai::{chat, completions, tokenize},
};
use http::Method;
use proptest::{prelude::*, sample::Index};
use serde_json::{Map, Value, json};

use crate::support::{MODEL, Worker, gateway, http as client};

/// Far more than any of these bodies takes.
const BOUND: Duration = Duration::from_secs(60);

/// Reads a body; gives the calls, if there are any.
type Read = fn(&Map<String, Value>) -> Result<Vec<Call>, ApiError>;

/// An API: its path, its reader, and a body that uses all of it.
fn apis() -> [(&'static str, Read, Value); 5] {
    let tool = json!({"type": "function", "function": {"name": "f", "description": "d", "parameters": {}}});
    let call = json!({"id": "c", "type": "function", "function": {"name": "f", "arguments": "{}"}});
    let messages = json!([
        {"role": "system", "content": [{"type": "text", "text": "a"}]},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": null, "reasoning_content": "r", "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "42"},
        {"role": "assistant", "content": "so", "prefix": true},
    ]);
    let common = json!({
        "model": MODEL, "temperature": 0.5, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "presence_penalty": 1,
        "frequency_penalty": 1, "repetition_penalty": 1.1, "logit_bias": {"5": 1}, "n": 2, "max_tokens": 5,
        "min_tokens": 1, "seed": 7, "stop": ["x"], "stop_token_ids": [1], "ignore_eos": true, "priority": 1,
        "cache_salt": "s", "stream": true, "stream_options": {"include_usage": true}, "user": "u"
    });
    let with = |extra: Value| {
        let mut body = common.clone();
        body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        body
    };
    let chat_body = with(json!({
        "messages": messages, "tools": [tool], "tool_choice": {"type": "function", "function": {"name": "f"}},
        "parallel_tool_calls": false, "response_format": {"type": "json_schema", "json_schema": {"schema": {}}},
        "reasoning_effort": "high", "thinking": {"type": "enabled"}, "logprobs": true, "top_logprobs": 3,
        "chat_template_kwargs": {"thinking": true, "drop_thinking": false}, "continue_final_message": true,
        "add_generation_prompt": false
    }));
    let completion_body = with(json!({"prompt": ["a", [1, 2]], "echo": true, "logprobs": 2, "best_of": 2,
                    "structured_outputs": {"regex": "a"}}));
    let blocks = json!([
        {"role": "user", "content": [{"type": "text", "text": "a"}]},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "t", "signature": ""},
            {"type": "text", "text": "b"}, {"type": "tool_use", "id": "c", "name": "f", "input": {"a": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "c", "content": "42"}]},
    ]);
    let message_body = json!({
        "model": MODEL, "max_tokens": 5, "system": [{"type": "text", "text": "s"}], "messages": blocks,
        "tools": [{"name": "f", "description": "d", "input_schema": {}}], "tool_choice": {"type": "tool", "name": "f"},
        "temperature": 0.5, "top_p": 0.5, "top_k": 3, "stop_sequences": ["x"], "stream": true,
        "thinking": {"type": "enabled", "budget_tokens": 2000, "display": "omitted"},
        "output_config": {"effort": "low", "format": {"type": "json_schema", "schema": {}}}
    });
    let tokenize_body =
        json!({"model": MODEL, "messages": messages, "tools": [tool], "return_token_strs": true});
    [
        ("/v1/chat/completions", |body| Ok(chat::read(body)?.calls), chat_body),
        ("/v1/completions", |body| Ok(completions::read(body)?.calls), completion_body),
        ("/v1/messages", |body| Ok(anthropic::request::read(body)?.calls), message_body),
        ("/tokenize", |body| tokenize::read(body).map(|_| Vec::new()), tokenize_body),
        (
            "/detokenize",
            |body| tokenize::read_ids(body).map(|_| Vec::new()),
            json!({"model": MODEL, "tokens": [1]}),
        ),
    ]
}

const WORDS: &[&str] =
    &["", "user", "assistant", "tool", "text", "function", "auto", "json_object", "tool_use", "enabled", "f"];

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3i64..200).prop_map(Value::from),
        ".{0,8}".prop_map(Value::from),
        prop::sample::select(WORDS).prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 12, 4, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec(("[a-z_]{0,8}|type|text|content|name", inner), 0..4)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// JSON pointers of everything in a body.
fn pointers(value: &Value, at: &str, found: &mut Vec<String>) {
    let mut below = |key: &str, value: &Value| {
        let at = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
        found.push(at.clone());
        pointers(value, &at, found);
    };
    match value {
        Value::Object(fields) => fields.iter().for_each(|(key, value)| below(key, value)),
        Value::Array(items) => {
            items.iter().enumerate().for_each(|(index, value)| below(&index.to_string(), value))
        }
        _ => {}
    }
}

/// Replaces one thing of a body; gives the parameter that it is in.
fn change(body: &mut Value, which: Index, by: Value) -> String {
    let mut all = Vec::new();
    pointers(body, "", &mut all);
    let pointer = which.get(&all);
    *body.pointer_mut(pointer).unwrap() = by;
    pointer.split('/').nth(1).unwrap().to_owned()
}

/// Parameters that can be at fault when another one changes.
fn may_be_blamed(changed: &str, blamed: &str) -> bool {
    const TOGETHER: [&[&str]; 6] = [
        &["tools", "tool_choice"],
        &["stream", "stream_options"],
        &["max_tokens", "max_completion_tokens", "min_tokens", "echo"],
        &["logprobs", "top_logprobs"],
        &["n", "best_of", "prompt"],
        &["messages", "prompt", "continue_final_message", "add_generation_prompt"],
    ];
    changed == blamed || TOGETHER.iter().any(|group| group.contains(&changed) && group.contains(&blamed))
}

fn check(result: Result<Vec<Call>, ApiError>) -> Option<ApiError> {
    match result {
        Ok(calls) => {
            let answers: usize = calls.iter().map(|call| call.answers() as usize).sum();
            assert!(answers <= MOST_ANSWERS);
            None
        }
        Err(error) => {
            assert_eq!(error.status, 400, "{error:?}");
            assert!(!error.body.message.is_empty());
            assert!(error.body.param.is_some(), "{error:?}");
            Some(error)
        }
    }
}

#[test]
fn the_bodies_that_are_changed_here_are_sound() {
    for (path, read, body) in apis() {
        read(body.as_object().unwrap()).unwrap_or_else(|error| panic!("{path}: {error:?}"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 3000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_body_with_one_thing_changed_is_read_or_the_parameter_is_blamed(
        api in 0usize..5, which: Index, by in json_value(),
    ) {
        let (path, read, mut body) = apis()[api].clone();
        let changed = change(&mut body, which, by);
        let begin = Instant::now();
        if let Some(error) = check(read(body.as_object().unwrap())) {
            let param = error.body.param.unwrap();
            let blamed = param.split(['.', '[']).next().unwrap();
            prop_assert!(may_be_blamed(&changed, blamed), "{path}: {changed} changed, {param} blamed: {body}");
        }
        prop_assert!(begin.elapsed() < BOUND);
    }

    #[test]
    fn a_body_with_many_things_changed_is_read_or_refused(
        api in 0usize..5, changes in prop::collection::vec((any::<Index>(), json_value()), 2..6),
    ) {
        let (_, read, mut body) = apis()[api].clone();
        for (which, by) in changes {
            change(&mut body, which, by);
        }
        check(read(body.as_object().unwrap()));
    }
}

/// Bodies that are large in one way each.
fn large() -> Vec<(&'static str, String)> {
    let deep = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
    let chat = |extra: String| {
        format!(
            "{{\"model\":\"{MODEL}\",\"max_tokens\":1,\"messages\":[{{\"role\":\"user\",\"content\":\"x\"}}],{extra}}}"
        )
    };
    let many = |item: &str, n: usize| vec![item; n].join(",");
    let tools: Vec<String> = (0..40_000)
        .map(|i| format!("{{\"type\":\"function\",\"function\":{{\"name\":\"f{i}\"}}}}"))
        .collect();
    vec![
        ("/v1/chat/completions", deep(200_000)),
        ("/v1/chat/completions", chat(format!("\"response_format\":{}", deep(100_000)))),
        ("/v1/chat/completions", chat(format!("\"stop\":[{}]", many("\"x\"", 500_000)))),
        ("/v1/chat/completions", chat(format!("\"tools\":[{}],\"n\":0", tools.join(",")))),
        ("/v1/chat/completions", chat(format!("\"messages\":[{}],\"n\":0", many("{}", 500_000)))),
        ("/v1/completions", format!("{{\"model\":\"{MODEL}\",\"prompt\":[{}]}}", many("\"x\"", 500_000))),
        ("/v1/completions", format!("{{\"model\":\"{MODEL}\",\"prompt\":\"{}\"}}", "x".repeat(10 << 20))),
        (
            "/v1/messages",
            format!("{{\"model\":\"{MODEL}\",\"max_tokens\":1,\"messages\":[{}]}}", many("1", 1_000_000)),
        ),
        ("/tokenize", format!("{{\"prompt\":\"{}\"}}", "\\ud800".repeat(100_000))),
        ("/detokenize", format!("{{\"tokens\":[{}]}}", many("-1", 1_000_000))),
    ]
}

#[tokio::test]
async fn over_http_it_is_an_answer_or_a_4xx_in_bounded_time() {
    let worker = Worker::start().await;
    let gateway = gateway(&[&worker], &[]).await;
    for (path, body) in large() {
        let begin = Instant::now();
        let answer = client::read(client::open(gateway.api, Method::POST, path, body).await).await;
        assert!([400, 413].contains(&answer.status.as_u16()), "{path}: {}", answer.status);
        assert!(answer.body.len() < 10_000, "{path}: the refusal is short");
        assert!(begin.elapsed() < BOUND, "{path}: {:?}", begin.elapsed());
    }
    assert!(worker.script.seen().is_empty(), "none of these reached a worker");

    let mut runner = proptest::test_runner::TestRunner::default();
    for turn in 0..100usize {
        use proptest::strategy::ValueTree;
        let strategy = (any::<Index>(), json_value());
        let (which, by) = strategy.new_tree(&mut runner).unwrap().current();
        let (path, _, mut body) = apis()[turn % 5].clone();
        change(&mut body, which, by);
        let text = body.to_string();
        let answer = client::read(client::open(gateway.api, Method::POST, path, text.clone()).await).await;
        let status = answer.status.as_u16();
        assert!(status == 200 || (400..500).contains(&status), "{path}: {status} for {text}");
    }
    let fine = json!({"model": MODEL, "prompt": "x", "max_tokens": 3});
    assert_eq!(client::post(gateway.api, "/v1/completions", &fine).await.status, 200);
}
