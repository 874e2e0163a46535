//! The chat format beyond what the evaluation prompts of the nano model show.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use belay_engine::chat::{ChatError, Conversation, encode};
use serde_json::{Value, json};

fn conversation(messages: Value) -> Conversation {
    Conversation { messages: serde_json::from_value(messages).unwrap(), ..Conversation::default() }
}

fn prompt(messages: Value) -> String {
    encode(&conversation(messages)).unwrap()
}

fn thinking_prompt(messages: Value) -> String {
    encode(&Conversation { thinking: true, ..conversation(messages) }).unwrap()
}

fn tool() -> Value {
    json!({"type": "function", "function": {"name": "f", "parameters": {"type": "object"}}})
}

#[test]
fn turns_follow_each_other_without_separators() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "b"},
        {"role": "user", "content": "c"},
        {"role": "user", "content": [{"type": "text", "text": "d"}, {"type": "image_url", "image_url": {}}]},
    ]);
    assert_eq!(
        prompt(messages),
        "<｜begin▁of▁sentence｜>S<｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜>\
         <｜User｜>c\n\nd\n\n[Unsupported image_url]<｜Assistant｜></think>"
    );
}

#[test]
fn reasoning_of_earlier_turns_is_dropped_while_thinking() {
    let messages = json!([
        {"role": "developer", "content": "old"},
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning_content": "hm", "content": "b"},
        {"role": "developer", "content": "c"},
    ]);
    assert_eq!(
        thinking_prompt(messages.clone()),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜><think>"
    );
    // Without thinking there is no reasoning to drop, and developer messages stay.
    assert_eq!(
        prompt(messages),
        "<｜begin▁of▁sentence｜><｜User｜>old<｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜>\
         <｜User｜>c<｜Assistant｜></think>"
    );
}

#[test]
fn tools_keep_reasoning_and_go_into_a_system_message() {
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning": "hm", "content": "b"},
        {"role": "user", "content": "c"},
    ]);
    let tools = vec![tool(), tool()];
    let text = encode(&Conversation { thinking: true, tools, ..conversation(messages) }).unwrap();
    assert!(text.starts_with("<｜begin▁of▁sentence｜>\n\n## Tools\n\nYou have access"), "{text}");
    let schema = r#"{"name": "f", "parameters": {"type": "object"}}"#;
    assert!(
        text.contains(&format!("### Available Tool Schemas\n\n{schema}\n{schema}\n\nYou MUST")),
        "{text}"
    );
    assert!(
        text.ends_with(
            "tool calls.\n<｜User｜>a<｜Assistant｜><think>hm</think>b<｜end▁of▁sentence｜><｜User｜>c<｜Assistant｜><think>"
        ),
        "{text}"
    );
}

#[test]
fn extras_follow_a_leading_developer_message() {
    let conversation = Conversation {
        response_format: Some(json!({"type": "object"})),
        ..conversation(json!([{"role": "developer", "content": "a"}]))
    };
    assert_eq!(
        encode(&conversation).unwrap(),
        "<｜begin▁of▁sentence｜><｜User｜>a\n\n## Response Format:\n\nYou MUST strictly adhere to the following schema to \
         reply:\n{\"type\": \"object\"}<｜Assistant｜></think>"
    );
}

#[test]
fn the_response_format_stays_when_the_developer_message_around_it_is_old() {
    let conversation = Conversation {
        thinking: true,
        response_format: Some(json!({"type": "object"})),
        ..conversation(json!([
            {"role": "developer", "content": "a"},
            {"role": "assistant", "content": "b"},
            {"role": "user", "content": "c"},
        ]))
    };
    let text = encode(&conversation).unwrap();
    assert!(text.contains("schema to reply:\n{\"type\": \"object\"}"), "{text}");
}

