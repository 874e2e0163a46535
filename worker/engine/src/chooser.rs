//! Chooses the tokens of one request: settings, what was produced so far, and the constraint.

use std::sync::Arc;

use llguidance::toktrie::SimpleVob;

use crate::constraint::Guide;
use crate::logprobs::token_logprobs;
use crate::penalties::Penalties;
use crate::request::{Request, Sampling, SubmitError, TokenLogprobs};
use crate::sampler::{SampleError, Sampler};
use crate::tokenizer::Tokenizer;
use crate::validate;

/// Chooses a request's tokens. Each choice is a pure function of the request, the logits, and the tokens accepted so
/// far; so a request that is computed again, elsewhere, or with guessed tokens gets the same output.
///
/// The order is that of vLLM 0.22 (`vllm/v1/sample/sampler.py`): log-probabilities of the raw logits; the constraint's mask;
/// `min_tokens`; `logit_bias`; repetition, frequency and presence penalty; temperature; min-p; top-k; top-p; the draw.
pub struct Chooser {
    sampling: Sampling,
    penalties: Penalties,
    logprobs: Option<u32>,
    /// Tokens that end the output, and the position from which on they may be chosen.
    ends: Vec<u32>,
    min_tokens: u32,
    guide: Option<Guide>,
}

/// A chosen token.
#[derive(Clone, Debug, PartialEq)]
pub struct Choice {
    /// The token.
    pub token: u32,
    /// Its log-probability, if the request asks for it.
    pub logprobs: Option<TokenLogprobs>,
}

impl Chooser {
    /// For a request of which nothing is produced yet: resumed tokens are to be accepted one by one. `vocab`: tokens
    /// that the model knows.
    ///
    /// Compiling a constraint may take milliseconds.
    ///
    /// # Errors
    /// [`SubmitError::Invalid`] that names the field: a setting out of range, a constraint that is none or too large;
    /// [`SubmitError::Overloaded`] if too many constraints are being compiled.
    pub fn new(request: &Request, tokenizer: &Arc<Tokenizer>, vocab: usize) -> Result<Self, SubmitError> {
        validate::choice(request, vocab)?;
        let stop = &request.stop;
        let eos = if stop.ignore_eos { &[] } else { tokenizer.eos() };
        Ok(Self {
            sampling: request.sampling.clone(),
            penalties: Penalties::new(&request.sampling, &request.prompt),
            logprobs: request.logprobs,
            ends: eos.iter().chain(&stop.ids).copied().collect(),
            min_tokens: stop.min_tokens,
            guide: request
                .constraint
                .as_ref()
                .map(|constraint| Guide::new(constraint, tokenizer))
                .transpose()?,
        })
    }

    /// Begins to compute, on another thread, which tokens the constraint admits next. To be called before the forward
    /// whose logits [`Self::choose`] gets; without it, `choose` waits for all of it.
    pub fn prepare(&mut self) {
        if let Some(guide) = &mut self.guide {
            guide.prepare();
        }
    }

    /// Chooses the token at position `index` of the output (0 is the first produced token) from the logits behind the
    /// token before it.
    ///
    /// # Errors
    /// [`SampleError`] if a logit is not finite, or no token is admitted.
    pub fn choose(
        &mut self,
        logits: &[f32],
        index: u32,
        sampler: &mut Sampler,
    ) -> Result<Choice, SampleError> {
        let mask = match &mut self.guide {
            Some(guide) => guide.mask()?,
            None => None,
        };
        let is_early = index < self.min_tokens;
        let token =
            if mask.is_none() && !is_early && self.sampling.logit_bias.is_empty() && self.penalties.are_off()
            {
                sampler.sample(logits, &self.sampling, index)?
            } else {
                let mut row = std::mem::take(&mut sampler.row);
                row.clear();
                row.extend_from_slice(logits);
                if let Some(mask) = mask {
                    apply_mask(mask, &mut row);
                }
                if is_early {
                    forbid(&self.ends, &mut row);
                }
                for &(token, bias) in &self.sampling.logit_bias {
                    if let Some(logit) = row.get_mut(token as usize) {
                        *logit += bias;
                    }
                }
                self.penalties.apply(&mut row);
                let token = sampler.sample(&row, &self.sampling, index);
                sampler.row = row;
                token?
            };
        let logprobs = self.logprobs.map(|top| token_logprobs(logits, token, top)).transpose()?;
        Ok(Choice { token, logprobs })
    }

    /// The token is now part of the output.
    ///
    /// # Errors
    /// [`SampleError::Constraint`] if the constraint does not admit it.
    pub fn accept(&mut self, token: u32) -> Result<(), SampleError> {
        self.penalties.count(token);
        self.guide.as_mut().map_or(Ok(()), |guide| guide.accept(token))
    }

    /// Whether the constraint admits nothing more. The output then ends with [`crate::FinishReason::Complete`], unless
    /// the last token ends it anyway.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.guide.as_ref().is_some_and(Guide::is_complete)
    }
}

/// Masks what is not admitted.
fn apply_mask(mask: &SimpleVob, row: &mut [f32]) {
    let words = mask.as_slice().iter().copied().chain(std::iter::repeat(0));
    for (logits, word) in row.chunks_mut(32).zip(words) {
        match word {
            0 => logits.fill(f32::NEG_INFINITY),
            u32::MAX => {}
            _ => {
                for (bit, logit) in logits.iter_mut().enumerate() {
                    *logit = if word >> bit & 1 == 1 { *logit } else { f32::NEG_INFINITY };
                }
            }
        }
    }
}

/// Masks tokens, unless nothing else is left: a constraint that is at its end wins.
fn forbid(tokens: &[u32], row: &mut [f32]) {
    let known = tokens.iter().map(|&token| token as usize).filter(|&token| token < row.len());
    let before: Vec<(usize, f32)> = known.map(|token| (token, row[token])).collect();
    for &(token, _) in &before {
        row[token] = f32::NEG_INFINITY;
    }
    if row.iter().all(|&logit| logit == f32::NEG_INFINITY) {
        for (token, logit) in before {
            row[token] = logit;
        }
    }
}
