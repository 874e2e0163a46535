//! What the prompt text is made of: messages, with user and tool messages in a row merged.

use std::borrow::Cow;
use std::collections::HashMap;

use serde_json::Value;

use super::{ChatError, Message, Task};

/// One turn of the prompt text.
pub enum Turn<'a> {
    System(Notice<'a>),
    Developer(Notice<'a>),
    User { parts: Vec<Cow<'a, str>>, task: Option<Task> },
    LatestReminder(&'a str),
    Assistant(&'a Message),
}

/// A system or developer message.
#[derive(Default)]
pub struct Notice<'a> {
    pub content: &'a str,
    pub tools: &'a [Value],
    pub response_format: Option<&'a Value>,
    pub task: Option<Task>,
}

impl<'a> Notice<'a> {
    fn of(message: &'a Message) -> Self {
        Self {
            content: &message.content,
            tools: &message.tools,
            response_format: message.response_format.as_ref(),
            task: message.task,
        }
    }
}

impl<'a> Turn<'a> {
    /// A turn that a reply answers.
    pub fn is_question(&self) -> bool {
        matches!(self, Self::Developer(_) | Self::User { .. })
    }

    /// The published encoder writes the reply's cue before a latest_reminder as well.
    pub fn may_follow_cue(&self) -> bool {
        matches!(self, Self::Assistant(_) | Self::LatestReminder(_))
    }

    /// System or developer message.
    pub fn notice(&self) -> Option<&Notice<'a>> {
        match self {
            Self::System(notice) | Self::Developer(notice) => Some(notice),
            _ => None,
        }
    }

    /// As [`Turn::notice`].
    pub fn notice_mut(&mut self) -> Option<&mut Notice<'a>> {
        match self {
            Self::System(notice) | Self::Developer(notice) => Some(notice),
            _ => None,
        }
    }

    /// Quick question about this turn.
    pub fn task(&self) -> Option<Task> {
        match self {
            Self::User { task, .. } => *task,
            Self::System(notice) | Self::Developer(notice) => notice.task,
            Self::LatestReminder(_) | Self::Assistant(_) => None,
        }
    }
}

/// The turns of a conversation.
///
/// # Errors
/// [`ChatError`], naming the message with an unknown role or a field that is not its role's.
pub fn turns(messages: &[Message]) -> Result<Vec<Turn<'_>>, ChatError> {
    let mut merger = Merger::default();
    for (index, message) in messages.iter().enumerate() {
        match message.role.as_str() {
            "system" => merger.push(Turn::System(Notice::of(message))),
            "developer" => merger.push(Turn::Developer(Notice::of(message))),
            "latest_reminder" => merger.push(Turn::LatestReminder(&message.content)),
            "assistant" => merger.assistant(message),
            "user" => merger.user(message),
            "tool" => merger.tool(message),
            role => return Err(ChatError::UnknownRole { index, role: role.into() }),
        }
        check(index, message, index + 1 == messages.len())?;
    }
    merger.place_results();
    Ok(merger.turns)
}

fn check(index: usize, message: &Message, is_last: bool) -> Result<(), ChatError> {
    let role = message.role.as_str();
    if message.prefix && (role != "assistant" || !is_last) {
        return Err(ChatError::MisplacedPrefix { index });
    }
    let is_notice = matches!(role, "system" | "developer");
    let fields = [
        ("tools", !message.tools.is_empty(), is_notice, "system and developer"),
        ("response_format", message.response_format.is_some(), is_notice, "system and developer"),
        ("task", message.task.is_some(), matches!(role, "user" | "developer"), "user and developer"),
        ("wo_eos", message.wo_eos, role == "assistant", "assistant"),
        ("tool_calls", !message.tool_calls.is_empty(), role == "assistant", "assistant"),
    ];
    match fields.into_iter().find(|(_, is_set, may_be_set, _)| *is_set && !*may_be_set) {
        Some((field, _, _, roles)) => Err(ChatError::Misplaced { index, field, roles }),
        None => Ok(()),
    }
}

#[derive(Default)]
struct Merger<'a> {
    turns: Vec<Turn<'a>>,
    /// Place of each call of the latest assistant turn that has any, by id.
    calls: HashMap<&'a str, usize>,
    /// Tool results of the user turn being put together: place among its parts, and the message.
    results: Vec<(usize, &'a Message)>,
}

impl<'a> Merger<'a> {
    fn push(&mut self, turn: Turn<'a>) {
        self.place_results();
        self.turns.push(turn);
    }

    fn assistant(&mut self, message: &'a Message) {
        self.push(Turn::Assistant(message));
        if !message.tool_calls.is_empty() {
            let calls = message.tool_calls.iter().enumerate();
            self.calls = calls.map(|(place, call)| (call.id.as_str(), place)).collect();
            self.calls.remove("");
        }
    }

    /// A task ends the turn that it asks about; the published encoder would lose that of a message it merges.
    fn user(&mut self, message: &'a Message) {
        if !matches!(self.turns.last(), Some(Turn::User { task: None, .. })) {
            self.push(Turn::User { parts: Vec::new(), task: None });
        }
        if let Some(Turn::User { parts, task }) = self.turns.last_mut() {
            parts.push(Cow::Borrowed(&message.content));
            *task = message.task;
        }
    }

    fn tool(&mut self, message: &'a Message) {
        if !matches!(self.turns.last(), Some(Turn::User { .. })) {
            self.push(Turn::User { parts: Vec::new(), task: None });
        }
        if let Some(Turn::User { parts, .. }) = self.turns.last_mut() {
            self.results.push((parts.len(), message));
            parts.push(Cow::Borrowed(""));
        }
    }

    /// Writes the tool results of the last turn into their places, in the order of the calls; a result of no known
    /// call counts as the first one's, as in the published encoder.
    fn place_results(&mut self) {
        let Some(Turn::User { parts, .. }) = self.turns.last_mut() else { return };
        let places: Vec<usize> = self.results.iter().map(|(place, _)| *place).collect();
        let call_of = |result: &Message| self.calls.get(result.tool_call_id.as_str()).copied();
        self.results.sort_by_key(|(_, result)| call_of(result).unwrap_or(0));
        for (place, (_, result)) in places.into_iter().zip(self.results.drain(..)) {
            parts[place] = format!("<tool_result>{}</tool_result>", result.content).into();
        }
    }
}
