//! What decides a token beside the draw: bias, penalties, `min_tokens`; and that guessing tokens changes nothing.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::{Arc, LazyLock};

use belay_engine::{
    Choice, Chooser, Request, SampleError, Sampler, Sampling, Stop, SubmitError, Tokenizer, token_logprobs,
};
use proptest::prelude::*;

static TOKENIZER: LazyLock<Arc<Tokenizer>> = LazyLock::new(|| {
    let dir = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano/bf16");
    Arc::new(Tokenizer::load(&dir).unwrap())
});

/// A vocabulary that is smaller than the tokenizer's, for quick tests.
const VOCAB: usize = 40;

fn chooser(request: &Request, produced: &[u32]) -> Chooser {
    let mut chooser = Chooser::new(request, &TOKENIZER, VOCAB).unwrap();
    for &token in produced {
        chooser.accept(token).unwrap();
    }
    chooser
}

fn choose(request: &Request, produced: &[u32], logits: &[f32]) -> Choice {
    chooser(request, produced).choose(logits, produced.len() as u32, &mut Sampler::default()).unwrap()
}

fn row() -> impl Strategy<Value = Vec<f32>> {
    prop::collection::vec((-40i8..40).prop_map(|x| f32::from(x) / 8.0), VOCAB)
}

fn tokens() -> impl Strategy<Value = Vec<u32>> {
    prop::collection::vec(0..VOCAB as u32, 0..30)
}

fn penalised() -> impl Strategy<Value = Sampling> {
    let bias = prop::collection::btree_map(0..VOCAB as u32, -100.0f32..=100.0, 0..5);
    let temperature = prop_oneof![Just(0.0f32), 0.1f32..2.0];
    (temperature, -2.0f32..=2.0, -2.0f32..=2.0, 0.1f32..=2.0, bias, any::<u64>()).prop_map(
        |(temperature, presence_penalty, frequency_penalty, repetition_penalty, bias, seed)| Sampling {
            temperature,
            presence_penalty,
            frequency_penalty,
            repetition_penalty,
            logit_bias: bias.into_iter().collect(),
            seed,
            ..Sampling::default()
        },
    )
}

/// The definition, token by token.
fn adjusted(sampling: &Sampling, prompt: &[u32], produced: &[u32], logits: &[f32]) -> Vec<f32> {
    (0u32..)
        .zip(logits)
        .map(|(token, &logit)| {
            let count = produced.iter().filter(|&&other| other == token).count();
            let mut logit = logit;
            if let Some((_, bias)) = sampling.logit_bias.iter().find(|(id, _)| *id == token) {
                logit += bias;
            }
            if count > 0 || prompt.contains(&token) {
                let penalty = sampling.repetition_penalty;
                logit = if logit > 0.0 { logit / penalty } else { logit * penalty };
            }
            if count > 0 {
                logit = logit - sampling.frequency_penalty * count as f32 - sampling.presence_penalty;
            }
            logit
        })
        .collect()
}

