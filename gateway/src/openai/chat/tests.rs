use super::*;
use belay_proto::inference::{ToolCall, options::Constraint, tool_choice::Mode};
use serde_json::json;

fn chat(extra: Value) -> Result<ChatRequest, ApiError> {
    let mut object = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
    let fields = object.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    let mut calls = read(fields)?.calls;
    match calls.pop() {
        Some(Call::Chat(request)) if calls.is_empty() => Ok(request),
        other => panic!("{other:?}"),
    }
}

#[test]
fn messages_arrive_in_order_with_their_text() {
    let request = chat(json!({"messages": [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
        {"role": "assistant", "content": "c", "reasoning_content": "because", "tool_calls": [], "refusal": null},
        {"role": "developer", "content": ""},
    ]}))
    .unwrap();
    let seen: Vec<_> = request
        .messages
        .iter()
        .map(|m| (m.role.as_str(), m.content.as_str(), m.reasoning.as_str()))
        .collect();
    assert_eq!(
        seen,
        [
            ("system", "be brief", ""),
            ("user", "a\n\nb", ""),
            ("assistant", "c", "because"),
            ("developer", "", "")
        ]
    );
}

#[test]
fn calls_and_their_results_arrive() {
    let call = json!({"id": "c1", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}});
    let request = chat(json!({"messages": [
        {"role": "user", "content": "x"},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": [{"type": "text", "text": "42"}]},
        {"role": "assistant", "content": "so", "prefix": true},
    ]}))
    .unwrap();
    let [_, called, result, begun] = request.messages.as_slice() else { panic!("{request:?}") };
    let call = ToolCall { id: "c1".into(), name: "f".into(), arguments: "{\"a\": 1}".into() };
    assert_eq!((called.content.as_str(), called.tool_calls.as_slice()), ("", [call].as_slice()));
    assert_eq!((result.tool_call_id.as_str(), result.content.as_str()), ("c1", "42"));
    assert!(begun.prefix && !called.prefix);
}

#[test]
fn the_last_message_may_be_the_reply_s_beginning_as_vllm_says_it() {
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "so"}]);
    let request =
        chat(json!({"messages": messages, "continue_final_message": true, "add_generation_prompt": false}));
    assert!(request.unwrap().messages[1].prefix);
    assert!(!chat(json!({"messages": messages, "add_generation_prompt": true})).unwrap().messages[1].prefix);
}

#[test]
fn thinking_is_left_to_the_worker_unless_asked_for() {
    for (extra, thinking, effort) in [
        (json!({}), None, Effort::Unspecified),
        (json!({"reasoning_effort": "none"}), Some(false), Effort::Unspecified),
        (json!({"reasoning_effort": "minimal"}), Some(true), Effort::Low),
        (json!({"reasoning_effort": "medium"}), Some(true), Effort::Low),
        (json!({"reasoning_effort": "high"}), Some(true), Effort::High),
        (json!({"reasoning_effort": "xhigh"}), Some(true), Effort::High),
        (json!({"reasoning_effort": "max"}), Some(true), Effort::Max),
        (json!({"thinking": {"type": "enabled"}}), Some(true), Effort::Unspecified),
        (json!({"thinking": {"type": "disabled"}, "reasoning_effort": "max"}), Some(false), Effort::Max),
        (json!({"chat_template_kwargs": {"thinking": true}}), Some(true), Effort::Unspecified),
        (json!({"chat_template_kwargs": {"enable_thinking": false}}), Some(false), Effort::Unspecified),
        (
            json!({"chat_template_kwargs": {"thinking": false}, "reasoning_effort": "high"}),
            Some(false),
            Effort::High,
        ),
        (json!({"chat_template_kwargs": {"reasoning_effort": "max"}}), Some(true), Effort::Max),
        (json!({"chat_template_kwargs": {"other": 1}}), None, Effort::Unspecified),
    ] {
        let request = chat(extra.clone()).unwrap();
        assert_eq!((request.thinking, request.effort()), (thinking, effort), "{extra}");
    }
}

