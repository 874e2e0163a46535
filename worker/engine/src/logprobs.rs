//! Log-probabilities of tokens, as clients see them.

use crate::exp::exp;
use crate::ranking;
use crate::request::TokenLogprobs;
use crate::sampler::{SampleError, highest};

/// Log-probability of the token `id` by the row `logits` (those behind the token before it), and of the `top` likeliest
/// tokens: natural logarithms of the softmax of the row as it is (vLLM's default, `raw_logprobs`).
///
/// # Errors
/// [`SampleError`] if a logit is NaN or +inf, or all are -inf.
pub fn token_logprobs(logits: &[f32], id: u32, top: u32) -> Result<TokenLogprobs, SampleError> {
    let highest = f64::from(highest(logits)?);
    let weight = |logit: f32| exp(f64::from(logit) - highest);
    let mut lanes = [0.0; 8];
    let (chunks, rest) = logits.as_chunks::<8>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane += weight(logit);
        }
    }
    let mass = lanes.iter().sum::<f64>() + rest.iter().map(|&logit| weight(logit)).sum::<f64>();
    let log_mass = mass.ln();
    let logprob = |id: u32| {
        let logit = logits.get(id as usize).copied().unwrap_or(f32::NEG_INFINITY);
        (f64::from(logit) - highest - log_mass) as f32
    };
    let mut ranks = Vec::new();
    ranking::top(logits, top as usize, &mut ranks);
    let top = ranks.iter().map(|rank| (rank.id(), logprob(rank.id()))).collect();
    Ok(TokenLogprobs { id, logprob: logprob(id), top })
}