#[test]
fn calls_are_written_in_dsml_and_results_in_the_order_of_the_calls() {
    let messages = json!([
        {"role": "user", "content": "q"},
        {"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": \"x\\n<b>\", \"n\": [1, 2]}"}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": "no object"}},
        ]},
        {"role": "tool", "tool_call_id": "2", "content": "second"},
        {"role": "tool", "tool_call_id": "1", "content": "first"},
        {"role": "user", "content": "go on"},
    ]);
    assert_eq!(
        prompt(messages),
        "<｜begin▁of▁sentence｜><｜User｜>q<｜Assistant｜></think>\n\n\
         <｜DSML｜tool_calls>\n\
         <｜DSML｜invoke name=\"f\">\n\
         <｜DSML｜parameter name=\"a\" string=\"true\">x\n<b></｜DSML｜parameter>\n\
         <｜DSML｜parameter name=\"n\" string=\"false\">[1, 2]</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n\
         <｜DSML｜invoke name=\"g\">\n\
         <｜DSML｜parameter name=\"arguments\" string=\"true\">no object</｜DSML｜parameter>\n\
         </｜DSML｜invoke>\n\
         </｜DSML｜tool_calls><｜end▁of▁sentence｜>\
         <｜User｜><tool_result>first</tool_result>\n\n<tool_result>second</tool_result>\n\ngo on<｜Assistant｜></think>"
    );
}

#[test]
fn a_reminder_has_its_own_marker() {
    let messages = json!([
        {"role": "system", "content": "S"},
        {"role": "latest_reminder", "content": "today"},
        {"role": "user", "content": "a"},
    ]);
    assert_eq!(
        prompt(messages),
        "<｜begin▁of▁sentence｜>S<｜latest_reminder｜>today<｜User｜>a<｜Assistant｜></think>"
    );
}

#[test]
fn a_prefix_is_left_open() {
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning": "hm", "content": "The ans", "prefix": true},
    ]);
    assert_eq!(
        thinking_prompt(messages.clone()),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜><think>hm</think>The ans"
    );
    assert_eq!(prompt(messages), "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜></think>The ans");
}

#[test]
fn refusals_name_the_message() {
    let refusal = |messages| encode(&conversation(messages)).unwrap_err();
    let user = json!({"role": "user", "content": "a"});
    let assistant = json!({"role": "assistant", "content": "b", "prefix": true});
    assert_eq!(refusal(json!([])), ChatError::Empty);
    assert_eq!(
        refusal(json!([user, {"role": "usr"}])).to_string(),
        "messages[1].role: \"usr\" is unknown; expected system, developer, user, assistant, tool or latest_reminder"
    );
    assert_eq!(
        refusal(json!([user, {"role": "assistant", "content": "b"}])),
        ChatError::AlreadyAnswered { index: 1 }
    );
    assert_eq!(refusal(json!([user, assistant, user])), ChatError::MisplacedPrefix { index: 1 });
    assert_eq!(refusal(json!([{"role": "system"}])), ChatError::NoCue { role: "system".into() });
    assert_eq!(
        refusal(json!([{"role": "latest_reminder"}])),
        ChatError::NoCue { role: "latest_reminder".into() }
    );
    let without_function = Conversation { tools: vec![tool(), json!({})], ..conversation(json!([user])) };
    assert_eq!(encode(&without_function).unwrap_err().to_string(), "tools[1].function: missing");
}

/// Conversations made up at random, encoded by the nano model's training code (`train/chat.py`), which agreed with the
/// published encoder on 1500 others.
#[test]
fn conversations_become_the_same_text_as_in_training() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let conversation = Conversation {
            tools: case["tools"].as_array().cloned().unwrap_or_default(),
            response_format: case.get("response_format").cloned(),
            thinking: case["thinking"].as_bool().unwrap(),
            ..conversation(case["messages"].clone())
        };
        assert_eq!(encode(&conversation).unwrap(), case["prompt"].as_str().unwrap(), "{line}");
        count += 1;
    }
    assert_eq!(count, 60);
}
