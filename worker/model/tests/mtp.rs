//! The draft stage: against the reference's numbers, and the same guesses however a sequence came about.

#![allow(clippy::unwrap_used)]

mod common;

use belay_backend::Fabric;
use belay_cpu::{CpuBackend, Level};
use belay_model::{Draft, ForwardError, NoTrace, Numerics, Scratch, State, Trace};
use common::*;

/// Largest difference of a logit that float noise explains.
const LOGIT_GATE: f32 = 1e-3;

fn drafting(case: &str, draft_tokens: usize) -> Loaded {
    drafting_at(case, draft_tokens, Level::detect())
}

fn drafting_at(case: &str, draft_tokens: usize, level: Level) -> Loaded {
    let backend = CpuBackend::with(level, 1).unwrap();
    load_drafting(&golden_dir(case), backend, Numerics::EXACT, draft_tokens)
}

/// The logits behind each guess.
#[derive(Default)]
struct DraftLogits(Vec<f32>);

impl Trace for DraftLogits {
    fn draft_logits(&mut self, _ahead: usize, logits: &[f32]) {
        self.0.extend_from_slice(logits);
    }
}

/// One sequence's guesses, and the logits behind them.
fn draft(
    loaded: &Loaded,
    fabric: &dyn Fabric,
    scratch: &mut Scratch<CpuBackend>,
    state: &mut State,
    token: u32,
    count: usize,
) -> (Vec<u32>, Vec<f32>) {
    let (mut guesses, mut trace) = (Vec::new(), DraftLogits::default());
    let mut drafts = [Draft { state, token, count }];
    loaded.model.draft_traced(scratch, &mut drafts, fabric, &mut guesses, &mut trace).unwrap();
    (guesses, trace.0)
}

/// Logits of the first guess behind each token but the last; `[tokens − 1, V]`.
fn all_draft_logits(loaded: &Loaded, fabric: &dyn Fabric, ids: &[u32]) -> Vec<f32> {
    let mut state = loaded.model.new_state();
    let mut scratch = Scratch::default();
    let mut found = Vec::new();
    for pair in ids.windows(2) {
        step(loaded, &mut scratch, &mut state, &pair[..1]);
        found.extend(draft(loaded, fabric, &mut scratch, &mut state, pair[1], 1).1);
    }
    found
}

#[test]
fn logits_of_the_first_guess_equal_the_reference() {
    for case in CASES {
        for level in Level::ALL.into_iter().filter(|level| level.is_available()) {
            let loaded = drafting_at(case, 1, level);
            let (golden, tensors) = golden(case);
            for sequence in &golden.sequences {
                let found = all_draft_logits(&loaded, &*loaded.fabric, &sequence.ids());
                let expected = tensors.f32(&format!("{}.mtp_logits", sequence.name));
                let difference = largest_difference(&found, &expected);
                println!("{case} {} {level}: max |Δlogit| {difference:.2e}", sequence.name);
                assert!(difference <= LOGIT_GATE, "{case} {} {level}: {difference}", sequence.name);
            }
        }
    }
}

#[test]
fn the_trunk_does_not_feel_the_stage() {
    for case in CASES {
        let (without, with) = (load(&golden_dir(case)), drafting(case, 1));
        let ids = golden(case).0.sequences[1].ids();
        for chunk in [1, 7, usize::MAX] {
            let expected = logits(&without, &*without.fabric, &ids, chunk, &mut NoTrace);
            let found = logits(&with, &*with.fabric, &ids, chunk, &mut NoTrace);
            assert_same_bits(&expected, &found, &format!("{case} in chunks of {chunk}"));
        }
    }
}

/// However the beginning was fed, with drafts between or without, the guess behind it has the same bits.
#[test]
fn guesses_do_not_depend_on_how_the_sequence_was_cut() {
    for case in CASES {
        let loaded = drafting(case, 1);
        let ids = golden(case).0.sequences[1].ids();
        let expected = all_draft_logits(&loaded, &*loaded.fabric, &ids);
        let vocab = loaded.model.config().vocab_size;
        let mut scratch = Scratch::default();
        for chunk in [1, 2, 3, 5, 16, usize::MAX] {
            let mut state = loaded.model.new_state();
            for tokens in ids[..ids.len() - 1].chunks(chunk) {
                step(&loaded, &mut scratch, &mut state, tokens);
                let at = state.position() - 1;
                let (guesses, found) =
                    draft(&loaded, &*loaded.fabric, &mut scratch, &mut state, ids[at + 1], 1);
                assert_same_bits(&expected[at * vocab..][..vocab], &found, &format!("{case} {chunk} {at}"));
                assert_eq!(guesses, [argmax(&found)]);
            }
        }
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_guesses() {
    for case in CASES {
        let loaded = drafting(case, 1);
        let ids = golden(case).0.sequences[1].ids();
        let expected = all_draft_logits(&loaded, &*loaded.fabric, &ids);
        for ranks in [1, 2, 3] {
            let split = Split::new(&loaded.checkpoint, ranks);
            let shares: Vec<u64> = split.0.iter().map(|bank| bank.bytes()).collect();
            assert_eq!(shares.iter().sum::<u64>(), loaded.bank.bytes(), "{ranks} ranks");
            let found = all_draft_logits(&loaded, &split, &ids);
            assert_same_bits(&expected, &found, &format!("{case} on {ranks} ranks"));
        }
    }
}

#[test]
fn drafts_that_cannot_be_computed_are_refused() {
    let loaded = drafting("public_hybrid", 1);
    let mut scratch = Scratch::default();
    let mut refusal = |loaded: &Loaded, state: &mut State, token: u32, count: usize| {
        let mut drafts = [Draft { state, token, count }];
        let (fabric, mut guesses) = (&*loaded.fabric, Vec::new());
        match loaded.model.draft(&mut scratch, &mut drafts, fabric, &mut guesses).unwrap_err() {
            ForwardError::Invalid { segment: 0, message } => message,
            other => panic!("{other}"),
        }
    };
    let mut state = loaded.model.new_state();
    assert_eq!(refusal(&loaded, &mut state, 1, 1), "a sequence without tokens has nothing to guess from");
    step(&loaded, &mut Scratch::default(), &mut state, &[0, 5]);
    assert_eq!(refusal(&loaded, &mut state, 256, 1), "token 256 is outside the vocabulary of 256");
    assert_eq!(
        refusal(&loaded, &mut state, 1, 2),
        "2 guesses are more than the 1 draft tokens that the model was loaded for"
    );
    let without = load(&golden_dir("public_hybrid"));
    let mut state = without.model.new_state();
    step(&without, &mut Scratch::default(), &mut state, &[0, 5]);
    assert!(refusal(&without, &mut state, 1, 1).contains("0 draft tokens"));
}
