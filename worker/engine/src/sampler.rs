//! Chooses the next token from a row of logits.
//!
//! Token `i` of a request depends on its logits, the sampling settings, the seed and `i`, and on nothing else: not on
//! what was drawn before, not on the rest of the batch. So a request that moves to another worker in the middle goes
//! on with the same tokens; and a guess of the token (speculation) that is right is accepted with exactly the
//! probability that the token has, and one that is wrong changes nothing.

use rand_core::Rng;
use rand_pcg::Pcg64;

use crate::exp::exp;
use crate::ranking::{self, Rank};
use crate::request::Sampling;

/// Why no token can be chosen.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SampleError {
    /// The forward produced NaN or +inf.
    #[error("the logit of token {id} is not a number or infinite")]
    NotFinite {
        /// Lowest such token id.
        id: u32,
    },
    /// Every token is masked.
    #[error("no token has a finite logit")]
    NoCandidate,
    /// The constraint cannot be followed any further.
    #[error("the constraint: {0}")]
    Constraint(String),
}

/// Weights are summed in blocks of so many tokens, so that a draw looks at one block and not at the vocabulary.
const BLOCK: usize = 256;

/// Bins of top-p: 16 for each factor of 2 in probability, down to 2^-64; the last one takes all the rest.
const BINS: usize = 1024;

/// Chooses tokens; keeps its scratch space between calls.
#[derive(Default)]
pub struct Sampler {
    /// Unnormalised probabilities, `[vocab]`; the likeliest token has 1, one that must not be drawn 0.
    weights: Vec<f64>,
    /// Mass of each bin of top-p.
    masses: Vec<f64>,
    ranks: Vec<Rank>,
    /// A row that penalties and masks were applied to.
    pub(crate) row: Vec<f32>,
}

impl Sampler {
    /// The token at position `index` of a request's output (0 is the first produced token). `logits` is `[vocab]`;
    /// a logit of -inf masks its token.
    ///
    /// Temperature 0 takes the highest logit, the lowest id among equals. Otherwise, in vLLM's order: temperature,
    /// min-p, top-k, then top-p over what is left (the smallest set of most likely tokens whose mass reaches `top_p`),
    /// then one draw. Of equally likely tokens the lower ids are kept.
    ///
    /// # Errors
    /// [`SampleError`] if a logit is NaN or +inf, or all are -inf.
    pub fn sample(&mut self, logits: &[f32], sampling: &Sampling, index: u32) -> Result<u32, SampleError> {
        let (best, max) = greedy(logits)?;
        if sampling.temperature == 0.0 || sampling.top_k == 1 {
            return Ok(best);
        }
        let (max, temperature) = (f64::from(max), f64::from(sampling.temperature));
        self.weights.clear();
        self.weights.extend(logits.iter().map(|&logit| exp((f64::from(logit) - max) / temperature)));
        if sampling.min_p > 0.0 {
            self.keep_min_p(sampling.min_p);
        }
        if sampling.top_k > 0 && (sampling.top_k as usize) < logits.len() {
            self.keep_top_k(logits, sampling.top_k as usize);
        }
        if sampling.top_p < 1.0 {
            self.keep_top_p(logits, f64::from(sampling.top_p));
        }
        Ok(self.draw(uniform(sampling.seed, index)).unwrap_or(best))
    }

    fn keep_min_p(&mut self, min_p: f32) {
        let min_p = f64::from(min_p);
        for weight in &mut self.weights {
            *weight = if *weight < min_p { 0.0 } else { *weight };
        }
    }

    fn keep_top_k(&mut self, logits: &[f32], k: usize) {
        ranking::top(logits, k, &mut self.ranks);
        let Some(&last) = self.ranks.last().filter(|_| self.ranks.len() == k) else { return };
        let cut = logits[last.id() as usize];
        for ((weight, &logit), id) in self.weights.iter_mut().zip(logits).zip(0u32..) {
            if logit <= cut && Rank::new(id, logit) < last {
                *weight = 0.0;
            }
        }
    }

    /// Finds the bin in which the mass reaches `top_p`, and sorts only that one.
    fn keep_top_p(&mut self, logits: &[f32], top_p: f64) {
        self.masses.clear();
        self.masses.resize(BINS, 0.0);
        for &weight in &self.weights {
            self.masses[bin(weight)] += weight;
        }
        let wanted = top_p * self.masses.iter().sum::<f64>();
        let mut before = 0.0;
        let cut_bin = self.masses.iter().position(|mass| {
            let reached = before + mass >= wanted;
            if !reached {
                before += mass;
            }
            reached
        });
        let Some(cut_bin) = cut_bin else { return };
        self.ranks.clear();
        for ((weight, &logit), id) in self.weights.iter_mut().zip(logits).zip(0u32..) {
            match bin(*weight) {
                bin if bin > cut_bin => *weight = 0.0,
                bin if bin == cut_bin && *weight > 0.0 => self.ranks.push(Rank::new(id, logit)),
                _ => {}
            }
        }
        self.ranks.sort_unstable_by(|a, b| b.cmp(a));
        for rank in &self.ranks {
            let weight = &mut self.weights[rank.id() as usize];
            if before >= wanted {
                *weight = 0.0;
            }
            before += *weight;
        }
    }

