//! DeepSeek-V4's chat format: a conversation becomes prompt text, a reply becomes reasoning, content and tool calls.
//!
//! The format is defined by `encoding/encoding_dsv4.py` of the published checkpoints (MIT). No Jinja template exists.
//! There are two editions of it ([`Encoding`]), which a checkpoint's configuration does not tell apart.

mod encode;
mod error;
mod grammar;
mod json;
mod message;
mod object;
mod openai;
mod reply;
mod texts;
mod tools;
mod turns;

use serde_json::Value;

pub use encode::{encode, ends_in_reasoning, render};
pub use error::ChatError;
pub use grammar::tool_grammar;
pub use message::{FunctionCall, Message, Task, ToolCall};
pub use openai::{Defaults, from_openai};
pub use reply::{ReplyEvent, ReplyParser};
pub use texts::INVOKE_END as CALL_END;

/// Everything that decides the prompt text of a chat request.
#[derive(Clone, Debug, PartialEq)]
pub struct Conversation {
    /// Oldest first.
    pub messages: Vec<Message>,
    /// OpenAI tool objects, `{"type": "function", "function": {…}}`.
    pub tools: Vec<Value>,
    /// Whether and what the model has to call.
    pub tool_choice: ToolChoice,
    /// JSON schema that the reply must follow; written into the prompt as it is.
    pub response_format: Option<Value>,
    /// Edition of the format that the checkpoint was trained on.
    pub encoding: Encoding,
    /// Let the model reason before it answers.
    pub thinking: bool,
    /// How much, when thinking.
    pub effort: Effort,
    /// Leave out the reasoning of turns before the last question. Tools switch this off: a call must stay next to the
    /// thought that led to it.
    pub drop_thinking: bool,
}

impl Default for Conversation {
    fn default() -> Self {
        Self {
            messages: Vec::new(),
            tools: Vec::new(),
            tool_choice: ToolChoice::Auto,
            response_format: None,
            encoding: Encoding::April,
            thinking: false,
            effort: Effort::High,
            drop_thinking: true,
        }
    }
}

impl Conversation {
    /// The tools that the reply may call: the request's, or else those of its messages; none if the choice says so.
    #[must_use]
    pub fn callable_tools(&self) -> Vec<&Value> {
        if self.tool_choice == ToolChoice::None {
            return Vec::new();
        }
        let of_messages = self.messages.iter().flat_map(|message| &message.tools);
        if self.tools.is_empty() { of_messages.collect() } else { self.tools.iter().collect() }
    }
}

/// Editions of the format. They differ in the text that an effort puts in front of the conversation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Encoding {
    /// V4-Flash, V4-Pro and their DSpark releases, April to June 2026.
    #[default]
    April,
    /// V4-Flash-0731 and V4-Pro-0813.
    July,
}

impl std::str::FromStr for Encoding {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "april" => Ok(Self::April),
            "0731" => Ok(Self::July),
            other => Err(format!("{other:?} is no chat encoding; expected april or 0731")),
        }
    }
}

/// How much to think. April knows two levels (low is high there), July three.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Effort {
    /// July's plain thinking.
    Low,
    /// April's plain thinking; the default of both hosted API and vLLM.
    High,
    /// As much as there is room for.
    Max,
}

impl Effort {
    /// Whether to think, and how much, from what a request says: its own switch, its `reasoning_effort`, or else the
    /// deployment's default. The names are vLLM's: `none` switches thinking off, `minimal` and `medium` are low, and
    /// whatever is unknown is high.
    #[must_use]
    pub fn of_request(thinking: Option<bool>, effort: Option<&str>, default_thinking: bool) -> (bool, Self) {
        let level = match effort {
            Some("max") => Self::Max,
            Some("low" | "minimal" | "medium") => Self::Low,
            _ => Self::High,
        };
        let wants = thinking.unwrap_or(effort.is_some() || default_thinking);
        (wants && effort != Some("none"), level)
    }
}

/// Whether and what the model has to call.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub enum ToolChoice {
    /// The model decides.
    #[default]
    Auto,
    /// Nothing: the prompt does not show the tools.
    None,
    /// At least one of the tools.
    Required,
    /// The tool of this name.
    Function(String),
}
