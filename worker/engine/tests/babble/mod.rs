//! A model that babbles, under constraints: noise instead of logits.
#![allow(clippy::unwrap_used, clippy::expect_used, dead_code)] // helpers of tests

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use belay_engine::{Chooser, Constraint, Grammar, Request, Sampler, Sampling, SubmitError, Tokenizer};
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;

/// The nano model's.
pub static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
    Arc::new(Tokenizer::load(&dir).unwrap())
});

/// Constrained from the first token, at a temperature that likes surprises.
pub fn request(grammar: Grammar) -> Request {
    Request {
        prompt: vec![1],
        sampling: Sampling { temperature: 1.5, ..Sampling::default() },
        constraint: Some(Constraint { grammar, after: None }),
        ..Request::default()
    }
}

pub fn chooser(request: &Request) -> Result<Chooser, SubmitError> {
    Chooser::new(request, &TOKENIZER, TOKENIZER.vocab_size())
}

/// Bell-shaped noise, the same for the same seed and position.
pub struct Babble(Pcg64);

impl Babble {
    pub fn new(seed: u64) -> Self {
        Self(Pcg64::seed_from_u64(seed))
    }

    pub fn row(&mut self, vocab: usize) -> Vec<f32> {
        let mut uniform = || (self.0.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
        (0..vocab).map(|_| (uniform() + uniform() + uniform() - 1.5) * 6.0).collect()
    }
}

/// Tokens of a request's output, the end included; `liking` changes the logits. It must end within `most` tokens.
pub fn ids(request: &Request, seed: u64, most: u32, mut liking: impl FnMut(&mut [f32])) -> Vec<u32> {
    let mut chooser = chooser(request).unwrap();
    let mut sampler = Sampler::default();
    let mut rows = Babble::new(seed);
    let mut ids = Vec::new();
    for index in 0..most {
        chooser.prepare();
        let mut row = rows.row(TOKENIZER.vocab_size());
        liking(&mut row);
        let token = chooser.choose(&row, index, &mut sampler).unwrap().token;
        chooser.accept(token).unwrap();
        ids.push(token);
        if chooser.is_complete() {
            assert!(TOKENIZER.eos().contains(&token));
            return ids;
        }
    }
    panic!("seed {seed}: no end within {most} tokens: {:?}", TOKENIZER.decode(&ids));
}

/// The same as text.
pub fn babble(request: &Request, seed: u64, most: u32, liking: impl FnMut(&mut [f32])) -> String {
    TOKENIZER.decode(&ids(request, seed, most, liking))
}

/// Makes short outputs likely: what closes is liked.
pub fn closing(row: &mut [f32]) {
    for (id, logit) in (0u32..).zip(row.iter_mut()) {
        if TOKENIZER.bytes(id).iter().any(|byte| b"\"}]".contains(byte)) {
            *logit += 6.0;
        }
        if TOKENIZER.eos().contains(&id) {
            *logit += 20.0;
        }
    }
}
