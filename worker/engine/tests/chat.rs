//! The chat format beyond what the evaluation prompts of the nano model show.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use belay_engine::chat::{
    ChatError, Conversation, Defaults, Effort, Encoding, Message, Task, ToolCall, ToolChoice, encode,
    ends_in_reasoning, from_openai, render,
};
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
    assert_eq!(
        refusal(json!([{"role": "latest_reminder"}])),
        ChatError::NoCue { role: "latest_reminder".into() }
    );
    assert_eq!(
        refusal(json!([user, {"role": "user", "wo_eos": true}])).to_string(),
        "messages[1].wo_eos: only assistant messages can have it"
    );
    assert_eq!(
        refusal(json!([{"role": "tool", "task": "title"}])).to_string(),
        "messages[0].task: only user and developer messages can have it"
    );
    let without_function = Conversation { tools: vec![tool(), json!({})], ..conversation(json!([user])) };
    assert_eq!(encode(&without_function).unwrap_err().to_string(), "tools[1].function: missing");
}

#[test]
fn choices_of_tools_are_checked() {
    let ask = |tools, tool_choice| {
        let user = conversation(json!([{"role": "user", "content": "a"}]));
        encode(&Conversation { tools, tool_choice, ..user }).map_err(|error| error.to_string())
    };
    let named = |name: &str| ToolChoice::Function(name.into());
    assert!(ask(vec![tool()], named("f")).is_ok());
    assert_eq!(ask(vec![tool()], named("g")).unwrap_err(), "tool_choice: \"g\" is not one of the tools");
    assert_eq!(ask(vec![], ToolChoice::Required).unwrap_err(), "tool_choice: there are no tools to call");
    assert_eq!(
        ask(vec![tool(), json!({"function": {}})], ToolChoice::Auto).unwrap_err(),
        "tools[1].function.name: must be a text, not empty"
    );
    let of_message = json!([{"role": "system", "tools": [tool(), {"function": {"name": 1}}]}]);
    assert_eq!(
        encode(&conversation(of_message)).unwrap_err().to_string(),
        "messages[0].tools[1].function.name: must be a text, not empty"
    );
}

#[test]
fn tools_that_must_not_be_called_are_not_shown_and_reasoning_stays_as_with_them() {
    let messages = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "reasoning": "hm", "content": "b"},
        {"role": "user", "content": "c"},
    ]);
    let hidden = Conversation {
        thinking: true,
        tools: vec![tool()],
        tool_choice: ToolChoice::None,
        ..conversation(messages)
    };
    assert_eq!(
        encode(&hidden).unwrap(),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜><think>hm</think>b<｜end▁of▁sentence｜>\
         <｜User｜>c<｜Assistant｜><think>"
    );
}

#[test]
fn a_conversation_that_is_answered_has_a_text_but_no_prompt() {
    let whole =
        conversation(json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]));
    assert_eq!(
        render(&whole).unwrap(),
        "<｜begin▁of▁sentence｜><｜User｜>a<｜Assistant｜></think>b<｜end▁of▁sentence｜>"
    );
    assert_eq!(encode(&whole).unwrap_err(), ChatError::AlreadyAnswered { index: 1 });
}

/// The published encoder ends in the middle of the system text; agents put reminders there, and vLLM writes the cue.
#[test]
fn a_last_message_by_the_system_is_answered() {
    let messages = json!([{"role": "user", "content": "a"}, {"role": "system", "content": "be brief"}]);
    assert_eq!(prompt(messages.clone()), "<｜begin▁of▁sentence｜><｜User｜>abe brief<｜Assistant｜></think>");
    assert!(thinking_prompt(messages).ends_with("be brief<｜Assistant｜><think>"));
}

#[test]
fn a_task_of_a_merged_message_is_kept() {
    let messages =
        json!([{"role": "user", "content": "a"}, {"role": "user", "content": "b", "task": "title"}]);
    assert_eq!(prompt(messages), "<｜begin▁of▁sentence｜><｜User｜>a\n\nb<｜title｜>");
}

#[test]
fn arguments_come_as_text_object_or_null() {
    let call = |arguments: Value| {
        let call = json!([{"function": {"name": "f", "arguments": arguments}}]);
        let messages = json!([{"role": "assistant", "tool_calls": call, "prefix": true}]);
        let text = prompt(messages);
        text.split_once("\"f\">\n").unwrap().1.split_once("\n</｜DSML｜invoke>").unwrap().0.to_owned()
    };
    let parameter =
        |value: &str| format!("<｜DSML｜parameter name=\"a\" string=\"false\">{value}</｜DSML｜parameter>");
    assert_eq!(call(json!("{\"a\":1}")), parameter("1"));
    assert_eq!(call(json!({"a": [1, 2]})), parameter("[1, 2]"));
    assert_eq!(call(json!(null)), "");
    assert_eq!(call(json!("")), "");
    assert_eq!(
        call(json!("[1]")),
        "<｜DSML｜parameter name=\"arguments\" string=\"true\">[1]</｜DSML｜parameter>"
    );
}

