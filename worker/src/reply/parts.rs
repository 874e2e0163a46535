//! The text of an answer, parted into what the wire has fields for.

use std::sync::Arc;

use belay_engine::chat::{ReplyEvent, ReplyParser};
use belay_engine::{Output, Stop, Tokenizer};
use belay_proto::inference::{GenerateResponse, ToolCallDelta};

use super::mailbox::join;

/// What the text of an answer is parted into.
pub enum Parts {
    /// Nothing: it is all text.
    Plain,
    /// Reasoning, content, calls.
    Chat {
        /// Follows the text.
        parser: Box<ReplyParser>,
        /// Tokens of the reasoning so far.
        reasoning_tokens: u32,
    },
}

impl Parts {
    /// Of a conversation's reply.
    #[must_use]
    pub fn chat(parser: ReplyParser) -> Self {
        Self::Chat { parser: Box::new(parser), reasoning_tokens: 0 }
    }

    /// Goes over tokens that another worker already produced: what they say is with the client.
    pub fn resume(&mut self, tokenizer: &Arc<Tokenizer>, stop: &Stop, ids: &[u32]) {
        if matches!(self, Self::Plain) {
            return;
        }
        let mut output = Output::new(Arc::clone(tokenizer), stop, usize::MAX);
        for id in ids {
            let mut text = String::new();
            output.push(*id, &mut text);
            self.push(1, &text, &mut GenerateResponse::default());
        }
    }

    /// Takes text that came with so many tokens.
    pub fn push(&mut self, tokens: usize, text: &str, piece: &mut GenerateResponse) {
        match self {
            Self::Plain => piece.text.push_str(text),
            Self::Chat { parser, reasoning_tokens } => {
                // the token that ends the reasoning is the last one of its event
                if parser.in_reasoning() {
                    *reasoning_tokens += tokens as u32;
                }
                parser.push(text).into_iter().for_each(|event| say(event, piece));
            }
        }
    }

    /// Takes the end of the text.
    pub fn finish(&mut self, was_cut: bool, piece: &mut GenerateResponse) {
        if let Self::Chat { parser, .. } = self {
            parser.finish(was_cut).into_iter().for_each(|event| say(event, piece));
        }
    }

    /// Tokens of the reasoning.
    #[must_use]
    pub fn reasoning_tokens(&self) -> u32 {
        match self {
            Self::Plain => 0,
            Self::Chat { reasoning_tokens, .. } => *reasoning_tokens,
        }
    }

    /// Whether there are calls in it.
    #[must_use]
    pub fn has_calls(&self) -> bool {
        matches!(self, Self::Chat { parser, .. } if parser.calls() > 0)
    }
}

fn say(event: ReplyEvent, piece: &mut GenerateResponse) {
    let delta = |index: usize| ToolCallDelta { index: index as u32, ..ToolCallDelta::default() };
    match event {
        ReplyEvent::Reasoning(text) => piece.reasoning.push_str(&text),
        ReplyEvent::Content(text) => piece.text.push_str(&text),
        ReplyEvent::ToolCallBegin { index, id, name } => {
            piece.tool_calls.push(ToolCallDelta { id, name, ..delta(index) });
        }
        ReplyEvent::ToolCallArguments { index, text } => {
            join(&mut piece.tool_calls, ToolCallDelta { arguments: text, ..delta(index) });
        }
        ReplyEvent::ToolCallEnd { .. } => {}
    }
}