    /// The token at the share `uniform` of all weights, in the order of ids. `None` only if all are 0.
    fn draw(&mut self, uniform: f64) -> Option<u32> {
        self.masses.clear();
        let mut total = 0.0;
        self.masses.extend(self.weights.chunks(BLOCK).map(|block| {
            total += sum(block);
            total
        }));
        let target = uniform * total;
        // Rounding may leave `target` at the very end: then the last token with any weight is the answer.
        let block = self.masses.partition_point(|&mass| mass <= target);
        let block = if block < self.masses.len() { block } else { self.last_block()? };
        let mut mass = if block == 0 { 0.0 } else { self.masses[block - 1] };
        let start = block * BLOCK;
        let mut chosen = None;
        for (&weight, index) in self.weights[start..].iter().take(BLOCK).zip(start..) {
            mass += weight;
            if weight > 0.0 {
                chosen = u32::try_from(index).ok();
                if mass > target {
                    break;
                }
            }
        }
        chosen
    }

    /// The last block with any weight.
    fn last_block(&self) -> Option<usize> {
        self.weights.iter().rposition(|&weight| weight > 0.0).map(|index| index / BLOCK)
    }
}

/// Which bin a weight belongs to; the likeliest tokens are in the first one. Of a number from 0 to 1, the exponent and
/// the first bits behind the point are the logarithm closely enough.
fn bin(weight: f64) -> usize {
    const MANTISSA_BITS_LEFT_OUT: u32 = 48;
    let distance = 1f64.to_bits().saturating_sub(weight.to_bits());
    ((distance >> MANTISSA_BITS_LEFT_OUT) as usize).min(BINS - 1)
}

/// In a fixed order that can be vectorised.
fn sum(weights: &[f64]) -> f64 {
    const LANES: usize = 8;
    let mut lanes = [0.0; LANES];
    let (chunks, rest) = weights.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, weight) in lanes.iter_mut().zip(chunk) {
            *lane += weight;
        }
    }
    lanes.iter().sum::<f64>() + rest.iter().sum::<f64>()
}

/// The token with the highest logit, the lowest id among equals, and its logit.
fn greedy(logits: &[f32]) -> Result<(u32, f32), SampleError> {
    let highest = highest(logits)?;
    // `==`: 0.0 and -0.0 are a tie.
    let id = position(logits, |logit| logit == highest).ok_or(SampleError::NoCandidate)?;
    Ok((id, highest))
}

/// The highest logit.
///
/// # Errors
/// [`SampleError`] if a logit is NaN or +inf, or all are -inf.
pub(crate) fn highest(logits: &[f32]) -> Result<f32, SampleError> {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    // NaN is not less than anything.
    let mut is_sound = true;
    let (chunks, rest) = logits.as_chunks::<LANES>();
    for chunk in chunks {
        for (lane, &logit) in lanes.iter_mut().zip(chunk) {
            *lane = if logit > *lane { logit } else { *lane };
        }
        is_sound &= chunk.iter().fold(true, |all, &logit| all & (logit < f32::INFINITY));
    }
    is_sound &= rest.iter().all(|&logit| logit < f32::INFINITY);
    if !is_sound && let Some(id) = position(logits, |logit| logit.is_nan() || logit == f32::INFINITY) {
        return Err(SampleError::NotFinite { id });
    }
    let highest = lanes.iter().chain(rest).copied().fold(f32::NEG_INFINITY, f32::max);
    if highest > f32::NEG_INFINITY { Ok(highest) } else { Err(SampleError::NoCandidate) }
}

fn position(logits: &[f32], is_it: impl Fn(f32) -> bool) -> Option<u32> {
    logits.iter().position(|&logit| is_it(logit)).and_then(|id| u32::try_from(id).ok())
}

/// A number in [0, 1) with 53 random bits: output `index` of the PCG sequence that belongs to `seed`.
fn uniform(seed: u64, index: u32) -> f64 {
    let mut rng = Pcg64::new(
        u128::from(split_mix(seed)) << 64 | u128::from(split_mix(seed ^ 0x5851_F42D_4C95_7F2D)),
        0x0a02_bdbf_7bb3_c0a7_ac28_fa16_a64a_bf96,
    );
    rng.advance(u128::from(index));
    (rng.next_u64() >> 11) as f64 * (1.0 / (1u64 << 53) as f64)
}

/// SplitMix64's finaliser (Steele, Lea, Flood 2014): spreads neighbouring seeds over the whole state space, so that
/// requests with seeds 1, 2, 3 … do not draw related numbers.
fn split_mix(seed: u64) -> u64 {
    let mut z = seed.wrapping_add(0x9E37_79B9_7F4A_7C15);
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}
