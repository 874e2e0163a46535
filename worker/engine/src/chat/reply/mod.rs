//! A reply's text, taken apart as it comes: reasoning, content, calls of tools.
//!
//! ```text
//! reasoning</think>content
//!
//! <｜DSML｜tool_calls>
//! <｜DSML｜invoke name="f">
//! <｜DSML｜parameter name="a" string="true">raw text</｜DSML｜parameter>
//! <｜DSML｜parameter name="n" string="false">5</｜DSML｜parameter>
//! </｜DSML｜invoke>
//! </｜DSML｜tool_calls>
//! ```
//!
//! The events depend on the text alone, not on how it is cut into pieces. Text waits only while it may be the beginning
//! of a tag. Time is linear in the text; what is held is a tag at most, or one value that is not a string.
//!
//! No output is an error, and no text gets lost: every character that is neither part of a tag nor white space between
//! the tags of a block is in exactly one event. What stands where only tags should stand is content.

mod arguments;
mod events;
mod head;
mod scan;

use super::texts::{INVOKE, PARAMETER};
use super::tools::Tools;
use arguments::Arguments;
pub use events::ReplyEvent;
use events::{Events, call_id};
use head::Head;
use scan::{Scan, Tag, scan};
use serde_json::Value;

/// White space between the opening tag of a block and its first call, in bytes. With more, it is no block.
const GAP: usize = 64;
/// Newlines before a block that belong to it.
const BLOCK_NEWLINES: usize = 2;

/// Follows the text of one reply.
#[derive(Debug)]
pub struct ReplyParser {
    state: State,
    /// Text that is undecided, all of it read in `state`.
    pending: String,
    tools: Tools,
    /// Makes the ids of calls.
    request_id: String,
    /// Calls begun.
    calls: usize,
    /// Of the open call.
    arguments: Option<Arguments>,
}

#[derive(Debug)]
enum State {
    /// Before `</think>`.
    Reasoning,
    Content,
    /// After the opening tag of a block; the text of it, should it turn out to be none.
    Block {
        raw: String,
    },
    /// In the head of a call; the text up to the name.
    Call {
        raw: String,
        must_be_known: bool,
    },
    /// Between the parameters of a call, or in text that should not be there.
    Parameters {
        is_text: bool,
    },
    /// In the head of a parameter.
    Parameter,
    /// In the value of a parameter.
    Value,
    /// Between calls, or in text that should not be there.
    Calls {
        is_text: bool,
    },
}

impl ReplyParser {
    /// At the start of a reply, in its reasoning or not (see [`super::ends_in_reasoning`]).
    ///
    /// `tools` are OpenAI tool objects. Without any, calls are not looked for: their tags are text like any other. The
    /// ids of calls follow from `request_id`, so that another worker which continues the reply makes the same ones.
    #[must_use]
    pub fn new(in_reasoning: bool, tools: &[&Value], request_id: &str) -> Self {
        Self {
            state: if in_reasoning { State::Reasoning } else { State::Content },
            pending: String::new(),
            tools: Tools::of(tools),
            request_id: request_id.into(),
            calls: 0,
            arguments: None,
        }
    }

    /// Takes the next piece of text.
    pub fn push(&mut self, text: &str) -> Vec<ReplyEvent> {
        let mut events = Events::default();
        self.pending.push_str(text);
        self.advance(false, &mut events);
        events.into_vec()
    }

    /// Takes the end of the text, and gives out what was held back. Further calls give nothing.
    ///
    /// A reply that was cut (by a limit of tokens, say) leaves a call open as it is: its arguments are the beginning of
    /// a JSON text, and it has no [`ReplyEvent::ToolCallEnd`], so that nobody takes half a call for a whole one.
    /// Otherwise the model just left out closing tags.
    pub fn finish(&mut self, was_cut: bool) -> Vec<ReplyEvent> {
        let mut events = Events::default();
        self.advance(true, &mut events);
        match self.arguments.take() {
            Some(arguments) if was_cut => arguments.cut(&mut events),
            Some(arguments) => arguments.end(&mut events),
            None => {}
        }
        events.into_vec()
    }

