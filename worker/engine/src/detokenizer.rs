//! Text of a token stream, one token at a time.

use std::sync::Arc;

use crate::tokenizer::Tokenizer;

/// Turns token ids into text as they come.
///
/// Each piece is valid UTF-8; a character that spans tokens comes out with its last token. All pieces together are
/// exactly the lossy decoding of all bytes: a byte is never lost, a sequence that can no longer become a character
/// is one U+FFFD.
pub struct Detokenizer {
    tokenizer: Arc<Tokenizer>,
    /// The start of a character that is not complete yet: at most 3 bytes between calls.
    pending: Vec<u8>,
}

impl Detokenizer {
    /// At the start of a text.
    #[must_use]
    pub fn new(tokenizer: Arc<Tokenizer>) -> Self {
        Self { tokenizer, pending: Vec::new() }
    }

    /// Appends to `text` what becomes certain with this token.
    pub fn push(&mut self, id: u32, text: &mut String) {
        self.pending.extend_from_slice(self.tokenizer.bytes(id));
        let mut done = 0;
        loop {
            let rest = &self.pending[done..];
            let Err(error) = std::str::from_utf8(rest) else {
                text.push_str(&String::from_utf8_lossy(rest));
                done = self.pending.len();
                break;
            };
            text.push_str(&String::from_utf8_lossy(&rest[..error.valid_up_to()]));
            done += error.valid_up_to();
            let Some(invalid) = error.error_len() else { break };
            text.push(char::REPLACEMENT_CHARACTER);
            done += invalid;
        }
        self.pending.drain(..done);
    }

    /// Ends the text: an unfinished character becomes U+FFFD.
    pub fn flush(&mut self, text: &mut String) {
        if !self.pending.is_empty() {
            text.push(char::REPLACEMENT_CHARACTER);
            self.pending.clear();
        }
    }
}
