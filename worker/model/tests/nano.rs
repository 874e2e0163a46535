//! The trained model: every evaluation prompt, and both layouts.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::atomic::{AtomicUsize, Ordering};

use belay_cpu::{CpuBackend, Level};
use belay_model::{Draft, NoTrace, Numerics, Scratch};
use common::*;

const MOST_TOKENS: usize = 128;

#[test]
fn every_evaluation_prompt_gives_the_reference_tokens() {
    let prompts = prompts();
    let next = AtomicUsize::new(0);
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let differing: Vec<String> = std::thread::scope(|scope| {
        let worker = || {
            // one each: a model's caches take part in one step at a time
            let loaded = load(&nano_dir("bf16"));
            let stop = loaded.model.config().eos_token;
            let mut differing = Vec::new();
            while let Some(prompt) = prompts.get(next.fetch_add(1, Ordering::Relaxed)) {
                let found = greedy(&loaded, &prompt.prompt_ids, MOST_TOKENS, Some(stop));
                if found != prompt.greedy_ids {
                    let at = found.iter().zip(&prompt.greedy_ids).take_while(|(a, b)| a == b).count();
                    differing.push(format!("{} at token {at}, margin {}", prompt.id, prompt.min_margin));
                }
            }
            differing
        };
        let workers: Vec<_> = (0..threads).map(|_| scope.spawn(worker)).collect();
        workers.into_iter().flat_map(|worker| worker.join().unwrap()).collect()
    });
    let equal = prompts.len() - differing.len();
    println!("{equal} of {} prompts give the reference's tokens", prompts.len());
    assert_eq!((equal, prompts.len()), (220, 220), "{differing:#?}");
}

/// Largest difference of a logit that another order of sums explains.
const ORDER_GATE: f32 = 1e-3;

/// The same weights in FP8 + MXFP4: decoding is exact, so only the order of sums differs.
#[test]
fn both_layouts_give_the_same_answers() {
    let (bf16, fp4) = (load(&nano_dir("bf16")), load(&nano_dir("fp4")));
    assert!(fp4.checkpoint.card().expert_bytes < bf16.checkpoint.card().expert_bytes / 3);
    for prompt in prompts().iter().step_by(31) {
        let ids = [prompt.prompt_ids.as_slice(), &prompt.greedy_ids].concat();
        let expected = logits(&bf16, &*bf16.fabric, &ids, 64, &mut NoTrace);
        let found = logits(&fp4, &*fp4.fabric, &ids, 64, &mut NoTrace);
        let difference = largest_difference(&expected, &found);
        assert!(difference <= ORDER_GATE, "{}: {difference}", prompt.id);
    }
    for prompt in prompts().iter().step_by(23) {
        let found = greedy(&fp4, &prompt.prompt_ids, MOST_TOKENS, Some(fp4.model.config().eos_token));
        assert_eq!(found, prompt.greedy_ids, "{}", prompt.id);
    }
}

/// As the model card counts it: of the reply tokens from the second on, those that the stage guesses from the token
/// before, over the reference's greedy replies. Further guesses count while those before them are right.
#[test]
fn the_draft_stage_guesses_as_the_model_card_says() {
    let backend = CpuBackend::with(Level::detect(), 1).unwrap();
    let loaded = load_drafting(&nano_dir("bf16"), backend, Numerics::EXACT, 3);
    let (mut right, mut all) = ([0u32; 3], [0u32; 3]);
    let (mut scratch, mut guesses) = (Scratch::default(), Vec::new());
    for prompt in prompts() {
        let mut state = loaded.model.new_state();
        step(&loaded, &mut scratch, &mut state, &prompt.prompt_ids);
        for (at, &token) in prompt.greedy_ids.iter().enumerate() {
            let behind = &prompt.greedy_ids[at + 1..];
            let count = behind.len().min(3);
            let mut drafts = [Draft { state: &mut state, token, count }];
            guesses.clear();
            loaded.model.draft(&mut scratch, &mut drafts, &*loaded.fabric, &mut guesses).unwrap();
            let equal = guesses.iter().zip(behind).take_while(|(guess, token)| guess == token).count();
            for distance in 0..count {
                right[distance] += u32::from(distance < equal);
                all[distance] += 1;
            }
            step(&loaded, &mut scratch, &mut state, &[token]);
        }
    }
    for (distance, (right, all)) in right.into_iter().zip(all).enumerate() {
        let percent = 100.0 * f64::from(right) / f64::from(all);
        println!("the first {} right: {right} of {all}, {percent:.1} %", distance + 1);
    }
    assert_eq!((right[0], all[0]), (3208, 3399));
    assert!(right[1] > right[2] && right[2] > 0, "{right:?}");
}
