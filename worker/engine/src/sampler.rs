//! Chooses the next token from a row of logits.
//!
//! Token `i` of a request depends on its logits, the sampling settings, the seed and `i`, and on nothing else: not on
//! what was drawn before, not on the rest of the batch. So a request that moves to another worker in the middle goes
//! on with the same tokens.

use std::collections::BinaryHeap;

use rand_core::Rng;
use rand_pcg::Pcg64;

use crate::request::Sampling;

/// Logits that no token can be chosen from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
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
}

/// Chooses tokens; keeps its scratch space between calls.
#[derive(Default)]
pub struct Sampler {
    scratch: Vec<Candidate>,
    kept: Vec<Candidate>,
}

/// A token with its logit. Ordered by logit, then by *lower* id, so that the greatest is the greedy choice.
#[derive(Clone, Copy)]
struct Candidate {
    id: u32,
    logit: f32,
}

impl Ord for Candidate {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.logit.total_cmp(&other.logit).then(other.id.cmp(&self.id))
    }
}

impl PartialOrd for Candidate {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Candidate {
    fn eq(&self, other: &Self) -> bool {
        self.cmp(other).is_eq()
    }
}

impl Eq for Candidate {}

impl Sampler {
    /// The token at position `index` of a request's output (0 is the first produced token). `logits` is `[vocab]`;
    /// a logit of -inf masks its token.
    ///
    /// Temperature 0 takes the highest logit, the lowest id among equals. Otherwise: top-k, then top-p over what is
    /// left (the smallest set of most likely tokens whose mass reaches `top_p`), then one draw.
    ///
    /// # Errors
    /// [`SampleError`] if a logit is NaN or +inf, or all are -inf.
    pub fn sample(&mut self, logits: &[f32], sampling: &Sampling, index: u32) -> Result<u32, SampleError> {
        let best = greedy(logits)?;
        if sampling.temperature == 0.0 || sampling.top_k == 1 {
            return Ok(best.id);
        }
        let weights = Weights { max: best.logit, temperature: sampling.temperature };
        self.select(logits, sampling, weights);
        let total: f64 = self.scratch.iter().map(|c| weights.of(c.logit)).sum();
        let target = uniform(sampling.seed, index) * total;
        let mut mass = 0.0;
        let mut chosen = best.id;
        for candidate in &self.scratch {
            let weight = weights.of(candidate.logit);
            mass += weight;
            // Rounding may leave `target` at the very end: then the last token with any weight is the answer.
            if weight > 0.0 {
                chosen = candidate.id;
                if mass > target {
                    break;
                }
            }
        }
        Ok(chosen)
    }

    /// Leaves in `scratch` the tokens that may be drawn, in an order that depends on their logits and ids only.
    fn select(&mut self, logits: &[f32], sampling: &Sampling, weights: Weights) {
        self.scratch.clear();
        self.scratch.extend(
            (0u32..)
                .zip(logits)
                .filter(|(_, logit)| **logit > f32::NEG_INFINITY)
                // Adding 0.0 makes -0.0 equal to 0.0 for `total_cmp` too.
                .map(|(id, &logit)| Candidate { id, logit: logit + 0.0 }),
        );
        let k = sampling.top_k as usize;
        if k > 0 && k < self.scratch.len() {
            self.scratch.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
            self.scratch.truncate(k);
            self.scratch.sort_unstable_by(|a, b| b.cmp(a));
        }
        if sampling.top_p < 1.0 {
            let total: f64 = self.scratch.iter().map(|c| weights.of(c.logit)).sum();
            let wanted = f64::from(sampling.top_p) * total;
            // A heap finds the few most likely tokens without sorting the vocabulary.
            let mut heap = BinaryHeap::from(std::mem::take(&mut self.scratch));
            let mut mass = 0.0;
            while let Some(candidate) = heap.pop() {
                mass += weights.of(candidate.logit);
                self.kept.push(candidate);
                if mass >= wanted {
                    break;
                }
            }
            self.scratch = heap.into_vec();
            self.scratch.clear();
            std::mem::swap(&mut self.scratch, &mut self.kept);
        }
    }
}

/// Unnormalised probabilities; the most likely token has 1.
#[derive(Clone, Copy)]
struct Weights {
    max: f32,
    temperature: f32,
}

impl Weights {
    fn of(self, logit: f32) -> f64 {
        ((f64::from(logit) - f64::from(self.max)) / f64::from(self.temperature)).exp()
    }
}

fn greedy(logits: &[f32]) -> Result<Candidate, SampleError> {
    let mut best: Option<Candidate> = None;
    for (id, &logit) in (0u32..).zip(logits) {
        if logit.is_nan() || logit == f32::INFINITY {
            return Err(SampleError::NotFinite { id });
        }
        // `>` and not `total_cmp`: 0.0 and -0.0 are a tie.
        if logit > best.map_or(f32::NEG_INFINITY, |b| b.logit) {
            best = Some(Candidate { id, logit });
        }
    }
    best.ok_or(SampleError::NoCandidate)
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