#[test]
fn both_names_of_reasoning_may_come_at_once() {
    let both: Message =
        serde_json::from_value(json!({"role": "assistant", "reasoning": null, "reasoning_content": "hm"}))
            .unwrap();
    assert_eq!(both.reasoning, "hm");
    let both: Message =
        serde_json::from_value(json!({"role": "assistant", "reasoning": "a", "reasoning_content": "b"}))
            .unwrap();
    assert_eq!(both.reasoning, "a");
}

#[test]
fn replies_begin_with_reasoning_after_an_open_think() {
    let begins = |messages: Value, thinking| {
        ends_in_reasoning(&render(&Conversation { thinking, ..conversation(messages) }).unwrap())
    };
    let user = json!({"role": "user", "content": "what does </think> or <think> mean?"});
    assert!(begins(json!([user]), true));
    assert!(!begins(json!([user]), false));
    assert!(!begins(json!([user, {"role": "assistant", "prefix": true, "content": "b"}]), true));
    assert!(begins(json!([user, {"role": "assistant", "prefix": true, "content": "<think>"}]), false));
    assert!(begins(json!([user, {"role": "latest_reminder", "content": "x"}]), true));
    assert!(!begins(json!([{"role": "user", "content": "a", "task": "action"}]), true));
    assert!(!begins(json!([{"role": "user", "content": "a", "task": "title"}]), true));
    assert!(!ends_in_reasoning("plain <think>"));
}

/// Text that stands before the conversation for each `reasoning_effort`, as `thinking` or not: vLLM's table.
#[test]
fn efforts_are_mapped_as_in_vllm() {
    let head = |encoding, effort: Option<&str>| {
        let request = json!({"messages": [{"role": "user", "content": "a"}], "reasoning_effort": effort});
        let defaults = Defaults { encoding, thinking: true };
        let text = encode(&from_openai(&request.to_string(), defaults).unwrap()).unwrap();
        let text = text.strip_prefix("<｜begin▁of▁sentence｜>").unwrap();
        let (head, cue) = text.split_once("<｜User｜>a<｜Assistant｜>").unwrap();
        assert_eq!(cue == "<think>", effort != Some("none"));
        head.chars().take(24).collect::<String>()
    };
    let (none, absolute, beyond) = ("", "Reasoning Effort: Absolu", "Reasoning Effort: Beyond");
    for (effort, april, july) in [
        (None, none, absolute),
        (Some("none"), none, none),
        (Some("minimal"), none, none),
        (Some("low"), none, none),
        (Some("medium"), none, none),
        (Some("high"), none, absolute),
        (Some("xhigh"), none, absolute),
        (Some("max"), absolute, beyond),
    ] {
        assert_eq!(head(Encoding::April, effort), april, "{effort:?}");
        assert_eq!(head(Encoding::July, effort), july, "{effort:?}");
    }
}

#[test]
fn thinking_is_what_the_request_says_or_else_the_deployments_default() {
    assert_eq!(Effort::of_request(None, None, true), (true, Effort::High));
    assert_eq!(Effort::of_request(None, None, false), (false, Effort::High));
    assert_eq!(Effort::of_request(None, Some("low"), false), (true, Effort::Low));
    assert_eq!(Effort::of_request(Some(false), Some("max"), true), (false, Effort::Max));
    assert_eq!(Effort::of_request(Some(true), Some("none"), true), (false, Effort::High));
    let thinks = |request: Value| {
        let mut request = request;
        request["messages"] = json!([{"role": "user", "content": "a"}]);
        from_openai(&request.to_string(), Defaults { encoding: Encoding::April, thinking: false })
            .unwrap()
            .thinking
    };
    assert!(!thinks(json!({})));
    assert!(thinks(json!({"thinking": {"type": "enabled"}})));
    assert!(thinks(json!({"chat_template_kwargs": {"enable_thinking": true}})));
    assert!(thinks(json!({"chat_template_kwargs": {"enable_thinking": true, "thinking": false}})));
    assert!(!thinks(json!({"chat_template_kwargs": {"thinking": false}, "thinking": {"type": "enabled"}})));
}

