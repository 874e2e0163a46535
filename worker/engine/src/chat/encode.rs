//! Conversation to prompt text.

use serde_json::Value;

use super::json::dumps;
use super::{ChatError, Conversation, Message, ToolCall};

const BOS: &str = "<｜begin▁of▁sentence｜>";
const EOS: &str = "<｜end▁of▁sentence｜>";
const USER: &str = "<｜User｜>";
const ASSISTANT: &str = "<｜Assistant｜>";
const LATEST_REMINDER: &str = "<｜latest_reminder｜>";
const THINK: &str = "<think>";
const THINK_END: &str = "</think>";
const DSML: &str = "｜DSML｜";
const RESPONSE_FORMAT: &str =
    "## Response Format:\n\nYou MUST strictly adhere to the following schema to reply:\n";

/// The fixed text around the tool schemas is DeepSeek's (encoding_dsv4.py, MIT licence): the model is trained on it
/// to the letter.
const TOOLS_HEAD: &str = include_str!("tools_head.txt");
const TOOLS_TAIL: &str = include_str!("tools_tail.txt");

/// The prompt text of a conversation, special tokens written out. It ends where the reply begins: after
/// `<｜Assistant｜>` and `<think>` (thinking) or `</think>` (not), or inside a reply that the caller began.
///
/// - Tools and response format go into the first message if it is system or developer, else into an empty system
///   message of their own.
/// - User and tool messages in a row form one turn; tool results stand in the order of their calls.
/// - When thinking without tools, the reasoning of earlier turns is dropped, and so are earlier developer messages.
///
/// # Errors
/// [`ChatError`], naming the message.
pub fn encode(conversation: &Conversation) -> Result<String, ChatError> {
    let functions = functions(&conversation.tools)?;
    let mut turns = turns(&conversation.messages)?;
    let has_extras = !functions.is_empty() || conversation.response_format.is_some();
    if has_extras && !matches!(turns[0], Turn::System(_) | Turn::Developer(_)) {
        turns.insert(0, Turn::System(""));
    }
    // Tools stay with the first turn even if that is a developer message: nothing is dropped when there are tools.
    let keep_reasoning = !functions.is_empty();
    let extras = extras(&functions, conversation.response_format.as_ref());
    let question = turns.iter().rposition(Turn::is_question);
    let is_latest = |index: usize| question.is_none_or(|question| index >= question);
    let thinks_at = |index: usize| conversation.thinking && (keep_reasoning || is_latest(index));
    let is_dropped = |index: usize| {
        conversation.thinking
            && !keep_reasoning
            && !is_latest(index)
            && matches!(turns[index], Turn::Developer(_))
            // The published encoder would lose the response format with it.
            && !(index == 0 && has_extras)
    };

    let mut text = String::from(BOS);
    for (index, turn) in turns.iter().enumerate().filter(|(index, _)| !is_dropped(*index)) {
        match turn {
            Turn::System(content) => text.push_str(content),
            Turn::Developer(content) => {
                text.push_str(USER);
                text.push_str(content);
            }
            Turn::User(parts) => {
                text.push_str(USER);
                text.push_str(&parts.join("\n\n"));
            }
            Turn::LatestReminder(content) => {
                text.push_str(LATEST_REMINDER);
                text.push_str(content);
            }
            Turn::Assistant(message) => push_reply(&mut text, message, thinks_at(index)),
        }
        if index == 0 {
            text.push_str(&extras);
        }
        let next = (index + 1..turns.len()).find(|&next| !is_dropped(next)).map(|next| &turns[next]);
        if turn.is_question() && next.is_none_or(|next| next.may_follow_cue()) {
            text.push_str(ASSISTANT);
            text.push_str(if thinks_at(index) { THINK } else { THINK_END });
        }
    }
    Ok(text)
}

