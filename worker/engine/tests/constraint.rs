//! Constrained output: whatever the logits, what comes out is in the grammar's language.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, Instant};

use belay_engine::{
    Choice, Chooser, Constraint, Grammar, Request, SampleError, Sampler, Sampling, Stop, SubmitError,
    Tokenizer,
};
use proptest::prelude::*;
use rand_core::{Rng, SeedableRng};
use rand_pcg::Pcg64;
use serde_json::{Value, json};

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
    Arc::new(Tokenizer::load(&dir).unwrap())
});

fn request(grammar: Grammar) -> Request {
    Request {
        prompt: vec![1],
        sampling: Sampling { temperature: 1.5, ..Sampling::default() },
        constraint: Some(Constraint { grammar, after: None }),
        ..Request::default()
    }
}

fn chooser(request: &Request) -> Result<Chooser, SubmitError> {
    Chooser::new(request, &TOKENIZER, TOKENIZER.vocab_size())
}

fn refusal(grammar: Grammar) -> (&'static str, String) {
    match chooser(&request(grammar)) {
        Err(SubmitError::Invalid { field, message }) => (field, message),
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("taken"),
    }
}

/// Logits of a model that babbles: normal-like noise, the same for the same seed and position.
struct Babble(Pcg64);

impl Babble {
    fn new(seed: u64) -> Self {
        Self(Pcg64::seed_from_u64(seed))
    }

    fn row(&mut self, vocab: usize) -> Vec<f32> {
        let mut uniform = || (self.0.next_u64() >> 40) as f32 / (1u64 << 24) as f32;
        (0..vocab).map(|_| (uniform() + uniform() + uniform() - 1.5) * 6.0).collect()
    }
}

/// Tokens until the constraint is complete, or `None` after `most`. `liking` changes the logits.
fn babble(request: &Request, seed: u64, most: u32, liking: impl Fn(&mut [f32])) -> Option<Vec<u32>> {
    let mut chooser = chooser(request).unwrap();
    let mut sampler = Sampler::default();
    let mut babble = Babble::new(seed);
    let mut ids = Vec::new();
    for index in 0..most {
        chooser.prepare();
        let mut row = babble.row(TOKENIZER.vocab_size());
        liking(&mut row);
        let token = chooser.choose(&row, index, &mut sampler).unwrap().token;
        chooser.accept(token).unwrap();
        ids.push(token);
        if chooser.is_complete() {
            assert!(TOKENIZER.eos().contains(&token));
            return Some(ids);
        }
    }
    None
}

/// Makes short outputs likely: what closes is liked.
fn closing(row: &mut [f32]) {
    for (id, logit) in (0u32..).zip(row.iter_mut()) {
        let bytes = TOKENIZER.bytes(id);
        if bytes.iter().any(|byte| b"\"}]".contains(byte)) {
            *logit += 6.0;
        }
        if TOKENIZER.eos().contains(&id) {
            *logit += 20.0;
        }
    }
}

#[test]
fn any_json_object() {
    let mut completed = 0;
    for seed in 0..30 {
        let Some(ids) = babble(&request(Grammar::JsonObject), seed, 400, closing) else { continue };
        let text = TOKENIZER.decode(&ids);
        let value: Value =
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("seed {seed}: {error}: {text}"));
        assert!(value.is_object());
        completed += 1;
    }
    assert!(completed >= 25, "{completed}");
}
