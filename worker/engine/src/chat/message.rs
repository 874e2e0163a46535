//! One message of a conversation, and how it is read from JSON.

use serde::{Deserialize, Deserializer, de};
use serde_json::Value;

use super::json::dumps;
use super::object::{list, object};

/// One message, in OpenAI's shape with the fields that DeepSeek's encoder adds.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `latest_reminder`.
    pub role: String,
    /// Text. In JSON: a string, null, or a list of parts: texts are joined by an empty line, a part of another kind
    /// leaves the note `[Unsupported kind]`.
    pub content: String,
    /// Reasoning of an earlier assistant turn. In JSON `reasoning_content` as well.
    pub reasoning: String,
    /// What the assistant called.
    pub tool_calls: Vec<ToolCall>,
    /// Role tool: which call this is the result of.
    pub tool_call_id: String,
    /// Last message, role assistant: the beginning of the reply, which the model goes on with.
    pub prefix: bool,
    /// Role assistant: the turn does not end with end-of-sequence.
    pub wo_eos: bool,
    /// Roles system and developer: tools shown here.
    pub tools: Vec<Value>,
    /// Roles system and developer: JSON schema of the replies, shown here.
    pub response_format: Option<Value>,
    /// Roles user and developer: the reply is a quick internal one to this question about the message.
    pub task: Option<Task>,
}

/// A call that the assistant made.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ToolCall {
    /// Matches [`Message::tool_call_id`] of the result.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub id: String,
    /// What was called.
    #[serde(deserialize_with = "object")]
    pub function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct FunctionCall {
    /// Of the tool.
    pub name: String,
    /// JSON text, an object as a rule; empty: no arguments. In JSON the object itself or null as well.
    #[serde(default, deserialize_with = "arguments")]
    pub arguments: String,
}

/// Quick questions that the published models answer with a word or two, each by a token of its own.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "snake_case")]
#[allow(missing_docs)] // the format gives no more than the names
pub enum Task {
    Action,
    Query,
    Authority,
    Domain,
    Title,
    ReadUrl,
}

impl Task {
    /// The token that asks.
    pub(super) fn token(self) -> &'static str {
        match self {
            Self::Action => "<｜action｜>",
            Self::Query => "<｜query｜>",
            Self::Authority => "<｜authority｜>",
            Self::Domain => "<｜domain｜>",
            Self::Title => "<｜title｜>",
            Self::ReadUrl => "<｜read_url｜>",
        }
    }
}

/// A message as JSON has it: anything may be null, and reasoning has two names, which some servers send both.
#[derive(Deserialize)]
struct Wire {
    role: String,
    #[serde(default, deserialize_with = "content")]
    content: String,
    #[serde(default)]
    reasoning: Option<String>,
    #[serde(default)]
    reasoning_content: Option<String>,
    #[serde(default, deserialize_with = "list")]
    tool_calls: Vec<ToolCall>,
    #[serde(default, deserialize_with = "null_is_empty")]
    tool_call_id: String,
    #[serde(default, deserialize_with = "null_is_empty")]
    prefix: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    wo_eos: bool,
    #[serde(default, deserialize_with = "null_is_empty")]
    tools: Vec<Value>,
    #[serde(default)]
    response_format: Option<Value>,
    #[serde(default)]
    task: Option<Task>,
}

impl<'de> Deserialize<'de> for Message {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        let wire: Wire = object(deserializer)?;
        let reasoning = wire.reasoning.filter(|text| !text.is_empty()).or(wire.reasoning_content);
        Ok(Self {
            role: wire.role,
            content: wire.content,
            reasoning: reasoning.unwrap_or_default(),
            tool_calls: wire.tool_calls,
            tool_call_id: wire.tool_call_id,
            prefix: wire.prefix,
            wo_eos: wire.wo_eos,
            tools: wire.tools,
            response_format: wire.response_format,
            task: wire.task,
        })
    }
}

fn content<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    let parts = match Value::deserialize(deserializer)? {
        Value::Null => return Ok(String::new()),
        Value::String(text) => return Ok(text),
        Value::Array(parts) => parts,
        _ => return Err(de::Error::custom("expected a string, null or a list of parts")),
    };
    let texts: Result<Vec<String>, D::Error> = parts.into_iter().enumerate().map(part).collect();
    Ok(texts?.join("\n\n"))
}

fn part<E: de::Error>((index, part): (usize, Value)) -> Result<String, E> {
    let error = |message: &str| E::custom(format_args!("part {index}: {message}"));
    let part = match part {
        Value::String(text) => return Ok(text),
        part => part,
    };
    match (part.get("type").and_then(Value::as_str), part.get("text")) {
        (None, _) => Err(error("no type")),
        (Some("text"), Some(Value::String(text))) => Ok(text.clone()),
        (Some("text"), _) => Err(error("no text")),
        (Some(kind), _) => Ok(format!("[Unsupported {kind}]")),
    }
}

fn arguments<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
    Ok(match Value::deserialize(deserializer)? {
        Value::Null => String::new(),
        Value::String(text) => text,
        object => dumps(&object),
    })
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