/// What the prompt text is made of: messages with user and tool messages merged.
enum Turn<'a> {
    System(&'a str),
    Developer(&'a str),
    User(Vec<String>),
    LatestReminder(&'a str),
    Assistant(&'a Message),
}

impl Turn<'_> {
    /// A turn that a reply answers.
    fn is_question(&self) -> bool {
        matches!(self, Self::Developer(_) | Self::User(_))
    }

    /// The published encoder writes the reply's cue before a latest_reminder as well.
    fn may_follow_cue(&self) -> bool {
        matches!(self, Self::Assistant(_) | Self::LatestReminder(_))
    }
}

fn turns(messages: &[Message]) -> Result<Vec<Turn<'_>>, ChatError> {
    let mut turns = Vec::new();
    // Calls of the latest assistant turn that has any, and the results in the user turn being put together.
    let mut calls: &[ToolCall] = &[];
    let mut results: Vec<(usize, &Message)> = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        if message.prefix && (message.role != "assistant" || index + 1 < messages.len()) {
            return Err(ChatError::MisplacedPrefix { index });
        }
        if !matches!(message.role.as_str(), "user" | "tool") {
            place_results(&mut turns, &mut results, calls);
        }
        match message.role.as_str() {
            "system" => turns.push(Turn::System(&message.content)),
            "developer" => turns.push(Turn::Developer(&message.content)),
            "latest_reminder" => turns.push(Turn::LatestReminder(&message.content)),
            "assistant" => {
                if !message.tool_calls.is_empty() {
                    calls = &message.tool_calls;
                }
                turns.push(Turn::Assistant(message));
            }
            "user" | "tool" => {
                if !matches!(turns.last(), Some(Turn::User(_))) {
                    turns.push(Turn::User(Vec::new()));
                }
                let Some(Turn::User(parts)) = turns.last_mut() else { continue };
                if message.role == "tool" {
                    results.push((parts.len(), message));
                }
                parts.push(message.content.clone());
            }
            role => return Err(ChatError::UnknownRole { index, role: role.into() }),
        }
    }
    place_results(&mut turns, &mut results, calls);
    match turns.as_slice() {
        [] => Err(ChatError::Empty),
        [.., Turn::Assistant(message)] if !message.prefix => {
            Err(ChatError::AlreadyAnswered { index: messages.len() - 1 })
        }
        [.., Turn::Assistant(_)] | [.., Turn::User(_) | Turn::Developer(_)] => Ok(turns),
        [.., question, Turn::LatestReminder(_)] if question.is_question() => Ok(turns),
        _ => Err(ChatError::NoCue { role: messages[messages.len() - 1].role.clone() }),
    }
}

/// Writes the tool results of the last turn into their places, in the order of the calls; a result of no known call
/// counts as the first one's, as in the published encoder.
fn place_results(turns: &mut [Turn<'_>], results: &mut Vec<(usize, &Message)>, calls: &[ToolCall]) {
    let Some(Turn::User(parts)) = turns.last_mut() else { return };
    let places: Vec<usize> = results.iter().map(|(place, _)| *place).collect();
    results.sort_by_key(|(_, result)| {
        calls.iter().position(|call| !call.id.is_empty() && call.id == result.tool_call_id).unwrap_or(0)
    });
    for (place, (_, result)) in places.into_iter().zip(results.drain(..)) {
        parts[place] = format!("<tool_result>{}</tool_result>", result.content);
    }
}

fn functions(tools: &[Value]) -> Result<Vec<&Value>, ChatError> {
    tools
        .iter()
        .enumerate()
        .map(|(index, tool)| tool.get("function").ok_or(ChatError::ToolWithoutFunction { index }))
        .collect()
}

fn extras(functions: &[&Value], response_format: Option<&Value>) -> String {
    let mut text = String::new();
    if !functions.is_empty() {
        let schemas: Vec<String> = functions.iter().map(|function| dumps(function)).collect();
        text.push_str("\n\n");
        text.push_str(TOOLS_HEAD);
        text.push_str(&schemas.join("\n"));
        text.push_str(TOOLS_TAIL);
    }
    if let Some(schema) = response_format {
        text.push_str("\n\n");
        text.push_str(RESPONSE_FORMAT);
        text.push_str(&dumps(schema));
    }
    text
}

fn push_reply(text: &mut String, message: &Message, with_reasoning: bool) {
    if with_reasoning {
        text.push_str(&message.reasoning);
        text.push_str(THINK_END);
    }
    text.push_str(&message.content);
    if !message.tool_calls.is_empty() {
        let calls: Vec<String> = message.tool_calls.iter().map(invoke).collect();
        text.push_str(&format!("\n\n<{DSML}tool_calls>\n{}\n</{DSML}tool_calls>", calls.join("\n")));
    }
    if !message.prefix {
        text.push_str(EOS);
    }
}

fn invoke(call: &ToolCall) -> String {
    let parameters: Vec<String> = match serde_json::from_str(&call.function.arguments) {
        Ok(Value::Object(arguments)) => {
            arguments.iter().map(|(name, value)| parameter(name, value)).collect()
        }
        _ => vec![parameter("arguments", &Value::String(call.function.arguments.clone()))],
    };
    format!("<{DSML}invoke name=\"{}\">\n{}\n</{DSML}invoke>", call.function.name, parameters.join("\n"))
}

fn parameter(name: &str, value: &Value) -> String {
    let (is_string, text) = match value {
        Value::String(text) => (true, text.clone()),
        other => (false, dumps(other)),
    };
    format!("<{DSML}parameter name=\"{name}\" string=\"{is_string}\">{text}</{DSML}parameter>")
}
