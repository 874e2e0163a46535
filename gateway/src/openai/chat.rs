//! `/v1/chat/completions`.
use axum::{
    Extension,
    extract::{Request, State},
    response::Response,
};
use belay_proto::inference::{ChatRequest, Message};
use serde::Deserialize;
use serde_json::{Map, Value};

use crate::{life::Call, request_id::RequestId, serve::App};

use super::{
    ApiError,
    answer::{self, Kind},
    fields::{self, Unsupported},
    options::Options,
};

const UNSUPPORTED: &[Unsupported] = &[
    ("tools", fields::empty),
    ("tool_choice", |choice| choice == "none" || choice == "auto"),
    ("functions", fields::empty),
    ("function_call", |choice| choice == "none" || choice == "auto"),
    ("response_format", |format| format["type"] == "text"),
    ("logprobs", fields::no),
    ("top_logprobs", fields::zero),
    ("modalities", |modalities| *modalities == serde_json::json!(["text"])),
    ("audio", fields::never),
];

const ROLES: [&str; 5] = ["system", "developer", "user", "assistant", "tool"];

/// The handler.
pub async fn create(
    State(app): State<App>,
    Extension(id): Extension<RequestId>,
    request: Request,
) -> Result<Response, ApiError> {
    answer::serve(app, id, request, Kind::Chat, read).await
}

/// A request body, translated.
pub fn read(object: &Map<String, Value>) -> Result<(Options, Call), ApiError> {
    fields::refuse(object, UNSUPPORTED)?;
    let options = Options::read(object)?;
    let raw: Raw = fields::read(object)?;
    let messages = raw.messages.ok_or_else(|| ApiError::missing("messages"))?;
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must not be empty"));
    }
    let messages = messages.into_iter().enumerate().map(|(index, message)| message.translate(index));
    let call = ChatRequest {
        model: options.model.clone(),
        messages: messages.collect::<Result<_, _>>()?,
        sampling: Some(options.sampling.clone()),
        thinking: thinking(raw.reasoning_effort.as_deref(), raw.chat_template_kwargs)?,
        ..ChatRequest::default()
    };
    Ok((options, Call::Chat(call)))
}

#[derive(Deserialize)]
struct Raw {
    messages: Option<Vec<RawMessage>>,
    reasoning_effort: Option<String>,
    chat_template_kwargs: Option<TemplateArguments>,
}

#[derive(Deserialize)]
struct TemplateArguments {
    thinking: Option<bool>,
    enable_thinking: Option<bool>,
}

/// Whether the model thinks before it answers. What the template is told beats the effort; neither: the
/// deployment's default.
fn thinking(effort: Option<&str>, template: Option<TemplateArguments>) -> Result<Option<bool>, ApiError> {
    let by_effort = match effort {
        None => None,
        Some("none") => Some(false),
        Some("minimal" | "low" | "medium" | "high" | "xhigh" | "max") => Some(true),
        Some(other) => {
            let message = format!(
                "'reasoning_effort' must be none, minimal, low, medium, high, xhigh or max, not '{other}'"
            );
            return Err(ApiError::invalid("reasoning_effort", message));
        }
    };
    let by_template = template.and_then(|arguments| arguments.thinking.or(arguments.enable_thinking));
    Ok(by_template.or(by_effort))
}

#[derive(Deserialize)]
struct RawMessage {
    role: Option<String>,
    content: Option<Value>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Value>,
    function_call: Option<Value>,
}

impl RawMessage {
    fn translate(self, index: usize) -> Result<Message, ApiError> {
        let path = |field: &str| format!("messages[{index}].{field}");
        let role = self.role.ok_or_else(|| ApiError::missing(&path("role")))?;
        if !ROLES.contains(&role.as_str()) {
            let message = format!("'{role}' is not one of {}", ROLES.join(", "));
            return Err(ApiError::invalid(path("role"), message));
        }
        for (field, value) in [("tool_calls", self.tool_calls), ("function_call", self.function_call)] {
            if value.is_some_and(|value| !fields::empty(&value)) {
                return Err(ApiError::unsupported(path(field)));
            }
        }
        let content = self.content.ok_or_else(|| ApiError::missing(&path("content")))?;
        let content = text(content, &path("content"))?;
        let reasoning = self.reasoning_content.or(self.reasoning).unwrap_or_default();
        Ok(Message { role, content, reasoning, ..Message::default() })
    }
}