proptest! {
    #[test]
    fn bias_and_penalties_follow_their_definition(
        logits in row(), prompt in tokens(), produced in tokens(), sampling in penalised(),
    ) {
        let prompt = [vec![0], prompt].concat();
        let index = produced.len() as u32;
        let expected = Sampler::default().sample(&adjusted(&sampling, &prompt, &produced, &logits), &sampling, index);
        let request = Request { prompt, sampling, ..Request::default() };
        prop_assert_eq!(choose(&request, &produced, &logits).token, expected.unwrap());
    }

    #[test]
    fn logprobs_are_those_of_the_raw_row(
        logits in row(), produced in tokens(), sampling in penalised(), count in 0u32..=20,
    ) {
        let request = Request { prompt: vec![0], sampling, logprobs: Some(count), ..Request::default() };
        let choice = choose(&request, &produced, &logits);
        let logprobs = choice.logprobs.unwrap();
        prop_assert_eq!(logprobs.id, choice.token);
        let mass: f64 = logits.iter().map(|&logit| f64::from(logit).exp()).sum();
        let logprob = |id: u32| f64::from(logits[id as usize]) - mass.ln();
        prop_assert!((f64::from(logprobs.logprob) - logprob(choice.token)).abs() < 1e-6);
        let mut ids: Vec<u32> = (0..VOCAB as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        ids.truncate(count as usize);
        prop_assert_eq!(logprobs.top.iter().map(|(id, _)| *id).collect::<Vec<_>>(), ids);
        for (id, value) in logprobs.top {
            prop_assert!((f64::from(value) - logprob(id)).abs() < 1e-6);
        }
    }

    #[test]
    fn a_choice_depends_on_what_was_accepted_and_not_on_what_was_chosen(
        rows in prop::collection::vec(row(), 1..8), produced in tokens(), sampling in penalised(),
    ) {
        let request = Request { prompt: vec![0], sampling, ..Request::default() };
        let alone = choose(&request, &produced, &rows[0]);
        let mut sampler = Sampler::default();
        let mut busy = chooser(&request, &[]);
        for (index, (&token, row)) in (0u32..).zip(produced.iter().zip(rows.iter().cycle())) {
            busy.choose(row, index, &mut sampler).unwrap();
            busy.choose(row, index + 1, &mut sampler).unwrap();
            busy.accept(token).unwrap();
        }
        prop_assert_eq!(busy.choose(&rows[0], produced.len() as u32, &mut sampler).unwrap(), alone);
    }
}

#[test]
fn logprobs_add_up_and_are_finite_at_the_ends() {
    let logits = [-3.0e38, 3.0e38, f32::NEG_INFINITY, 3.0e38];
    let logprobs = token_logprobs(&logits, 2, 20).unwrap();
    assert_eq!(logprobs.logprob, f32::NEG_INFINITY);
    let half = 0.5f32.ln();
    assert_eq!(logprobs.top[..2], [(1, half), (3, half)]);
    assert_eq!(logprobs.top.len(), 3, "what is impossible is not among the likely");
    assert_eq!(token_logprobs(&[0.0, f32::NAN], 0, 1), Err(SampleError::NotFinite { id: 1 }));
    assert_eq!(token_logprobs(&[f32::NEG_INFINITY], 0, 1), Err(SampleError::NoCandidate));
}

#[test]
fn the_smallest_repetition_penalty_keeps_logits_finite() {
    let sampling = Sampling { repetition_penalty: f32::MIN_POSITIVE, ..Sampling::default() };
    let request = Request { prompt: vec![3, 5], sampling, ..Request::default() };
    let mut logits = vec![0.0; VOCAB];
    (logits[3], logits[5], logits[7]) = (9.0, -9.0, f32::NEG_INFINITY);
    assert_eq!(choose(&request, &[7], &logits).token, 3);
    logits[3] = f32::INFINITY;
    let broken = chooser(&request, &[]).choose(&logits, 0, &mut Sampler::default());
    assert_eq!(broken, Err(SampleError::NotFinite { id: 3 }));
}

#[test]
fn no_end_before_min_tokens() {
    let vocab = TOKENIZER.vocab_size();
    let eos = TOKENIZER.eos()[0];
    let stop_id = 17;
    let mut logits = vec![0.0; vocab];
    logits[eos as usize] = 9.0;
    logits[stop_id as usize] = 8.0;
    logits[5] = 7.0;
    let stop = Stop { min_tokens: 3, ids: vec![stop_id], ..Stop::default() };
    let chosen = |stop: &Stop| -> Vec<u32> {
        let sampling = Sampling::greedy();
        let request = Request { prompt: vec![1], sampling, stop: stop.clone(), ..Request::default() };
        let mut chooser = Chooser::new(&request, &TOKENIZER, vocab).unwrap();
        (0..5).map(|index| chooser.choose(&logits, index, &mut Sampler::default()).unwrap().token).collect()
    };
    assert_eq!(chosen(&stop), [5, 5, 5, eos, eos]);
    // What does not end the output needs no mask.
    assert_eq!(chosen(&Stop { ignore_eos: true, ..stop }), [eos; 5]);
    assert_eq!(chosen(&Stop::default()), [eos; 5]);
}

/// Draws with a guess, as the engine does: the guess is accepted if the draw is the same token.
///
/// Rejection sampling (Leviathan, Kalman, Matias 2023) with a guess of which the draft is certain: it is accepted with
/// probability p(guess), and what is drawn after a refusal has the distribution p without the guess, normalised.
#[test]
fn guesses_are_accepted_as_by_rejection_sampling() {
    const DRAWS: u32 = 40_000;
    for (case, (logits, sampling)) in [
        (vec![0.0, 1.0, -1.0, 2.0, 0.5], Sampling::default()),
        (vec![0.3, 0.2, 0.1, 0.0], Sampling { temperature: 0.5, ..Sampling::default() }),
        (vec![2.0, 1.0, 0.0, -1.0, 1.5, 0.7], Sampling { top_p: 0.9, top_k: 5, ..Sampling::default() }),
    ]
    .into_iter()
    .enumerate()
    {
        let p = frequencies(&logits, &sampling);
        for guess in 0..logits.len() as u32 {
            let (mut accepted, mut after_refusal) = (0u32, vec![0u32; logits.len()]);
            let mut sampler = Sampler::default();
            for seed in 0..DRAWS {
                // Each draw at its own place of its own request.
                let sampling = Sampling { seed: u64::from(seed), ..sampling.clone() };
                let request = Request { prompt: vec![0], sampling, ..Request::default() };
                let mut chooser = Chooser::new(&request, &TOKENIZER, logits.len()).unwrap();
                let token = chooser.choose(&logits, seed % 7, &mut sampler).unwrap().token;
                if token == guess {
                    accepted += 1;
                } else {
                    after_refusal[token as usize] += 1;
                }
            }
            let expected = p[guess as usize];
            let rate = f64::from(accepted) / f64::from(DRAWS);
            let deviation = (expected * (1.0 - expected) / f64::from(DRAWS)).sqrt();
            assert!(
                (rate - expected).abs() <= 4.0 * deviation,
                "case {case}, guess {guess}: {rate}, not {expected}"
            );
            let refused = f64::from(DRAWS - accepted);
            for (token, &count) in after_refusal.iter().enumerate() {
                let share = if token == guess as usize { 0.0 } else { p[token] / (1.0 - expected) };
                let deviation = (share * (1.0 - share) * refused).sqrt();
                let off = (f64::from(count) - share * refused).abs();
                assert!(
                    off <= 4.0 * deviation + 1e-9,
                    "case {case}, guess {guess}, token {token}: off by {off}"
                );
            }
        }
    }
}

/// Probabilities by definition.
fn frequencies(logits: &[f32], sampling: &Sampling) -> Vec<f64> {
    let weight = |id: usize| (f64::from(logits[id]) / f64::from(sampling.temperature)).exp();
    let mut ids: Vec<usize> = (0..logits.len()).collect();
    ids.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]));
    if sampling.top_k > 0 {
        ids.truncate(sampling.top_k as usize);
    }
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut mass = 0.0;
    ids.retain(|&id| {
        let keeps = mass < f64::from(sampling.top_p) * total;
        mass += weight(id);
        keeps
    });
    let total: f64 = ids.iter().map(|&id| weight(id)).sum();
    let mut probabilities = vec![0.0; logits.len()];
    for id in ids {
        probabilities[id] = weight(id) / total;
    }
    probabilities
}

