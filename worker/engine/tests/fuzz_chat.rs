//! The chat format under whatever clients and models may send: never a panic, and what is refused is named.
//!
//! Inputs are requests with the right names and any values, real requests with some bytes changed, and real replies with
//! some parts changed. A plain test on a stable compiler has no coverage to be guided by; what leads deep is the
//! dictionary of the format in the generators. `PROPTEST_CASES` runs more.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::sync::LazyLock;

use belay_engine::chat::{
    ChatError, Defaults, Encoding, ReplyEvent, ReplyParser, encode, ends_in_reasoning, from_openai, render,
    tool_grammar,
};
use proptest::prelude::*;
use serde_json::{Map, Value};

/// Names that the format gives a meaning to.
const NAMES: [&str; 34] = [
    "role",
    "content",
    "type",
    "text",
    "reasoning",
    "reasoning_content",
    "tool_calls",
    "tool_call_id",
    "id",
    "function",
    "name",
    "arguments",
    "prefix",
    "wo_eos",
    "tools",
    "response_format",
    "task",
    "parameters",
    "properties",
    "required",
    "enum",
    "const",
    "anyOf",
    "$ref",
    "additionalProperties",
    "items",
    "json_schema",
    "schema",
    "thinking",
    "drop_thinking",
    "tool_choice",
    "messages",
    "reasoning_effort",
    "chat_template_kwargs",
];

/// Texts that the format gives a meaning to.
const WORDS: [&str; 36] = [
    "system",
    "developer",
    "user",
    "assistant",
    "tool",
    "latest_reminder",
    "text",
    "image_url",
    "action",
    "title",
    "function",
    "f",
    "g",
    "auto",
    "none",
    "required",
    "max",
    "low",
    "enabled",
    "json_schema",
    "json_object",
    "string",
    "object",
    "integer",
    "#",
    "#/properties/a",
    "{\"a\": 1}",
    "[1]",
    "<think>",
    "</think>",
    "<｜Assistant｜>",
    "<｜DSML｜tool_calls>",
    "</｜DSML｜parameter>",
    "\"",
    "\u{0}",
    "🦀",
];

