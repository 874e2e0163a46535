//! `messages`.
use belay_proto::inference::{Message, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::edge::{ApiError, fields};

const ROLES: [&str; 6] = ["system", "developer", "user", "assistant", "tool", "latest_reminder"];

/// Between the text parts of a message, as in the published encoder.
pub const BETWEEN_PARTS: &str = "\n\n";

/// A message as the API has it.
#[derive(Deserialize)]
pub struct RawMessage {
    role: Option<String>,
    content: Option<Value>,
    reasoning_content: Option<String>,
    reasoning: Option<String>,
    tool_calls: Option<Vec<RawToolCall>>,
    tool_call_id: Option<String>,
    prefix: Option<bool>,
    function_call: Option<Value>,
}

#[derive(Deserialize)]
struct RawToolCall {
    id: Option<String>,
    #[serde(rename = "type")]
    kind: Option<String>,
    function: Option<RawFunction>,
}

#[derive(Deserialize)]
struct RawFunction {
    name: Option<String>,
    arguments: Option<String>,
}

/// All messages. `goes_on`: the last one is the beginning of the reply.
pub fn translate(messages: Vec<RawMessage>, goes_on: bool) -> Result<Vec<Message>, ApiError> {
    if messages.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must not be empty"));
    }
    let last = messages.len() - 1;
    let messages = messages.into_iter().enumerate().map(|(index, message)| message.translate(index, last));
    let mut messages = messages.collect::<Result<Vec<_>, _>>()?;
    if let Some(last) = messages.last_mut().filter(|_| goes_on) {
        if last.role != "assistant" {
            let message = "'continue_final_message' needs a last message of role assistant";
            return Err(ApiError::invalid("continue_final_message", message));
        }
        last.prefix = true;
    }
    Ok(messages)
}

impl RawMessage {
    fn translate(self, index: usize, last: usize) -> Result<Message, ApiError> {
        let path = |field: &str| format!("messages[{index}].{field}");
        let role = self.role.ok_or_else(|| ApiError::missing(&path("role")))?;
        if !ROLES.contains(&role.as_str()) {
            let shown: String = role.chars().take(40).collect();
            let message = format!("'{shown}' is not one of {}", ROLES.join(", "));
            return Err(ApiError::invalid(path("role"), message));
        }
        if self.function_call.is_some_and(|value| !value.is_null() && !fields::empty(&value)) {
            return Err(ApiError::unsupported(path("function_call")));
        }
        let (is_assistant, is_tool) = (role == "assistant", role == "tool");
        let calls = self.tool_calls.unwrap_or_default();
        if !calls.is_empty() && !is_assistant {
            return Err(misplaced(path("tool_calls")));
        }
        let calls = calls.into_iter().enumerate();
        let tool_calls = calls.map(|(call, raw)| raw.translate(&path(&format!("tool_calls[{call}]"))));
        let tool_calls = tool_calls.collect::<Result<Vec<_>, _>>()?;
        let tool_call_id = match self.tool_call_id {
            Some(id) if is_tool => id,
            None if is_tool => return Err(ApiError::missing(&path("tool_call_id"))),
            _ => String::new(),
        };
        let prefix = self.prefix.unwrap_or(false);
        if prefix && !(is_assistant && index == last) {
            return Err(misplaced(path("prefix")));
        }
        let reasoning = self.reasoning_content.filter(|text| !text.is_empty()).or(self.reasoning);
        let reasoning = reasoning.filter(|_| is_assistant).unwrap_or_default();
        let content = match self.content.filter(|content| !content.is_null()) {
            Some(content) => text(content, &path("content"))?,
            None if is_assistant && !(tool_calls.is_empty() && reasoning.is_empty()) => String::new(),
            None => return Err(ApiError::missing(&path("content"))),
        };
        Ok(Message { role, content, reasoning, tool_calls, tool_call_id, prefix })
    }
}

fn misplaced(path: String) -> ApiError {
    let message = match path.ends_with("prefix") {
        true => format!("'{path}' is only for a last message of role assistant"),
        false => format!("'{path}' is only for role assistant"),
    };
    ApiError::invalid(path, message)
}

impl RawToolCall {
    fn translate(self, path: &str) -> Result<ToolCall, ApiError> {
        let path = |field: &str| format!("{path}.{field}");
        if self.kind.is_some_and(|kind| kind != "function") {
            return Err(ApiError::unsupported(path("type")));
        }
        let function = self.function.ok_or_else(|| ApiError::missing(&path("function")))?;
        let name = function.name.filter(|name| !name.is_empty());
        Ok(ToolCall {
            id: self.id.unwrap_or_default(),
            name: name.ok_or_else(|| ApiError::missing(&path("function.name")))?,
            arguments: function.arguments.unwrap_or_default(),
        })
    }
}

/// Content is a string or a list of text parts, which are joined by empty lines.
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
    let mut texts = Vec::with_capacity(parts.len());
    for (index, part) in parts.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (part["type"].as_str(), part["text"].as_str()) {
            (Some("text"), Some(words)) => texts.push(words),
            (Some("text"), None) | (None, _) => return Err(wrong(path)),
            (Some(_), _) => return Err(ApiError::unsupported(format!("{path}.type"))),
        }
    }
    Ok(texts.join(BETWEEN_PARTS))
}