/// Content is a string or a list of text parts, which are joined.
fn text(content: Value, path: &str) -> Result<String, ApiError> {
    let wrong = |path: String| {
        let message = format!("'{path}' must be a string or an array of text parts");
        ApiError::invalid(path, message)
    };
    let parts = match content {
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(wrong(path.to_owned())),
    };
    let mut text = String::new();
    for (index, part) in parts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(words)) => text.push_str(words),
            (Some("text"), None) | (None, _) => return Err(wrong(path)),
            (Some(_), _) => return Err(ApiError::unsupported(format!("{path}.type"))),
        }
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn chat(extra: Value) -> Result<ChatRequest, ApiError> {
        let mut object = json!({"model": "m", "messages": [{"role": "user", "content": "hi"}]});
        let fields = object.as_object_mut().unwrap();
        fields.extend(extra.as_object().unwrap().clone());
        match read(fields)?.1 {
            Call::Chat(request) => Ok(request),
            Call::Generate(_) => panic!("not a chat"),
        }
    }

    #[test]
    fn messages_arrive_in_order_with_their_text() {
        let request = chat(json!({"messages": [
            {"role": "system", "content": "be brief"},
            {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}], "name": "x"},
            {"role": "assistant", "content": "c", "reasoning_content": "because", "tool_calls": []},
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
                ("user", "ab", ""),
                ("assistant", "c", "because"),
                ("developer", "", "")
            ]
        );
    }

    #[test]
    fn thinking_is_left_to_the_worker_unless_asked_for() {
        for (extra, expected) in [
            (json!({}), None),
            (json!({"reasoning_effort": "none"}), Some(false)),
            (json!({"reasoning_effort": "high"}), Some(true)),
            (json!({"chat_template_kwargs": {"thinking": true}}), Some(true)),
            (json!({"chat_template_kwargs": {"enable_thinking": false}}), Some(false)),
            (json!({"chat_template_kwargs": {"thinking": false}, "reasoning_effort": "high"}), Some(false)),
            (json!({"chat_template_kwargs": {"other": 1}}), None),
        ] {
            assert_eq!(chat(extra.clone()).unwrap().thinking, expected, "{extra}");
        }
    }

    #[test]
    fn what_is_wrong_or_not_served_is_named() {
        let message = |message: Value| json!({"messages": [{"role": "user", "content": "x"}, message]});
        for (extra, param) in [
            (json!({"messages": null}), "messages"),
            (json!({"messages": []}), "messages"),
            (json!({"messages": "hi"}), "messages"),
            (json!({"messages": [3]}), "messages[0]"),
            (message(json!({"content": "x"})), "messages[1].role"),
            (message(json!({"role": "robot", "content": "x"})), "messages[1].role"),
            (message(json!({"role": "user"})), "messages[1].content"),
            (message(json!({"role": "user", "content": 5})), "messages[1].content"),
            (message(json!({"role": "user", "content": ["x"]})), "messages[1].content[0]"),
            (
                message(json!({"role": "user", "content": [{"type": "image_url", "image_url": {}}]})),
                "messages[1].content[0].type",
            ),
            (
                message(json!({"role": "assistant", "content": "", "tool_calls": [{}]})),
                "messages[1].tool_calls",
            ),
            (json!({"tools": [{"type": "function"}]}), "tools"),
            (json!({"tool_choice": "required"}), "tool_choice"),
            (json!({"response_format": {"type": "json_object"}}), "response_format"),
            (json!({"logprobs": true}), "logprobs"),
            (json!({"top_logprobs": 2}), "top_logprobs"),
            (json!({"reasoning_effort": "much"}), "reasoning_effort"),
            (json!({"chat_template_kwargs": {"thinking": "yes"}}), "chat_template_kwargs.thinking"),
        ] {
            let error = chat(extra.clone()).expect_err(&extra.to_string());
            assert_eq!((error.status.as_u16(), error.body.param.as_deref()), (400, Some(param)), "{extra}");
        }
    }

    #[test]
    fn neutral_values_pass() {
        for extra in [
            json!({"tools": [], "tool_choice": "auto"}),
            json!({"response_format": {"type": "text"}}),
            json!({"logprobs": false, "top_logprobs": 0}),
            json!({"modalities": ["text"], "parallel_tool_calls": true, "store": false, "metadata": {}}),
        ] {
            chat(extra.clone()).unwrap_or_else(|error| panic!("{extra}: {error:?}"));
        }
    }
}
