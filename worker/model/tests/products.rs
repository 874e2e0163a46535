//! Inputs of linears in bf16: how far results are from the reference's, on every level that this machine has.

mod common;

use belay_cpu::{CpuBackend, Level, Products};
use belay_model::Numerics;
use common::*;

/// Error of a token's logits, root mean square, as a part of theirs, at most: inputs are rounded to 8 bits. It holds for tokens
/// as long as no other expert or entry was chosen than by the reference; behind that, models of random weights say
/// something else.
const TOLERANCE: f64 = 0.04;
/// A token may be another where the reference's best two are closer than this.
const MARGIN: f32 = 0.5;

fn backends() -> impl Iterator<Item = (Level, CpuBackend)> {
    let backend = |level| Some((level, CpuBackend::with(level, 2)?.with_products(Products::Bf16)));
    Level::ALL.into_iter().filter_map(backend)
}

#[test]
fn golden_cases_in_bf16() {
    let (mut compared, mut all) = (0, 0);
    for case in CASES {
        for (level, backend) in backends() {
            let loaded = load_with(&golden_dir(case), backend, Numerics::EXACT);
            let (golden, tensors) = golden(case);
            for sequence in &golden.sequences {
                let (name, tokens) = (&sequence.name, sequence.ids().len());
                let mut trace = Recorder::default();
                let found = logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut trace);
                let expected = tensors.f32(&format!("{name}.logits"));
                let same = first_other_choice(&trace, &tensors, name, tokens);
                let width = expected.len() / tokens;
                let pairs = found.chunks_exact(width).zip(expected.chunks_exact(width)).take(same);
                let errors = pairs.map(|(found, expected)| relative_error(found, expected));
                let worst = errors.fold(0.0, f64::max);
                println!("| {level} | {case} {name} | {same} of {tokens} tokens | {worst:.1e} |");
                assert!(worst <= TOLERANCE, "{level} {case} {name}: {worst}");
                (compared, all) = (compared + same, all + tokens);
            }
        }
    }
    assert!(4 * compared >= all, "{compared} of {all} tokens were compared");
}

/// Every fifth prompt of the trained model, on the best level.
#[test]
fn trained_model_answers_alike_in_bf16() {
    let (_, backend) = backends().last().unwrap();
    let loaded = load_with(&nano_dir("bf16"), backend, Numerics::EXACT);
    let (mut equal, mut all) = (0, 0);
    let share = if std::env::var_os("BELAY_PRODUCTS_ALL").is_some() { 1 } else { 5 };
    for prompt in prompts().iter().step_by(share) {
        let stop = prompt.greedy_ids.last().copied();
        let found = greedy(&loaded, &prompt.prompt_ids, prompt.greedy_ids.len(), stop);
        let same = found == prompt.greedy_ids;
        assert!(same || prompt.min_margin < MARGIN, "{}: margin {}", prompt.id, prompt.min_margin);
        (equal, all) = (equal + usize::from(same), all + 1);
    }
    println!("{equal} of {all} answers are equal");
    assert!(10 * equal >= 9 * all, "{equal} of {all}");
}
