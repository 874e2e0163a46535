//! What changes a row of logits before a token is drawn from it: bias and penalties.

use std::collections::{HashMap, HashSet};

use crate::request::Sampling;

/// The tokens of a request so far, as far as its penalties need them.
pub struct Penalties {
    presence: f32,
    frequency: f32,
    repetition: f32,
    /// How often each token was produced. Empty if no penalty is set.
    produced: HashMap<u32, u32>,
    /// Tokens of the prompt. Empty unless repetition is penalised.
    prompt: HashSet<u32>,
}

impl Penalties {
    pub fn new(sampling: &Sampling, prompt: &[u32]) -> Self {
        let repetition = sampling.repetition_penalty;
        let prompt = if repetition == 1.0 { HashSet::new() } else { prompt.iter().copied().collect() };
        Self {
            presence: sampling.presence_penalty,
            frequency: sampling.frequency_penalty,
            repetition,
            produced: HashMap::new(),
            prompt,
        }
    }

    /// Whether no logit ever changes.
    pub fn are_off(&self) -> bool {
        self.presence == 0.0 && self.frequency == 0.0 && self.repetition == 1.0
    }

    /// A token was produced.
    pub fn count(&mut self, token: u32) {
        if !self.are_off() {
            *self.produced.entry(token).or_default() += 1;
        }
    }

    /// As vLLM does, in this order: repetition (of prompt and output) divides a positive logit and multiplies a
    /// negative one; frequency (output only) subtracts for each time; presence (output only) subtracts once. The last
    /// two are OpenAI's definitions.
    pub fn apply(&self, logits: &mut [f32]) {
        if self.are_off() {
            return;
        }
        for (&token, &count) in &self.produced {
            if let Some(logit) = logits.get_mut(token as usize) {
                *logit = self.repeated(*logit) - self.frequency * count as f32 - self.presence;
            }
        }
        for token in self.prompt.iter().filter(|token| !self.produced.contains_key(token)) {
            if let Some(logit) = logits.get_mut(*token as usize) {
                *logit = self.repeated(*logit);
            }
        }
    }

    fn repeated(&self, logit: f32) -> f32 {
        // A tiny penalty must not make a sound logit infinite.
        match logit {
            f32::INFINITY => logit,
            _ if logit > 0.0 => (logit / self.repetition).min(f32::MAX),
            _ => logit * self.repetition,
        }
    }
}
