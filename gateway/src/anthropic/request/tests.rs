use super::*;
use belay_proto::inference::{Message, ToolCall};

fn asked(extra: Value) -> Result<Asked<Form>, ApiError> {
    let mut object = json!({"model": "m", "max_tokens": 9, "messages": [{"role": "user", "content": "hi"}]});
    let fields = object.as_object_mut().unwrap();
    fields.extend(extra.as_object().unwrap().clone());
    read(fields)
}

fn chat(extra: Value) -> ChatRequest {
    match asked(extra).unwrap().calls.pop() {
        Some(Call::Chat(request)) => request,
        other => panic!("{other:?}"),
    }
}

fn message(role: &str, content: &str) -> Message {
    Message { role: role.into(), content: content.into(), ..Message::default() }
}

#[test]
fn a_conversation_with_tools_as_coding_tools_send_it() {
    let cached = json!({"type": "ephemeral"});
    let request = chat(json!({
        "system": [{"type": "text", "text": "a", "cache_control": cached}, {"type": "text", "text": "b"}],
        "messages": [
            {"role": "user", "content": "look"},
            {"role": "assistant", "content": [
                {"type": "thinking", "thinking": "hm", "signature": ""},
                {"type": "redacted_thinking", "data": "xyz"},
                {"type": "text", "text": "I look."},
                {"type": "tool_use", "id": "t1", "name": "f", "input": {"b": 1, "a": "x"}},
                {"type": "tool_use", "id": "t2", "name": "f", "input": {}},
            ]},
            {"role": "user", "content": [
                {"type": "tool_result", "tool_use_id": "t1", "content": "one"},
                {"type": "tool_result", "tool_use_id": "t2", "is_error": true,
                 "content": [{"type": "text", "text": "two"}, {"type": "text", "text": "three"}]},
                {"type": "text", "text": "and now?", "cache_control": cached},
                {"type": "text", "text": "be quick"},
            ]},
        ],
        "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}, "cache_control": cached}],
        "metadata": {"user_id": "u"}, "service_tier": "auto", "context_management": {}
    }));
    let call =
        |id: &str, arguments: &str| ToolCall { id: id.into(), name: "f".into(), arguments: arguments.into() };
    let calling = Message {
        reasoning: "hm".into(),
        tool_calls: vec![call("t1", "{\"b\":1,\"a\":\"x\"}"), call("t2", "{}")],
        ..message("assistant", "I look.")
    };
    let result = |id: &str, text: &str| Message { tool_call_id: id.into(), ..message("tool", text) };
    let expected = [
        message("system", "a\n\nb"),
        message("user", "look"),
        calling,
        result("t1", "one"),
        result("t2", "two\n\nthree"),
        message("user", "and now?\n\nbe quick"),
    ];
    assert_eq!(request.messages, expected);
    let function = "{\"name\":\"f\",\"description\":\"d\",\"parameters\":{\"type\":\"object\"}}";
    assert_eq!(request.functions, [function]);
    assert_eq!(request.thinking, Some(false), "nobody asked for it");
}

#[test]
fn a_last_message_of_the_assistant_is_the_beginning_of_the_reply() {
    let request =
        chat(json!({"messages": [{"role": "user", "content": "x"}, {"role": "assistant", "content": "{"}]}));
    assert!(request.messages[1].prefix);
}

#[test]
fn sampling_thinking_and_form() {
    let request = chat(json!({"temperature": 0.5, "top_p": 0.9, "top_k": 5, "stop_sequences": ["x"],
        "thinking": {"type": "enabled", "budget_tokens": 2048}, "output_config": {"effort": "max",
        "format": {"type": "json_schema", "schema": {"type": "object"}}}}));
    let sampling = request.sampling.clone().unwrap();
    let expected = Sampling {
        temperature: Some(0.5),
        top_p: Some(0.9),
        top_k: Some(5),
        max_tokens: Some(9),
        stop: vec!["x".into()],
        ..Sampling::default()
    };
    assert_eq!(sampling, expected);
    assert_eq!((request.thinking, request.effort()), (Some(true), Effort::Max));
    assert_eq!(
        request.options.unwrap().constraint,
        Some(Constraint::JsonSchema("{\"type\":\"object\"}".into()))
    );
    let form = |extra| asked(extra).unwrap().form;
    assert_eq!(form(json!({})), Form::default());
    let hidden = json!({"stream": true, "thinking": {"type": "adaptive", "display": "omitted"}});
    assert_eq!(form(hidden), Form { stream: true, hides_thinking: true });
    assert_eq!(chat(json!({"thinking": {"type": "disabled"}})).thinking, Some(false));
}