/// A whole process with guesses gives the tokens of one without: over random small languages in which each row depends
/// on all tokens before it, with good and bad guesses, penalties included.
#[test]
fn a_process_with_guesses_gives_the_tokens_of_one_without() {
    const LENGTH: usize = 24;
    for seed in 0..200u64 {
        let row_after = |tokens: &[u32]| -> Vec<f32> {
            let mut hash = seed;
            for &token in tokens {
                hash = (hash ^ u64::from(token)).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(23);
            }
            (0..8u64).map(|id| ((hash.wrapping_mul(2 * id + 1) >> 40) % 1000) as f32 / 250.0).collect()
        };
        let sampling = Sampling {
            temperature: if seed % 3 == 0 { 0.0 } else { 0.9 },
            frequency_penalty: 0.3,
            repetition_penalty: 1.1,
            seed,
            ..Sampling::default()
        };
        let request = Request { prompt: vec![0], sampling, ..Request::default() };
        let mut sampler = Sampler::default();
        let mut plain: Vec<u32> = Vec::new();
        let mut alone = Chooser::new(&request, &TOKENIZER, 8).unwrap();
        while plain.len() < LENGTH {
            let token = alone.choose(&row_after(&plain), plain.len() as u32, &mut sampler).unwrap().token;
            alone.accept(token).unwrap();
            plain.push(token);
        }
        let mut guessed: Vec<u32> = Vec::new();
        let mut chooser = Chooser::new(&request, &TOKENIZER, 8).unwrap();
        let mut accepted = 0;
        while guessed.len() < LENGTH {
            // Sometimes right: guesses are the plain tokens, some of them spoilt.
            let guesses: Vec<u32> =
                (0..3)
                    .filter_map(|i| plain.get(guessed.len() + i))
                    .map(|&token| {
                        if (seed + guessed.len() as u64).is_multiple_of(4) { (token + 1) % 8 } else { token }
                    })
                    .collect();
            let start = guessed.clone();
            for place in 0..=guesses.len() {
                let row = row_after(&[start.as_slice(), &guesses[..place]].concat());
                let token = chooser.choose(&row, guessed.len() as u32, &mut sampler).unwrap().token;
                chooser.accept(token).unwrap();
                guessed.push(token);
                if guesses.get(place) != Some(&token) {
                    break;
                }
                accepted += 1;
            }
        }
        guessed.truncate(LENGTH);
        assert_eq!(guessed, plain, "seed {seed}");
        assert!(accepted > 0, "seed {seed}");
    }
}

