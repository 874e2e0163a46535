//! Conversation to prompt text.

use serde_json::Value;

use super::json::dumps;
use super::texts::{
    ASSISTANT, BOS, CALLS, CALLS_END, EOS, INVOKE, INVOKE_END, LATEST_REMINDER, PARAMETER, PARAMETER_END,
    RESPONSE_FORMAT, THINK, THINK_END, TOOLS_HEAD, TOOLS_TAIL, USER, effort,
};
use super::turns::{Notice, Turn, turns};
use super::{ChatError, Conversation, Message, Task, ToolCall, ToolChoice};

/// The prompt text of a conversation that waits for a reply, special tokens written out. It ends where the reply
/// begins: after `<｜Assistant｜>` and `<think>` (thinking) or `</think>` (not), or inside a reply that the caller
/// began.
///
/// # Errors
/// [`ChatError`], naming the message: as [`render`], or the conversation leaves nothing for the model to say.
pub fn encode(conversation: &Conversation) -> Result<String, ChatError> {
    let text = render(conversation)?;
    check_end(&conversation.messages)?;
    Ok(text)
}

/// The text of any conversation, also one that ends with a whole reply, as the published encoder writes it.
///
/// - The request's tools and response format go into the first message if it is system or developer, in place of
///   that one's own, else into an empty system message of their own.
/// - User and tool messages in a row form one turn; tool results stand in the order of their calls.
/// - When thinking without tools, the reasoning of earlier turns is dropped, and so are earlier developer messages.
/// - After a last message by the system the reply's cue is written as well, as vLLM does: the published encoder
///   would leave the model in the middle of the system text.
///
/// # Errors
/// [`ChatError`], naming the field: no messages, an unknown role, a field at a role that cannot have it, a tool
/// without a name, a choice of a tool that is not there.
pub fn render(conversation: &Conversation) -> Result<String, ChatError> {
    check_tools(conversation)?;
    let mut turns = turns(&conversation.messages)?;
    if turns.is_empty() {
        return Err(ChatError::Empty);
    }
    let hides_tools = conversation.tool_choice == ToolChoice::None;
    let has_tools = !conversation.tools.is_empty()
        || turns.iter().filter_map(Turn::notice).any(|notice| !notice.tools.is_empty());
    let drops_reasoning = conversation.thinking && conversation.drop_thinking && !has_tools;

    if hides_tools {
        turns.iter_mut().filter_map(Turn::notice_mut).for_each(|notice| notice.tools = &[]);
    }
    let tools = if hides_tools { &[] } else { conversation.tools.as_slice() };
    show_extras(&mut turns, tools, conversation.response_format.as_ref());
    if drops_reasoning {
        drop_developers(&mut turns, conversation.response_format.is_some());
    }

    let question = turns.iter().rposition(Turn::is_question);
    let thinks_at = |index: usize| {
        conversation.thinking && (!drops_reasoning || question.is_none_or(|question| index >= question))
    };
    let mut text = String::from(BOS);
    if conversation.thinking {
        text.push_str(effort(conversation.encoding, conversation.effort));
    }
    for (index, turn) in turns.iter().enumerate() {
        match turn {
            Turn::System(notice) => push_notice(&mut text, notice),
            Turn::Developer(notice) => {
                text.push_str(USER);
                push_notice(&mut text, notice);
            }
            Turn::User { parts, .. } => {
                text.push_str(USER);
                text.push_str(&parts.join("\n\n"));
            }
            Turn::LatestReminder(content) => {
                text.push_str(LATEST_REMINDER);
                text.push_str(content);
            }
            Turn::Assistant(message) => {
                // the answer to a quick question comes without reasoning
                let is_quick = index > 0 && turns[index - 1].task().is_some();
                push_reply(&mut text, message, thinks_at(index) && !is_quick);
            }
        }
        let next = turns.get(index + 1);
        if next.is_none_or(Turn::may_follow_cue) {
            let ends_with_system = next.is_none() && matches!(turn, Turn::System(_));
            match turn.task() {
                Some(Task::Action) => {
                    push_cue(&mut text, conversation.thinking);
                    text.push_str(Task::Action.token());
                }
                Some(task) => text.push_str(task.token()),
                None if turn.is_question() || ends_with_system => push_cue(&mut text, thinks_at(index)),
                None => {}
            }
        }
    }
    Ok(text)
}

/// Whether the reply to a prompt begins with reasoning.
#[must_use]
pub fn ends_in_reasoning(prompt: &str) -> bool {
    let reply = prompt.rfind(ASSISTANT).map_or("", |start| &prompt[start..]);
    let opened = reply.rfind(THINK);
    opened > reply.rfind(THINK_END) && !reply.ends_with(Task::Action.token())
}

/// Refuses a conversation that leaves nothing to say.
fn check_end(messages: &[Message]) -> Result<(), ChatError> {
    match messages {
        [.., last] if last.role == "assistant" => {
            let is_open = last.prefix || last.wo_eos;
            if is_open { Ok(()) } else { Err(ChatError::AlreadyAnswered { index: messages.len() - 1 }) }
        }
        [.., question, last] if last.role == "latest_reminder" => {
            let has_cue = matches!(question.role.as_str(), "user" | "tool" | "developer");
            if has_cue { Ok(()) } else { Err(ChatError::NoCue { role: last.role.clone() }) }
        }
        [last] if last.role == "latest_reminder" => Err(ChatError::NoCue { role: last.role.clone() }),
        _ => Ok(()),
    }
}

