//! The trained model on simulated NPUs of each generation: what it answers, against the exact engine's answers.
#![allow(clippy::unwrap_used, reason = "test code")]

mod chips;
mod common;
#[path = "../../model/tests/common/mod.rs"]
mod model;

use belay_ascend::Products;
use belay_model::{Logits, Scratch, Segment, State};
use chips::{backend, on_every_chip, small_cache};
use model::*;

/// Prompts that are answered together, as an engine does, and their tokens: what a small cache has room for. A larger one
/// takes the simulator long, which reads all of it to look up a row.
const BATCH: usize = 16;
const BATCH_TOKENS: usize = 2000;
/// Longest answer.
const MOST_TOKENS: usize = 128;
/// A token may be another where the reference's best two are closer than this: that is how much bf16 moves a logit. Nobody
/// says how much quantised products move one.
fn margin(products: Products) -> f32 {
    match products {
        Products::F32 | Products::Bf16 => 0.5,
        Products::Int8 | Products::Int4Experts => f32::INFINITY,
    }
}

/// Of ten answers, how many are equal at least; a model that answers at random would pass the margins alone. Measured on a
/// simulated A2, where the other chips compute the same: of all 220 prompts, 215 answers are equal in INT8, and 205 with
/// experts in INT4.
fn least_equal(products: Products) -> usize {
    match products {
        Products::F32 | Products::Bf16 => 9,
        Products::Int8 | Products::Int4Experts => 8,
    }
}

/// Set to answer every prompt and not a share of them.
const ALL: &str = "BELAY_ASCEND_ALL";

struct Answer<'a> {
    prompt: &'a Prompt,
    state: State,
    found: Vec<u32>,
}

/// Answers of some prompts, token by token for all of them together.
fn answers<'a>(
    loaded: &Loaded<belay_ascend::AscendBackend>,
    prompts: &[&'a Prompt],
    stop: u32,
) -> Vec<Answer<'a>> {
    let new = |prompt: &&'a Prompt| Answer { prompt, state: loaded.model.new_state(), found: Vec::new() };
    let mut all: Vec<Answer<'a>> = prompts.iter().map(new).collect();
    let mut scratch = Scratch::default();
    loop {
        let is_open =
            |answer: &&mut Answer<'a>| answer.found.len() < MOST_TOKENS && answer.found.last() != Some(&stop);
        let mut open: Vec<&mut Answer<'a>> = all.iter_mut().filter(is_open).collect();
        if open.is_empty() {
            return all;
        }
        let last: Vec<Option<u32>> = open.iter().map(|answer| answer.found.last().copied()).collect();
        let mut segments: Vec<Segment<'_>> = open
            .iter_mut()
            .zip(&last)
            .map(|(answer, last)| Segment {
                state: &mut answer.state,
                tokens: last.as_ref().map_or(&answer.prompt.prompt_ids, std::slice::from_ref),
                logits: Logits::Last,
                rewindable: false,
            })
            .collect();
        let mut logits = Vec::new();
        loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut logits).unwrap();
        drop(segments);
        let vocabulary = logits.len() / open.len();
        for (answer, logits) in open.into_iter().zip(logits.chunks_exact(vocabulary)) {
            answer.found.push(argmax(logits));
        }
    }
}

/// Prompts in groups that are answered together.
fn batches<'a>(prompts: &[&'a Prompt]) -> Vec<Vec<&'a Prompt>> {
    let mut batches: Vec<Vec<&'a Prompt>> = Vec::new();
    let mut tokens = 0;
    for &prompt in prompts {
        tokens += prompt.prompt_ids.len();
        match batches.last_mut() {
            Some(batch) if batch.len() < BATCH && tokens <= BATCH_TOKENS => batch.push(prompt),
            _ => {
                batches.push(vec![prompt]);
                tokens = prompt.prompt_ids.len();
            }
        }
    }
    batches
}

#[test]
fn answers_of_the_trained_model() {
    on_every_chip("answers_on_this_chip");
}

#[test]
#[ignore = "run by answers_of_the_trained_model on each chip"]
fn answers_on_this_chip() {
    let every = if std::env::var_os(ALL).is_some() { 1 } else { 22 };
    let all = prompts();
    for products in chips::products(&chips::device()) {
        // quantised products are many more operators
        let every = if every > 1 && products != Products::Bf16 { 2 * every } else { every };
        let chosen: Vec<&Prompt> = all.iter().step_by(every).collect();
        let loaded = small_cache(&nano_dir("fp4"), backend(products));
        let stop = loaded.model.config().eos_token;
        let (mut equal, mut close) = (0, Vec::new());
        for prompts in batches(&chosen) {
            for answer in answers(&loaded, &prompts, stop) {
                if answer.found == answer.prompt.greedy_ids {
                    equal += 1;
                    continue;
                }
                let margin = answer.prompt.min_margin;
                println!("| {} differs, least margin {margin}", answer.prompt.id);
                assert!(margin < self::margin(products), "{}: {margin}", answer.prompt.id);
                close.push(margin);
            }
        }
        let widest = close.iter().copied().fold(0.0f32, f32::max);
        println!(
            "| {products:?} | {equal} of {} answers equal | widest margin of others {widest} |",
            chosen.len()
        );
        let least = least_equal(products);
        assert!(equal * 10 >= chosen.len() * least, "{products:?}: {equal} of {}", chosen.len());
    }
}
