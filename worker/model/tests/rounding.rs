//! The mode that repeats the published code's roundings, against the reference with the same ones patched in.

mod common;

use belay_cpu::{CpuBackend, Level};
use belay_model::{NoTrace, Numerics};
use common::*;

/// A value near a rounding boundary may fall to the other side, and random weights amplify that.
const LOGIT_GATE: f32 = 2e-2;

#[test]
fn rounded_cache_logits_are_close_to_the_reference() {
    let (golden, tensors) = golden("public_fp");
    for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
        let backend = CpuBackend::with(level, 1).unwrap();
        let loaded = load_with(&golden_dir("public_fp"), backend, Numerics::ROUNDED_CACHE);
        let vocab = loaded.model.config().vocab_size;
        let (mut rows, mut agreeing, mut largest) = (0, 0, 0f32);
        for sequence in &golden.sequences {
            let found = logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut NoTrace);
            let expected = tensors.f32(&format!("{}.rounded_logits", sequence.name));
            largest = largest.max(largest_difference(&found, &expected));
            rows += found.len() / vocab;
            agreeing += found
                .chunks_exact(vocab)
                .zip(expected.chunks_exact(vocab))
                .filter(|(found, expected)| argmax(found) == argmax(expected))
                .count();
        }
        println!("{level}: max |Δlogit| {largest:.2e}, argmax {agreeing} of {rows}");
        assert!(largest <= LOGIT_GATE, "{level}: {largest}");
        assert!(rows > 0 && agreeing * 100 >= rows * 99, "{level}: argmax {agreeing} of {rows}");
    }
}

/// With bf16 weights the published code rounds no activation, so only quantised checkpoints may change.
#[test]
fn activations_are_rounded_for_quantised_weights_only() {
    for (case, quantised) in [("public_hybrid", false), ("public_fp", true)] {
        let only_activations = Numerics { activations: true, ..Numerics::EXACT };
        let ids = golden(case).0.sequences[1].ids();
        let of = |numerics| {
            let backend = CpuBackend::with(Level::detect(), 1).unwrap();
            let loaded = load_with(&golden_dir(case), backend, numerics);
            logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace)
        };
        let difference = largest_difference(&of(Numerics::EXACT), &of(only_activations));
        // what is left is float noise: the routing weight goes in before w2 instead of after
        assert_eq!(difference > 1e-4, quantised, "{case}: {difference}");
    }
}