fn word() -> impl Strategy<Value = String> {
    prop_oneof![4 => prop::sample::select(WORDS.as_slice()).prop_map(str::to_owned), 1 => "(?s).{0,6}"]
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        word().prop_map(Value::from),
    ];
    leaf.prop_recursive(4, 24, 4, |inner| {
        let name =
            prop_oneof![6 => prop::sample::select(NAMES.as_slice()).prop_map(str::to_owned), 1 => word()];
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::vec((name, inner), 0..5)
                .prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

/// An object with fields that it must have and fields that it may have, seldom without one of the first, and seldom with
/// a value of another form.
fn object(
    must: Vec<(&'static str, BoxedStrategy<Value>)>,
    may: Vec<(&'static str, BoxedStrategy<Value>)>,
) -> BoxedStrategy<Value> {
    let field = |(name, value): (&'static str, BoxedStrategy<Value>), left_out| {
        let value = prop_oneof![
            80 => value.prop_map(Some),
            1 => any_json().prop_map(Some),
            left_out => Just(None),
        ];
        value.prop_map(move |value| value.map(|value| (name.to_owned(), value)))
    };
    let must = must.into_iter().map(|named| field(named, 1));
    let fields: Vec<_> = must.chain(may.into_iter().map(|named| field(named, 160))).collect();
    fields.prop_map(|fields| Value::Object(fields.into_iter().flatten().collect::<Map<_, _>>())).boxed()
}

fn text() -> BoxedStrategy<Value> {
    word().prop_map(Value::from).boxed()
}

fn one_of(words: &'static [&'static str]) -> BoxedStrategy<Value> {
    prop::sample::select(words).prop_map(Value::from).boxed()
}

fn some(value: BoxedStrategy<Value>) -> BoxedStrategy<Value> {
    prop::collection::vec(value, 0..4).prop_map(Value::from).boxed()
}

fn call() -> BoxedStrategy<Value> {
    let function = object(vec![("name", text())], vec![("arguments", text())]);
    object(vec![("function", function)], vec![("id", text())])
}

fn tool() -> BoxedStrategy<Value> {
    let parameters = object(vec![("properties", any_json().boxed())], vec![("required", some(text()))]);
    let function = object(vec![("name", one_of(&["f", "g", "\n\"<"]))], vec![("parameters", parameters)]);
    object(vec![("function", function)], vec![("type", text())])
}

fn message() -> BoxedStrategy<Value> {
    let part = object(vec![("type", one_of(&["text", "text", "image_url"])), ("text", text())], vec![]);
    let content = prop_oneof![text(), some(part)].boxed();
    let flag = || any::<bool>().prop_map(Value::from).boxed();
    let role = |role| ("role", one_of(role));
    prop_oneof![
        8 => object(vec![role(&["user", "tool"]), ("content", content.clone())], vec![("tool_call_id", text())]),
        2 => object(
            vec![role(&["user", "developer"]), ("content", content.clone())],
            vec![("task", one_of(&["action", "query", "authority", "domain", "title", "read_url"]))],
        ),
        4 => object(
            vec![role(&["assistant"])],
            vec![
                ("content", content.clone()),
                ("reasoning", text()),
                ("tool_calls", some(call())),
                ("wo_eos", flag()),
            ],
        ),
        1 => object(vec![role(&["assistant"])], vec![("prefix", flag())]),
        4 => object(
            vec![role(&["system", "developer"]), ("content", content.clone())],
            vec![("tools", some(tool())), ("response_format", any_json().boxed())],
        ),
        1 => object(vec![role(&["latest_reminder"]), ("content", content)], vec![]),
    ]
    .boxed()
}

fn request() -> BoxedStrategy<Value> {
    let flag = || any::<bool>().prop_map(Value::from).boxed();
    let switch = object(vec![("type", one_of(&["enabled", "disabled"]))], vec![]);
    let question = object(vec![("role", one_of(&["user"])), ("content", text())], vec![]);
    let messages = (prop::collection::vec(message(), 0..6), prop::option::of(question));
    let messages = messages.prop_map(|(messages, last)| messages.into_iter().chain(last).collect::<Value>());
    object(
        vec![("messages", messages.boxed())],
        vec![
            ("tools", some(tool())),
            ("tool_choice", one_of(&["auto", "none", "required"])),
            ("reasoning_effort", text()),
            ("thinking", switch),
            ("chat_template_kwargs", object(vec![], vec![("thinking", flag()), ("drop_thinking", flag())])),
            ("continue_final_message", flag()),
        ],
    )
}

fn defaults(is_july: bool, thinking: bool) -> Defaults {
    Defaults { encoding: if is_july { Encoding::July } else { Encoding::April }, thinking }
}

/// All that a server does with the body of a request before the model sees it.
fn serve(body: &str, defaults: Defaults) -> Result<(), ChatError> {
    let conversation = from_openai(body, defaults)?;
    let text = render(&conversation)?;
    assert!(text.starts_with("<｜begin▁of▁sentence｜>"));
    let tools = conversation.callable_tools();
    tool_grammar(&tools, &conversation.tool_choice, false)?;
    let parser = ReplyParser::new(ends_in_reasoning(&text), &tools, "request");
    assert!(conversation.thinking || !parser.in_reasoning() || text.contains("<think>"));
    assert_eq!(encode(&conversation)?, text);
    Ok(())
}

/// An error begins with a field of a request, or says that the whole is none.
fn names_a_field(error: &ChatError) -> bool {
    let text = error.to_string();
    NAMES.iter().chain(&["continue_final_message"]).any(|name| text.starts_with(name))
        || text.starts_with("request: ")
}

fn cases() -> Vec<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

static REQUESTS: LazyLock<Vec<String>> =
    LazyLock::new(|| cases().iter().map(|case| case["request"].to_string()).collect());

/// Replies with calls, out of the prompts of the requests.
static REPLIES: LazyLock<Vec<String>> = LazyLock::new(|| {
    let cases = cases();
    let prompts = cases.iter().filter_map(|case| case["prompt"].as_str());
    let replies = prompts.flat_map(|prompt| prompt.split("<｜Assistant｜>").skip(1));
    replies.filter(|reply| reply.contains("<｜DSML｜")).map(str::to_owned).collect()
});

/// A change of a few bytes somewhere.
#[derive(Clone, Debug)]
enum Change {
    Put(prop::sample::Index, String),
    Drop(prop::sample::Index, usize),
    Repeat(prop::sample::Index, usize),
}

fn changes() -> impl Strategy<Value = Vec<Change>> {
    let place = any::<prop::sample::Index>;
    let part = prop_oneof![
        word(),
        prop::sample::select(NAMES.as_slice()).prop_map(str::to_owned),
        "[\\[\\]{},:\"]{1,3}"
    ];
    prop::collection::vec(
        prop_oneof![
            (place(), part).prop_map(|(place, part)| Change::Put(place, part)),
            (place(), 1..20usize).prop_map(|(place, length)| Change::Drop(place, length)),
            (place(), 1..60usize).prop_map(|(place, length)| Change::Repeat(place, length)),
        ],
        1..5,
    )
}

fn changed(text: &str, changes: &[Change]) -> String {
    let mut bytes = text.as_bytes().to_vec();
    for change in changes {
        let (Change::Put(place, _) | Change::Drop(place, _) | Change::Repeat(place, _)) = change;
        let from = place.index(bytes.len() + 1);
        let to = |length: &usize| bytes.len().min(from + length);
        let (to, put) = match change {
            Change::Put(_, part) => (from, part.as_bytes().to_vec()),
            Change::Drop(_, length) => (to(length), Vec::new()),
            Change::Repeat(_, length) => (from, bytes[from..to(length)].to_vec()),
        };
        bytes.splice(from..to, put);
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn said(events: &[ReplyEvent]) -> (String, Vec<String>) {
    let (mut text, mut calls) = (String::new(), Vec::new());
    for event in events {
        match event {
            ReplyEvent::Reasoning(part) | ReplyEvent::Content(part) => text.push_str(part),
            ReplyEvent::ToolCallBegin { name, .. } => calls.push(name.clone()),
            ReplyEvent::ToolCallArguments { index, text } => calls[*index].push_str(text),
            ReplyEvent::ToolCallEnd { index } => calls[*index].push('.'),
        }
    }
    (text, calls)
}

fn more_cases() -> ProptestConfig {
    let default = ProptestConfig::default();
    ProptestConfig { cases: default.cases.max(3000), ..default }
}

proptest! {
    #![proptest_config(more_cases())]

    #[test]
    fn a_request_with_any_values_is_encoded_or_refused_by_name(
        request in request(),
        is_july: bool,
        thinking: bool,
    ) {
        if let Err(error) = serve(&request.to_string(), defaults(is_july, thinking)) {
            prop_assert!(names_a_field(&error), "{}: {}", request, error);
        }
    }

    #[test]
    fn a_request_with_changed_bytes_is_encoded_or_refused_by_name(
        place: prop::sample::Index,
        changes in changes(),
        is_july: bool,
    ) {
        let body = changed(&REQUESTS[place.index(REQUESTS.len())], &changes);
        if let Err(error) = serve(&body, defaults(is_july, true)) {
            prop_assert!(names_a_field(&error), "{}: {}", body, error);
        }
    }

    #[test]
    fn a_reply_with_changed_bytes_is_taken_apart_the_same_however_it_is_cut(
        place: prop::sample::Index,
        changes in changes(),
        piece in 1..40usize,
        in_reasoning: bool,
        was_cut: bool,
    ) {
        let text = changed(&REPLIES[place.index(REPLIES.len())], &changes);
        let tools = [serde_json::json!({"function": {"name": "f0", "parameters": {"properties": {"x": {}}}}})];
        let parse = |pieces: Vec<String>| {
            let mut parser = ReplyParser::new(in_reasoning, &tools.iter().collect::<Vec<_>>(), "request");
            let mut events: Vec<ReplyEvent> = pieces.iter().flat_map(|piece| parser.push(piece)).collect();
            events.extend(parser.finish(was_cut));
            prop_assert!(parser.finish(was_cut).is_empty());
            Ok(said(&events))
        };
        let characters: Vec<char> = text.chars().collect();
        let pieces = characters.chunks(piece).map(|piece| piece.iter().collect()).collect();
        prop_assert_eq!(parse(pieces)?, parse(vec![text])?);
    }
}
