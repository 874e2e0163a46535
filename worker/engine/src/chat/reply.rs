//! A reply's stream, parted into reasoning and content.

use crate::tokenizer::Tokenizer;

const THINK: &str = "<think>";
const THINK_END: &str = "</think>";

/// Follows the events of one chat request.
pub struct Reply {
    think_end: Option<u32>,
    in_reasoning: bool,
}

/// Text of one event.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct ReplyPart {
    /// What the model thinks, before `</think>`.
    pub reasoning: String,
    /// What it says.
    pub content: String,
}

impl Reply {
    /// At the start of the reply to a prompt: in reasoning if that ends with `<think>`.
    #[must_use]
    pub fn after(prompt: &str, tokenizer: &Tokenizer) -> Self {
        let think_end = tokenizer.think_end();
        Self { think_end, in_reasoning: think_end.is_some() && prompt.ends_with(THINK) }
    }

    /// Takes tokens that another worker already produced; their text is out.
    pub fn resume(&mut self, ids: &[u32]) {
        if ids.iter().any(|id| self.think_end == Some(*id)) {
            self.in_reasoning = false;
        }
    }

    /// Parts the text of one [`crate::Event::Tokens`]. Reasoning ends at the *token* `</think>`, not at text that
    /// looks like it; the marker itself is in neither part, nor is a stray one in the content.
    pub fn push(&mut self, ids: &[u32], text: &str) -> ReplyPart {
        let has_marker = ids.last().is_some_and(|last| self.think_end == Some(*last));
        // An event ends with the marker token if it has one, and the marker's text is then never held back.
        let text = if has_marker { text.strip_suffix(THINK_END).unwrap_or(text) } else { text };
        let mut part = ReplyPart::default();
        if self.in_reasoning {
            part.reasoning = text.into();
        } else {
            part.content = text.into();
        }
        self.in_reasoning &= !has_marker;
        part
    }
}