#[test]
fn every_setting_out_of_range_is_refused_by_name() {
    let with = |change: fn(&mut Request)| {
        let mut request = Request { prompt: vec![0], ..Request::default() };
        change(&mut request);
        match Chooser::new(&request, &TOKENIZER, VOCAB) {
            Ok(_) => panic!("taken"),
            Err(SubmitError::Invalid { field, message }) => format!("{field}: {message}"),
            Err(other) => panic!("{other}"),
        }
    };
    type Case = (fn(&mut Request), &'static str);
    let cases: [Case; 17] = [
        (|r| r.sampling.temperature = -0.1, "temperature: must be a number from 0 on, found -0.1"),
        (|r| r.sampling.temperature = f32::NAN, "temperature: must be a number from 0 on, found NaN"),
        (|r| r.sampling.temperature = f32::INFINITY, "temperature: must be a number from 0 on, found inf"),
        (|r| r.sampling.top_p = 0.0, "top_p: must be greater than 0 and at most 1, found 0"),
        (|r| r.sampling.top_p = 1.1, "top_p: must be greater than 0 and at most 1, found 1.1"),
        (|r| r.sampling.min_p = 1.5, "min_p: must be from 0 to 1, found 1.5"),
        (|r| r.sampling.presence_penalty = 2.1, "presence_penalty: must be from -2 to 2, found 2.1"),
        (|r| r.sampling.frequency_penalty = -3.0, "frequency_penalty: must be from -2 to 2, found -3"),
        (
            |r| r.sampling.repetition_penalty = 0.0,
            "repetition_penalty: must be greater than 0 and at most 2, found 0",
        ),
        (|r| r.sampling.logit_bias = vec![(40, 1.0)], "logit_bias: token 40, but the vocabulary ends at 39"),
        (
            |r| r.sampling.logit_bias = vec![(1, f32::NAN)],
            "logit_bias: of token 1 must be from -100 to 100, found NaN",
        ),
        (
            |r| r.sampling.logit_bias = vec![(1, 101.0)],
            "logit_bias: of token 1 must be from -100 to 100, found 101",
        ),
        (
            |r| r.sampling.logit_bias = vec![(2, 1.0), (2, 1.0)],
            "logit_bias: ids must ascend, but 2 follows 2",
        ),
        (|r| r.sampling.logit_bias = vec![(0, 0.0); 1025], "logit_bias: at most 1024 tokens, found 1025"),
        (|r| r.logprobs = Some(21), "logprobs: at most 20 likeliest tokens, found 21"),
        (|r| r.prompt_logprobs = Some(21), "prompt_logprobs: at most 20 likeliest tokens, found 21"),
        (|r| r.sampling.min_p = -0.1, "min_p: must be from 0 to 1, found -0.1"),
    ];
    for (change, expected) in cases {
        assert_eq!(with(change), expected);
    }
}