#[test]
fn tool_choices() {
    let tools = json!([{"name": "f", "input_schema": {}}]);
    for (choice, mode, function, single) in [
        (json!({"type": "auto"}), Mode::Auto, "", false),
        (json!({"type": "any", "disable_parallel_tool_use": true}), Mode::Required, "", true),
        (json!({"type": "tool", "name": "f"}), Mode::Function, "f", false),
        (json!({"type": "none"}), Mode::None, "", false),
    ] {
        let found = chat(json!({"tools": tools, "tool_choice": choice})).tool_choice.unwrap();
        assert_eq!((found.mode(), found.function.as_str(), found.single), (mode, function, single));
    }
}

#[test]
fn what_is_wrong_or_not_served_is_named() {
    let user = |block: Value| json!({"messages": [{"role": "user", "content": [block]}]});
    let assistant = |block: Value| json!({"messages": [{"role": "assistant", "content": [block]}]});
    let tool = |tool: Value| json!({"tools": [tool]});
    for (extra, param) in [
        (json!({"model": null}), "model"),
        (json!({"max_tokens": null}), "max_tokens"),
        (json!({"max_tokens": 0}), "max_tokens"),
        (json!({"max_tokens": -1}), "max_tokens"),
        (json!({"temperature": 1.5}), "temperature"),
        (json!({"top_p": 2}), "top_p"),
        (json!({"top_k": -7}), "top_k"),
        (json!({"stop_sequences": [""]}), "stop_sequences"),
        (json!({"messages": null}), "messages"),
        (json!({"messages": []}), "messages"),
        (json!({"messages": [5]}), "messages[0]"),
        (json!({"messages": [{"role": "tool", "content": ""}]}), "messages[0].role"),
        (json!({"messages": [{"role": "user"}]}), "messages[0].content"),
        (json!({"messages": [{"role": "user", "content": 5}]}), "messages[0].content"),
        (user(json!({})), "messages[0].content[0].type"),
        (user(json!({"type": "image", "source": {}})), "messages[0].content[0].type"),
        (user(json!({"type": "document"})), "messages[0].content[0].type"),
        (
            user(json!({"type": "tool_use", "id": "a", "name": "f", "input": {}})),
            "messages[0].content[0].type",
        ),
        (user(json!({"type": "text"})), "messages[0].content[0].text"),
        (user(json!({"type": "tool_result", "content": "x"})), "messages[0].content[0].tool_use_id"),
        (
            user(json!({"type": "tool_result", "tool_use_id": "a", "content": [{"type": "image"}]})),
            "messages[0].content[0].content[0].type",
        ),
        (assistant(json!({"type": "tool_result", "tool_use_id": "a"})), "messages[0].content[0].type"),
        (assistant(json!({"type": "tool_use", "id": "a", "name": "f"})), "messages[0].content[0].input"),
        (assistant(json!({"type": "tool_use", "id": "a", "name": "f", "input": {}})), "messages"),
        (json!({"system": 5}), "system"),
        (json!({"system": [{"type": "image"}]}), "system[0].type"),
        (tool(json!({"type": "bash_20250124", "name": "bash"})), "tools[0].type"),
        (tool(json!({"input_schema": {}})), "tools[0].name"),
        (tool(json!({"name": "f"})), "tools[0].input_schema"),
        (tool(json!({"name": "f", "input_schema": 3})), "tools[0].input_schema"),
        (json!({"tool_choice": {"type": "any"}}), "tool_choice"),
        (json!({"tool_choice": {"type": "some"}}), "tool_choice.type"),
        (json!({"tool_choice": {"type": "tool", "name": "g"}}), "tool_choice.name"),
        (json!({"thinking": {"type": "enabled"}}), "thinking.budget_tokens"),
        (json!({"thinking": {"type": "enabled", "budget_tokens": 10}}), "thinking.budget_tokens"),
        (json!({"thinking": {"type": "always"}}), "thinking.type"),
        (json!({"thinking": {"type": "adaptive", "display": "bold"}}), "thinking.display"),
        (json!({"output_config": {"effort": "some"}}), "output_config.effort"),
        (json!({"output_config": {"format": {"type": "xml"}}}), "output_config.format.type"),
        (json!({"mcp_servers": [{}]}), "mcp_servers"),
        (json!({"container": "c"}), "container"),
        (json!({"stream": 1}), "stream"),
    ] {
        let error = asked(extra.clone()).expect_err(&extra.to_string());
        assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{extra}");
    }
}