    /// Whether the text so far ends within the reasoning.
    #[must_use]
    pub fn in_reasoning(&self) -> bool {
        matches!(self.state, State::Reasoning)
    }

    /// Calls begun so far.
    #[must_use]
    pub fn calls(&self) -> usize {
        self.calls
    }

    fn advance(&mut self, is_end: bool, events: &mut Events) {
        let pending = std::mem::take(&mut self.pending);
        let mut at = 0;
        while let Some(taken) = self.step(&pending[at..], is_end, events) {
            at += taken;
        }
        if !is_end {
            self.pending = pending[at..].to_owned();
        }
    }

    /// Takes some text in the present state: how many bytes, or `None` if it needs more text first. Takes nothing only
    /// when the state changes.
    fn step(&mut self, text: &str, is_end: bool, events: &mut Events) -> Option<usize> {
        match &mut self.state {
            State::Reasoning | State::Content => self.speak(text, is_end, events),
            State::Block { raw } => {
                let rest = text.trim_start();
                let gap = text.len() - rest.len();
                if gap <= GAP && rest.starts_with(INVOKE) {
                    let taken = gap + INVOKE.len();
                    raw.push_str(&text[..taken]);
                    self.state = State::Call { raw: std::mem::take(raw), must_be_known: false };
                    return Some(taken);
                }
                if gap <= GAP && INVOKE.starts_with(rest) && !is_end {
                    return None;
                }
                events.content(raw);
                self.state = State::Content;
                Some(0)
            }
            State::Call { raw, must_be_known } => match head::call(text) {
                Head::Whole { name, taken, .. } if !*must_be_known || self.tools.contains(name) => {
                    self.begin_call(name, events);
                    Some(taken)
                }
                Head::Open if !is_end => None,
                _ => {
                    events.content(raw);
                    self.state = State::Content;
                    Some(0)
                }
            },
            State::Parameters { is_text } => {
                let is_text = *is_text;
                self.between_parameters(text, is_text, events)
            }
            State::Parameter => match head::parameter(text) {
                Head::Whole { name, is_string, taken } => {
                    if let Some(arguments) = &mut self.arguments {
                        arguments.begin(name, is_string, events);
                    }
                    self.state = State::Value;
                    Some(taken)
                }
                Head::Open if !is_end => None,
                _ => {
                    events.content(PARAMETER);
                    self.state = State::Parameters { is_text: true };
                    Some(0)
                }
            },
            State::Value => self.value(text, is_end, events),
            State::Calls { is_text } => {
                let is_text = *is_text;
                self.between_calls(text, is_text, events)
            }
        }
    }

    /// Reasoning or content.
    fn speak(&mut self, text: &str, is_end: bool, events: &mut Events) -> Option<usize> {
        let in_reasoning = self.in_reasoning();
        let tags: &[Tag] = match (self.tools.is_empty(), in_reasoning) {
            (true, _) => &[Tag::Think, Tag::ThinkEnd],
            (false, true) => &[Tag::Think, Tag::ThinkEnd, Tag::Calls],
            // in long contexts models leave out the tag around their calls
            (false, false) => &[Tag::Think, Tag::ThinkEnd, Tag::Calls, Tag::Invoke],
        };
        let newlines = if self.tools.is_empty() { 0 } else { BLOCK_NEWLINES };
        let found = scan(text, tags, newlines, is_end);
        let (Scan::Text(plain) | Scan::Tag { plain, .. }) = found;
        if in_reasoning {
            events.reasoning(&text[..plain]);
        } else {
            events.content(&text[..plain]);
        }
        let Scan::Tag { tag, end, .. } = found else { return (plain > 0).then_some(plain) };
        let raw = text[plain..end].to_owned();
        self.state = match tag {
            Tag::Think => State::Reasoning,
            Tag::Calls => State::Block { raw },
            Tag::Invoke => State::Call { raw, must_be_known: true },
            _ => State::Content,
        };
        Some(end)
    }

    fn begin_call(&mut self, name: &str, events: &mut Events) {
        let index = self.calls;
        self.calls += 1;
        let id = call_id(&self.request_id, index);
        events.push(ReplyEvent::ToolCallBegin { index, id, name: name.into() });
        self.arguments = Some(Arguments::new(index, self.tools.parameters(name).cloned()));
        self.state = State::Parameters { is_text: false };
    }

