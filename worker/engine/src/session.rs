//! One sequence being prefilled or decoded.

use crate::outlet::Outlet;
use crate::output::Output;
use crate::request::{Event, FailureKind, FinishReason, Sampling, Usage};
use crate::sampler::Sampler;

/// A request inside the engine, without the model's decode state.
pub struct Session {
    /// Names the session within the engine.
    pub key: u64,
    /// The caller's name for it, for logs.
    pub id: String,
    /// Prompt, then everything produced.
    pub tokens: Vec<u32>,
    pub prompt_len: usize,
    /// Prompt and resumed tokens: what was there before the first step.
    pub given_len: usize,
    /// How many of `tokens` the model's state has taken.
    pub fed: usize,
    pub sampling: Sampling,
    pub output: Output,
    pub outlet: Outlet,
    /// Bytes that the state may come to need.
    pub kv_bytes: usize,
    /// Set if the resumed tokens were the whole output already.
    pub ended: Option<FinishReason>,
}

impl Session {
    /// Tokens that the state has not taken yet: the rest of the prompt, or the token produced last.
    pub fn pending(&self) -> usize {
        self.tokens.len() - self.fed
    }

    fn produced(&self) -> usize {
        self.tokens.len() - self.prompt_len
    }

    /// Chooses the next token from the logits behind the last one, and tells the sink. Returns whether the session
    /// goes on.
    pub fn advance(&mut self, logits: &[f32], sampler: &mut Sampler) -> bool {
        let index = u32::try_from(self.produced()).unwrap_or(u32::MAX);
        let token = match sampler.sample(logits, &self.sampling, index) {
            Ok(token) => token,
            Err(error) => {
                self.fail(format!("token {index}: {error}"), FailureKind::Broken);
                return false;
            }
        };
        self.tokens.push(token);
        let mut text = String::new();
        let ended = self.output.push(token, &mut text);
        if !self.outlet.tokens(vec![token], text) {
            return false;
        }
        let Some(reason) = ended else { return true };
        self.finish(reason);
        false
    }

    /// The good end.
    pub fn finish(&mut self, reason: FinishReason) {
        let count = |tokens| u32::try_from(tokens).unwrap_or(u32::MAX);
        self.outlet.end(Event::Finished {
            reason,
            usage: Usage {
                prompt_tokens: count(self.prompt_len),
                completion_tokens: count(self.produced()),
                cached_tokens: 0,
            },
        });
    }

    /// The bad end.
    pub fn fail(&mut self, message: String, kind: FailureKind) {
        self.outlet.end(Event::Failed { message, kind });
    }
}
