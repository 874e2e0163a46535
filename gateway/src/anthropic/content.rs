//! `system` and `messages`: content blocks become messages of the chat format.
use belay_proto::inference::{Message, ToolCall};
use serde::Deserialize;
use serde_json::Value;

use crate::{edge::ApiError, openai::BETWEEN_PARTS};

/// A message as the API has it.
#[derive(Deserialize)]
pub struct RawMessage {
    role: Option<String>,
    content: Option<Content>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Blocks(Vec<Value>),
    Other(serde::de::IgnoredAny),
}

/// A block of content, as far as it matters here.
enum Block {
    Text(String),
    Thinking(String),
    Call(ToolCall),
    Result { id: String, text: String },
    Nothing,
}

/// All messages, the system's first. A last one of the assistant is the beginning of the reply.
pub fn translate(system: Option<Value>, raw: Vec<RawMessage>) -> Result<Vec<Message>, ApiError> {
    if raw.is_empty() {
        return Err(ApiError::invalid("messages", "'messages' must not be empty"));
    }
    let mut messages = Vec::with_capacity(raw.len() + 1);
    if let Some(system) = system.filter(|system| !system.is_null()) {
        messages.push(message("system", texts(&system, "system")?));
    }
    for (index, raw) in raw.into_iter().enumerate() {
        raw.translate(&format!("messages[{index}]"), &mut messages)?;
    }
    if let Some(last) = messages.last_mut().filter(|last| last.role == "assistant") {
        if !last.tool_calls.is_empty() {
            let message = "'messages' must not end with a tool_use: its tool_result is missing";
            return Err(ApiError::invalid("messages", message));
        }
        last.prefix = true;
    }
    Ok(messages)
}

fn message(role: &str, content: String) -> Message {
    Message { role: role.to_owned(), content, ..Message::default() }
}

impl RawMessage {
    fn translate(self, path: &str, messages: &mut Vec<Message>) -> Result<(), ApiError> {
        let role = self.role.ok_or_else(|| ApiError::missing(&format!("{path}.role")))?;
        if !["user", "assistant", "system"].contains(&role.as_str()) {
            let shown: String = role.chars().take(40).collect();
            let message = format!("'{shown}' is not one of user, assistant, system");
            return Err(ApiError::invalid(format!("{path}.role"), message));
        }
        let path = format!("{path}.content");
        let blocks = match self.content {
            None => return Err(ApiError::missing(&path)),
            Some(Content::Text(text)) => vec![Block::Text(text)],
            Some(Content::Blocks(blocks)) => {
                let blocks = blocks.into_iter().enumerate();
                let blocks = blocks.map(|(index, block)| read(&block, &role, &format!("{path}[{index}]")));
                blocks.collect::<Result<_, _>>()?
            }
            Some(Content::Other(_)) => return Err(wrong_content(&path)),
        };
        if role == "assistant" {
            messages.push(assistant(blocks));
        } else {
            questions(&role, blocks, messages);
        }
        Ok(())
    }
}

fn assistant(blocks: Vec<Block>) -> Message {
    let (mut texts, mut thoughts, mut tool_calls) = (Vec::new(), Vec::new(), Vec::new());
    for block in blocks {
        match block {
            Block::Text(text) => texts.push(text),
            Block::Thinking(text) => thoughts.push(text),
            Block::Call(call) => tool_calls.push(call),
            Block::Result { .. } | Block::Nothing => {}
        }
    }
    let mut message = message("assistant", texts.concat());
    message.reasoning = thoughts.concat();
    message.tool_calls = tool_calls;
    message
}

/// Results of calls become messages of their own; texts in a row are one message.
fn questions(role: &str, blocks: Vec<Block>, messages: &mut Vec<Message>) {
    let mut texts = Vec::new();
    let begin = messages.len();
    for block in blocks {
        match block {
            Block::Text(text) => texts.push(text),
            Block::Result { id, text } => {
                if !texts.is_empty() {
                    messages.push(message(role, std::mem::take(&mut texts).join(BETWEEN_PARTS)));
                }
                messages.push(Message { tool_call_id: id, ..message("tool", text) });
            }
            Block::Thinking(_) | Block::Call(_) | Block::Nothing => {}
        }
    }
    if !texts.is_empty() || messages.len() == begin {
        messages.push(message(role, texts.join(BETWEEN_PARTS)));
    }
}

/// A block that this role may have.
fn read(block: &Value, role: &str, path: &str) -> Result<Block, ApiError> {
    let string = |field: &str| match block[field].as_str() {
        Some(text) => Ok(text.to_owned()),
        None => Err(ApiError::missing(&format!("{path}.{field}"))),
    };
    match (block["type"].as_str(), role) {
        (None, _) => Err(ApiError::missing(&format!("{path}.type"))),
        (Some("text"), _) => Ok(Block::Text(string("text")?)),
        (Some("thinking"), "assistant") => Ok(Block::Thinking(string("thinking")?)),
        (Some("redacted_thinking"), "assistant") => Ok(Block::Nothing),
        (Some("tool_use"), "assistant") => {
            let input = &block["input"];
            if !input.is_object() {
                let message = format!("'{path}.input' must be an object");
                return Err(ApiError::invalid(format!("{path}.input"), message));
            }
            Ok(Block::Call(ToolCall {
                id: string("id")?,
                name: string("name")?,
                arguments: input.to_string(),
            }))
        }
        (Some("tool_result"), "user") => {
            let text = match &block["content"] {
                Value::Null => String::new(),
                content => texts(content, &format!("{path}.content"))?,
            };
            Ok(Block::Result { id: string("tool_use_id")?, text })
        }
        (Some(_), _) => Err(ApiError::unsupported(format!("{path}.type"))),
    }
}

/// A string, or text blocks, which are joined by empty lines.
fn texts(content: &Value, path: &str) -> Result<String, ApiError> {
    let blocks = match content {
        Value::String(text) => return Ok(text.clone()),
        Value::Array(blocks) => blocks,
        _ => return Err(wrong_content(path)),
    };
    let mut texts = Vec::with_capacity(blocks.len());
    for (index, block) in blocks.iter().enumerate() {
        let path = format!("{path}[{index}]");
        match (block["type"].as_str(), block["text"].as_str()) {
            (Some("text"), Some(text)) => texts.push(text),
            (Some("text"), None) => return Err(ApiError::missing(&format!("{path}.text"))),
            (None, _) => return Err(ApiError::missing(&format!("{path}.type"))),
            (Some(_), _) => return Err(ApiError::unsupported(format!("{path}.type"))),
        }
    }
    Ok(texts.join(BETWEEN_PARTS))
}

fn wrong_content(path: &str) -> ApiError {
    ApiError::invalid(path, format!("'{path}' must be a string or an array of content blocks"))
}