fn check_tools(conversation: &Conversation) -> Result<(), ChatError> {
    check_functions("tools", &conversation.tools)?;
    for (index, message) in conversation.messages.iter().enumerate() {
        if !message.tools.is_empty() {
            check_functions(&format!("messages[{index}].tools"), &message.tools)?;
        }
    }
    match &conversation.tool_choice {
        ToolChoice::Auto | ToolChoice::None => Ok(()),
        ToolChoice::Required if conversation.callable_tools().is_empty() => Err(ChatError::NoTools),
        ToolChoice::Required => Ok(()),
        ToolChoice::Function(name) => {
            let is_there = |tool: &&Value| tool["function"]["name"] == name.as_str();
            let tools = conversation.callable_tools();
            tools
                .iter()
                .any(is_there)
                .then_some(())
                .ok_or_else(|| ChatError::UnknownTool { name: name.clone() })
        }
    }
}

fn check_functions(place: &str, tools: &[Value]) -> Result<(), ChatError> {
    let wrong = tools.iter().enumerate().find_map(|(index, tool)| {
        let message = match tool.get("function") {
            None => "function: missing",
            Some(function) => match function.get("name") {
                Some(Value::String(name)) if !name.is_empty() => return None,
                _ => "function.name: must be a text, not empty",
            },
        };
        Some(ChatError::Tool { place: place.into(), index, message })
    });
    wrong.map_or(Ok(()), Err)
}

/// Puts the request's tools and response format where the first message is, or before it.
fn show_extras<'a>(turns: &mut Vec<Turn<'a>>, tools: &'a [Value], response_format: Option<&'a Value>) {
    if tools.is_empty() && response_format.is_none() {
        return;
    }
    if turns[0].notice().is_none() {
        turns.insert(0, Turn::System(Notice::default()));
    }
    if let Some(notice) = turns[0].notice_mut() {
        if !tools.is_empty() {
            notice.tools = tools;
        }
        notice.response_format = response_format.or(notice.response_format);
    }
}

/// Drops the developer messages before the last question, but not the one that holds the request's response format,
/// which the published encoder would lose with it.
fn drop_developers(turns: &mut Vec<Turn<'_>>, has_response_format: bool) {
    let question = turns.iter().rposition(Turn::is_question).unwrap_or(0);
    let mut index = 0;
    turns.retain(|turn| {
        let is_old = index < question && !(index == 0 && has_response_format);
        index += 1;
        !(is_old && matches!(turn, Turn::Developer(_)))
    });
}

fn push_cue(text: &mut String, thinks: bool) {
    text.push_str(ASSISTANT);
    text.push_str(if thinks { THINK } else { THINK_END });
}

fn push_notice(text: &mut String, notice: &Notice<'_>) {
    text.push_str(notice.content);
    if !notice.tools.is_empty() {
        let schemas: Vec<String> = notice.tools.iter().map(|tool| dumps(&tool["function"])).collect();
        text.push_str("\n\n");
        text.push_str(TOOLS_HEAD);
        text.push_str(&schemas.join("\n"));
        text.push_str(TOOLS_TAIL);
    }
    if let Some(schema) = notice.response_format {
        text.push_str("\n\n");
        text.push_str(RESPONSE_FORMAT);
        text.push_str(&dumps(schema));
    }
}

fn push_reply(text: &mut String, message: &Message, with_reasoning: bool) {
    if with_reasoning {
        text.push_str(&message.reasoning);
        text.push_str(THINK_END);
    }
    text.push_str(&message.content);
    if !message.tool_calls.is_empty() {
        let calls: Vec<String> = message.tool_calls.iter().map(invoke).collect();
        text.push_str(&format!("\n\n{CALLS}\n{}\n{CALLS_END}", calls.join("\n")));
    }
    if !message.prefix && !message.wo_eos {
        text.push_str(EOS);
    }
}

/// Arguments that are no JSON object are one parameter of that name; none at all are no parameter.
fn invoke(call: &ToolCall) -> String {
    let arguments = &call.function.arguments;
    let parameters: Vec<String> = match serde_json::from_str(arguments) {
        Ok(Value::Object(arguments)) => {
            arguments.iter().map(|(name, value)| parameter(name, value)).collect()
        }
        _ if arguments.is_empty() => Vec::new(),
        _ => vec![parameter("arguments", &Value::String(arguments.clone()))],
    };
    format!("{INVOKE}{}\">\n{}\n{INVOKE_END}", call.function.name, parameters.join("\n"))
}

fn parameter(name: &str, value: &Value) -> String {
    let (is_string, text) = match value {
        Value::String(text) => (true, text.clone()),
        other => (false, dumps(other)),
    };
    format!("{PARAMETER}{name}\" string=\"{is_string}\">{text}{PARAMETER_END}")
}