    fn end_call(&mut self, events: &mut Events) {
        if let Some(arguments) = self.arguments.take() {
            arguments.end(events);
        }
    }

    fn between_parameters(&mut self, text: &str, is_text: bool, events: &mut Events) -> Option<usize> {
        const TAGS: &[Tag] = &[
            Tag::Parameter,
            Tag::ParameterEnd,
            Tag::Invoke,
            Tag::InvokeEnd,
            Tag::Calls,
            Tag::CallsEnd,
            Tag::Think,
            Tag::ThinkEnd,
        ];
        let (taken, next) = between(text, TAGS, is_text, events)?;
        match next {
            Between::Tag(Tag::Parameter) => self.state = State::Parameter,
            Between::Tag(tag @ (Tag::Invoke | Tag::InvokeEnd | Tag::CallsEnd)) => {
                self.leave_call(tag, events);
            }
            Between::Gap | Between::Tag(_) => self.state = State::Parameters { is_text: false },
            Between::Text => self.state = State::Parameters { is_text: true },
        }
        Some(taken)
    }

    fn between_calls(&mut self, text: &str, is_text: bool, events: &mut Events) -> Option<usize> {
        const TAGS: &[Tag] = &[
            Tag::ParameterEnd,
            Tag::Invoke,
            Tag::InvokeEnd,
            Tag::Calls,
            Tag::CallsEnd,
            Tag::Think,
            Tag::ThinkEnd,
        ];
        let (taken, next) = between(text, TAGS, is_text, events)?;
        self.state = match next {
            Between::Tag(Tag::Invoke) => State::Call { raw: INVOKE.into(), must_be_known: false },
            Between::Tag(Tag::CallsEnd) => State::Content,
            Between::Gap | Between::Tag(_) => State::Calls { is_text: false },
            Between::Text => State::Calls { is_text: true },
        };
        Some(taken)
    }

    /// A tag that ends the open call, whatever of it was left out.
    fn leave_call(&mut self, tag: Tag, events: &mut Events) {
        self.end_call(events);
        self.state = match tag {
            Tag::Invoke => State::Call { raw: INVOKE.into(), must_be_known: false },
            Tag::CallsEnd => State::Content,
            _ => State::Calls { is_text: false },
        };
    }

    /// A value ends at its closing tag, or where another parameter begins, or the call or the block ends.
    fn value(&mut self, text: &str, is_end: bool, events: &mut Events) -> Option<usize> {
        const TAGS: &[Tag] = &[Tag::ParameterEnd, Tag::Parameter, Tag::InvokeEnd, Tag::CallsEnd];
        let found = scan(text, TAGS, 1, is_end);
        let (Scan::Text(plain) | Scan::Tag { plain, .. }) = found;
        let arguments = self.arguments.as_mut()?;
        arguments.value(&text[..plain], events);
        let Scan::Tag { tag, end, .. } = found else { return (plain > 0).then_some(plain) };
        arguments.end_value(events);
        match tag {
            Tag::ParameterEnd => self.state = State::Parameters { is_text: false },
            Tag::Parameter => self.state = State::Parameter,
            tag => self.leave_call(tag, events),
        }
        Some(end)
    }
}

/// What comes next where only tags and white space should stand.
enum Between {
    /// White space, which is dropped.
    Gap,
    /// Anything else is content, with the white space in it.
    Text,
    Tag(Tag),
}

/// How many bytes were taken, and what they were. The beginning of a tag at the end of the reply is a tag that was cut.
fn between(text: &str, tags: &[Tag], is_text: bool, events: &mut Events) -> Option<(usize, Between)> {
    let gap = text.len() - text.trim_start().len();
    if gap > 0 && !is_text {
        return Some((gap, Between::Gap));
    }
    match scan(text, tags, 0, false) {
        Scan::Text(0) => None,
        Scan::Text(plain) => {
            events.content(&text[..plain]);
            Some((plain, Between::Text))
        }
        Scan::Tag { plain, tag, end } => {
            events.content(&text[..plain]);
            Some((end, Between::Tag(tag)))
        }
    }
}