#[test]
fn a_request_with_a_wrong_field_is_refused_by_its_path() {
    let refusal = |request: Value| {
        let defaults = Defaults { encoding: Encoding::April, thinking: true };
        from_openai(&request.to_string(), defaults).unwrap_err().to_string()
    };
    let user = json!({"role": "user", "content": "a"});
    for (request, beginning) in [
        (json!([]), "request: "),
        (json!({}), "request: missing field `messages`"),
        (json!({"messages": "a"}), "messages: invalid type"),
        (json!({"messages": [["user", "a"]]}), "messages[0]: invalid type: sequence, expected an object"),
        (
            json!({"messages": [user], "thinking": ["enabled"]}),
            "thinking: invalid type: sequence, expected an object",
        ),
        (json!({"messages": [{"content": "a"}]}), "messages[0]: missing field `role`"),
        (
            json!({"messages": [user, {"role": "user", "content": 1}]}),
            "messages[1].content: expected a string, null",
        ),
        (
            json!({"messages": [{"role": "user", "content": [{"type": "text"}]}]}),
            "messages[0].content: part 0: no text",
        ),
        (json!({"messages": [{"role": "user", "task": "sing"}]}), "messages[0].task: unknown variant `sing`"),
        (json!({"messages": [user], "tool_choice": "f"}), "tool_choice: expected \"auto\""),
        (json!({"messages": [user], "tools": {}}), "tools: invalid type"),
        (json!({"messages": [user], "response_format": {"type": "yaml"}}), "response_format"),
        (json!({"messages": [user], "thinking": {"type": "maybe"}}), "thinking"),
        (
            json!({"messages": [user], "continue_final_message": true}),
            "continue_final_message: the last message",
        ),
        (
            json!({"messages": [{"role": "assistant", "tool_calls": [{"function": {"arguments": ""}}]}]}),
            "messages[0].tool_calls[0].function: missing field `name`",
        ),
    ] {
        let refusal = refusal(request.clone());
        assert!(refusal.starts_with(beginning), "{request}: {refusal}");
    }
}

#[test]
fn a_request_that_is_no_json_is_refused() {
    let defaults = Defaults { encoding: Encoding::April, thinking: true };
    for request in ["", "{", "{\"messages\": [}", "{\"messages\": []} x"] {
        let error = from_openai(request, defaults).unwrap_err().to_string();
        assert!(error.starts_with("request: "), "{request}: {error}");
    }
}

#[test]
fn the_fields_of_a_request_reach_the_conversation() {
    let request = json!({
        "model": "m", "temperature": 0.5,
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "a"}], "task": "read_url"},
            {"role": "assistant", "content": null, "tool_calls": [
                {"id": "1", "type": "function", "index": 0, "function": {"name": "f", "arguments": "{}"}},
            ]},
        ],
        "tools": [tool()],
        "tool_choice": {"type": "function", "function": {"name": "f"}},
        "response_format": {"type": "json_schema", "json_schema": {"name": "s", "schema": {"type": "object"}}},
        "reasoning_effort": "max",
        "chat_template_kwargs": {"drop_thinking": false},
        "continue_final_message": true,
        "add_generation_prompt": false,
    });
    let defaults = Defaults { encoding: Encoding::July, thinking: false };
    let call = ToolCall {
        id: "1".into(),
        function: belay_engine::chat::FunctionCall { name: "f".into(), arguments: "{}".into() },
    };
    assert_eq!(
        from_openai(&request.to_string(), defaults).unwrap(),
        Conversation {
            messages: vec![
                Message {
                    role: "user".into(),
                    content: "a".into(),
                    task: Some(Task::ReadUrl),
                    ..Message::default()
                },
                Message {
                    role: "assistant".into(),
                    tool_calls: vec![call],
                    prefix: true,
                    ..Message::default()
                },
            ],
            tools: vec![tool()],
            tool_choice: ToolChoice::Function("f".into()),
            response_format: Some(json!({"type": "object"})),
            encoding: Encoding::July,
            thinking: true,
            effort: Effort::Max,
            drop_thinking: false,
        }
    );
}

/// Requests made up at random, with the texts that the published encoder makes of them; vLLM's agreed on each. Those of
/// July are by the same encoder with July's table of efforts.
#[test]
fn requests_become_the_text_of_the_published_encoder() {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/chat.jsonl");
    let text = std::fs::read_to_string(path).unwrap();
    let mut count = 0;
    for line in text.lines() {
        let case: Value = serde_json::from_str(line).unwrap();
        let defaults = Defaults {
            encoding: case["encoding"].as_str().unwrap().parse().unwrap(),
            thinking: case["default_thinking"].as_bool().unwrap(),
        };
        let conversation = from_openai(&case["request"].to_string(), defaults).unwrap();
        assert_eq!(render(&conversation).unwrap(), case["prompt"].as_str().unwrap(), "{line}");
        count += 1;
    }
    assert_eq!(count, 100);
}
