//! The model on simulated NPUs of each generation, against the reference's numbers and the exact engine.
#![allow(clippy::unwrap_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use belay_ascend::Products;
use chips::{backend, on_every_chip, small_cache};
use model::*;

/// Error of a token's logits, root mean square, as a part of theirs, at most. In bf16 the inputs and results of linears are
/// rounded to 8 bits. It holds for tokens as long as no other expert or entry was chosen than by the reference; behind
/// that, models of random weights say something else.
const TOLERANCES: [(Products, f64); 2] = [(Products::F32, 1e-5), (Products::Bf16, 0.04)];

#[test]
fn golden_cases() {
    on_every_chip("golden_cases_on_this_chip");
}

#[test]
#[ignore = "run by golden_cases on each chip"]
fn golden_cases_on_this_chip() {
    for (products, tolerance) in TOLERANCES {
        let (mut compared, mut all) = (0, 0);
        for case in CASES {
            let loaded = small_cache(&golden_dir(case), backend(products));
            let (golden, tensors) = golden(case);
            for sequence in &golden.sequences {
                let (name, tokens) = (&sequence.name, sequence.ids().len());
                let mut trace = Recorder::default();
                let found = logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut trace);
                let expected = tensors.f32(&format!("{name}.logits"));
                let same = first_other_choice(&trace, &tensors, name, tokens);
                let width = expected.len() / tokens;
                let pairs = found.chunks_exact(width).zip(expected.chunks_exact(width)).take(same);
                let worst =
                    pairs.map(|(found, expected)| relative_error(found, expected)).fold(0.0, f64::max);
                println!("| {products:?} | {case} {name} | {same} of {tokens} tokens | {worst:.1e} |");
                assert!(worst <= tolerance, "{products:?} {case} {name}: {worst}");
                assert!(products == Products::Bf16 || same == tokens, "f32 chooses as the reference does");
                (compared, all) = (compared + same, all + tokens);
            }
        }
        assert!(4 * compared >= all, "{products:?}: {compared} of {all} tokens were compared");
    }
}
