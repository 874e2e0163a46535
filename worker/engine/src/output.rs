//! The text side of one request: tokens in, certain text out, and when to end.

use std::sync::Arc;

use crate::detokenizer::Detokenizer;
use crate::request::{FinishReason, Stop};
use crate::stop::StopMatcher;
use crate::tokenizer::Tokenizer;

/// Follows the tokens of one request.
///
/// What comes out depends on the tokens only. So a worker that goes on with a request replays the tokens that were
/// already produced, drops the text they give, and continues exactly where the other worker's text ended, half
/// characters and half stop strings included.
pub struct Output {
    tokenizer: Arc<Tokenizer>,
    detokenizer: Detokenizer,
    matcher: StopMatcher,
    stop_ids: Vec<u32>,
    ignore_eos: bool,
    /// Tokens that come before one may end the output.
    until_stop: u32,
    /// Tokens that may still be produced.
    left: usize,
}

impl Output {
    /// `room`: how many tokens the context has left for the output.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>, stop: &Stop, room: usize) -> Self {
        Self {
            detokenizer: Detokenizer::new(tokenizer.clone()),
            matcher: StopMatcher::new(&stop.strings),
            stop_ids: stop.ids.clone(),
            ignore_eos: stop.ignore_eos,
            until_stop: stop.min_tokens,
            left: stop.max_tokens.map_or(room, |max| room.min(max as usize)),
            tokenizer,
        }
    }

    /// Takes the next token, appends the text that became certain, and says whether the output ends here.
    ///
    /// The text of a stop id is not part of the output, nor is that of end-of-sequence. A stop string does not reach
    /// across the end of `</think>`: reasoning and answer are two texts, and all of the first is out when the
    /// second begins.
    ///
    /// None of the first `min_tokens` tokens ends the output, but for the length: not even by completing a stop
    /// string, as in vLLM. One that begins in them and is completed after them does.
    pub fn push(&mut self, id: u32, text: &mut String) -> Option<FinishReason> {
        self.left = self.left.saturating_sub(1);
        let may_stop = self.until_stop == 0;
        self.until_stop = self.until_stop.saturating_sub(1);
        if may_stop && self.stop_ids.contains(&id) {
            return Some(self.end(FinishReason::StopId(id), text));
        }
        if may_stop && !self.ignore_eos && self.tokenizer.eos().contains(&id) {
            return Some(self.end(FinishReason::EndOfSequence, text));
        }
        let mut piece = String::new();
        if self.tokenizer.think_end() == Some(id) {
            self.detokenizer.flush(&mut piece);
        }
        self.detokenizer.push(id, &mut piece);
        if may_stop {
            if let Some(found) = self.matcher.push(&piece, text) {
                return Some(FinishReason::StopString(found));
            }
        } else {
            self.matcher.pass(&piece, text);
        }
        if self.tokenizer.think_end() == Some(id) {
            self.matcher.flush(text);
        }
        (self.left == 0).then(|| self.end(FinishReason::Length, text))
    }

    /// Ends the output because the constraint admits nothing more.
    pub fn complete(&mut self, text: &mut String) -> FinishReason {
        self.end(FinishReason::Complete, text)
    }

    /// Tokens that may still be produced.
    #[must_use]
    pub fn left(&self) -> usize {
        self.left
    }

    /// Gives out what was held back. A stop string may still be completed by the U+FFFD of a half character.
    fn end(&mut self, reason: FinishReason, text: &mut String) -> FinishReason {
        let mut piece = String::new();
        self.detokenizer.flush(&mut piece);
        if let Some(found) = self.matcher.push(&piece, text) {
            return FinishReason::StopString(found);
        }
        self.matcher.flush(text);
        reason
    }
}