#[test]
fn tools_constraint_and_logprobs_arrive() {
    let tool = json!({"type": "function", "function": {"name": "f"}});
    let request = chat(json!({"tools": [tool], "tool_choice": "required", "parallel_tool_calls": false,
        "logprobs": true, "top_logprobs": 5, "response_format": {"type": "json_object"}, "priority": 3,
        "chat_template_kwargs": {"drop_thinking": false}}))
    .unwrap();
    assert_eq!(request.functions, ["{\"name\":\"f\"}"]);
    let choice = request.tool_choice.as_ref().unwrap();
    assert_eq!((choice.mode(), choice.single), (Mode::Required, true));
    let options = request.options.unwrap();
    assert_eq!((options.logprobs, options.priority), (Some(5), 3));
    assert_eq!(options.constraint, Some(Constraint::JsonObject(true)));
    assert!(request.keep_reasoning);
    assert_eq!(chat(json!({"logprobs": true})).unwrap().options.unwrap().logprobs, Some(0));
    assert_eq!(chat(json!({"logprobs": false})).unwrap().options.unwrap().logprobs, None);
}

#[test]
fn what_is_wrong_or_not_served_is_named() {
    let message = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
    let call = |call: Value| message(json!({"role": "assistant", "content": "", "tool_calls": [call]}));
    for (extra, param) in [
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": "hi"}), "messages"),
        (json!({"messages": [3]}), "messages[0]"),
        (message(json!({"content": "x"})), "messages[1].role"),
        (message(json!({"role": "robot", "content": "x"})), "messages[1].role"),
        (message(json!({"role": "user"})), "messages[1].content"),
        (message(json!({"role": "assistant", "content": null})), "messages[1].content"),
        (message(json!({"role": "user", "content": 5})), "messages[1].content"),
        (message(json!({"role": "user", "content": ["x"]})), "messages[1].content[0]"),
        (
            message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
            "messages[1].content[0].type",
        ),
        (message(json!({"role": "user", "content": "", "tool_calls": [{}]})), "messages[1].tool_calls"),
        (call(json!({})), "messages[1].tool_calls[0].function"),
        (call(json!({"type": "custom"})), "messages[1].tool_calls[0].type"),
        (call(json!({"function": {}})), "messages[1].tool_calls[0].function.name"),
        (
            call(json!({"function": {"name": "f", "arguments": {}}})),
            "messages[1].tool_calls[0].function.arguments",
        ),
        (message(json!({"role": "tool", "content": "42"})), "messages[1].tool_call_id"),
        (message(json!({"role": "user", "content": "x", "prefix": true})), "messages[1].prefix"),
        (
            json!({"messages": [{"role": "assistant", "content": "x", "prefix": true},
                                {"role": "user", "content": "x"}]}),
            "messages[0].prefix",
        ),
        (
            message(json!({"role": "assistant", "content": "", "function_call": {"name": "f"}})),
            "messages[1].function_call",
        ),
        (json!({"continue_final_message": true}), "continue_final_message"),
        (json!({"add_generation_prompt": false}), "add_generation_prompt"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_completion_tokens": 0}), "max_completion_tokens"),
        (json!({"functions": [{"name": "f"}]}), "functions"),
        (json!({"function_call": {"name": "f"}}), "function_call"),
        (json!({"tools": {"type": "function"}}), "tools"),
        (json!({"tool_choice": "required"}), "tool_choice"),
        (json!({"parallel_tool_calls": 1}), "parallel_tool_calls"),
        (json!({"response_format": {"type": "xml"}}), "response_format.type"),
        (json!({"logprobs": 1}), "logprobs"),
        (json!({"top_logprobs": 2}), "top_logprobs"),
        (json!({"logprobs": true, "top_logprobs": 21}), "top_logprobs"),
        (json!({"reasoning_effort": "much"}), "reasoning_effort"),
        (
            json!({"chat_template_kwargs": {"reasoning_effort": "much"}}),
            "chat_template_kwargs.reasoning_effort",
        ),
        (json!({"thinking": {"type": "some"}}), "thinking.type"),
        (json!({"thinking": true}), "thinking"),
        (json!({"chat_template_kwargs": {"thinking": "yes"}}), "chat_template_kwargs.thinking"),
        (json!({"audio": {}}), "audio"),
        (json!({"verbosity": "low"}), "verbosity"),
    ] {
        let error = chat(extra.clone()).expect_err(&extra.to_string());
        assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{extra}");
    }
}

#[test]
fn neutral_values_pass() {
    for extra in [
        json!({"tools": [], "tool_choice": "auto", "functions": [], "function_call": "none"}),
        json!({"response_format": {"type": "text"}}),
        json!({"logprobs": false, "top_logprobs": 0, "logit_bias": null}),
        json!({"modalities": ["text"], "parallel_tool_calls": true, "store": false, "metadata": {}}),
        json!({"verbosity": "medium", "service_tier": "auto", "prediction": {}, "safety_identifier": "x"}),
    ] {
        chat(extra.clone()).unwrap_or_else(|error| panic!("{extra}: {error:?}"));
    }
}
