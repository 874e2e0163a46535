//! DeepSeek-V4's chat format: a conversation becomes prompt text, a reply becomes reasoning and content.
//!
//! The format is defined by `encoding/encoding_dsv4.py` of the published checkpoints (MIT). No Jinja template exists.

mod encode;
mod json;
mod reply;

use serde::Deserialize;
use serde_json::Value;

pub use encode::encode;
pub use reply::{Reply, ReplyPart};

/// Everything that decides the prompt text of a chat request.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// OpenAI tool objects, `{"type": "function", "function": {…}}`.
    pub tools: Vec<Value>,
    /// JSON schema that the reply must follow; written into the prompt as it is.
    pub response_format: Option<Value>,
    /// Let the model reason before it answers.
    pub thinking: bool,
}

/// One message, in OpenAI's shape.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct Message {
    /// `system`, `developer`, `user`, `assistant`, `tool` or `latest_reminder`.
    pub role: String,
    /// Text. In JSON: a string, null, or a list of parts (see [`Content`]).
    #[serde(default, deserialize_with = "Content::into_text")]
    pub content: String,
    /// Reasoning of an earlier assistant turn.
    #[serde(default, alias = "reasoning_content", deserialize_with = "null_is_empty")]
    pub reasoning: String,
    /// What the assistant called.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tool_calls: Vec<ToolCall>,
    /// Role tool: which call this is the result of.
    #[serde(default, deserialize_with = "null_is_empty")]
    pub tool_call_id: String,
    /// Last message, role assistant: the beginning of the reply, which the model goes on with.
    #[serde(default)]
    pub prefix: bool,
}

/// A call that the assistant made.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct ToolCall {
    /// Matches [`Message::tool_call_id`] of the result.
    #[serde(default)]
    pub id: String,
    /// What was called.
    pub function: FunctionCall,
}

/// Name and arguments of a call.
#[derive(Clone, Debug, Default, PartialEq, Deserialize)]
pub struct FunctionCall {
    /// Of the tool.
    pub name: String,
    /// JSON text, an object as a rule.
    pub arguments: String,
}

/// A conversation that has no prompt.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ChatError {
    /// There is nothing to answer.
    #[error("messages: must not be empty")]
    Empty,
    /// The role is not one of the format's.
    #[error(
        "messages[{index}].role: {role:?} is unknown; expected system, developer, user, assistant, tool or latest_reminder"
    )]
    UnknownRole {
        /// Position in the list.
        index: usize,
        /// What was found.
        role: String,
    },
    /// The last message leaves nothing for the model to say.
    #[error(
        "messages[{index}].role: the last message is the assistant's and not marked as a prefix to go on with"
    )]
    AlreadyAnswered {
        /// Position in the list.
        index: usize,
    },
    /// Only system messages: the format has no cue for a reply then.
    #[error("messages: the last message must come from user, developer or tool, found {role}")]
    NoCue {
        /// Role of the last message.
        role: String,
    },
    /// A tool object without a function.
    #[error("tools[{index}].function: missing")]
    ToolWithoutFunction {
        /// Position in the list.
        index: usize,
    },
    /// `prefix` on a message that is not the assistant's last one.
    #[error("messages[{index}].prefix: only the last message, by the assistant, can be a prefix")]
    MisplacedPrefix {
        /// Position in the list.
        index: usize,
    },
}

/// Content of a message as JSON has it.
#[derive(Deserialize)]
#[serde(untagged)]
enum Content {
    Text(String),
    Parts(Vec<Part>),
}

#[derive(Deserialize)]
struct Part {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default)]
    text: String,
}

impl Content {
    /// Text parts are joined by an empty line; other parts leave a note, as in the published encoder.
    fn into_text<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        Ok(match Option::deserialize(deserializer)? {
            None => String::new(),
            Some(Self::Text(text)) => text,
            Some(Self::Parts(parts)) => {
                let texts: Vec<String> = parts
                    .into_iter()
                    .map(|part| match part.kind.as_str() {
                        "text" => part.text,
                        other => format!("[Unsupported {other}]"),
                    })
                    .collect();
                texts.join("\n\n")
            }
        })
    }
}

fn null_is_empty<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
