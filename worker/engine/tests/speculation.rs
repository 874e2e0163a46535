//! Speculative decoding with the nano model's own draft stage: the same tokens as without, and fewer steps.
#![allow(clippy::unwrap_used, clippy::expect_used)] // helpers of tests

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, channel};

use belay_backend::ExpertCompute;
use belay_cpu::CpuBackend;
use belay_engine::{
    Engine, EngineConfig, Event, Request, Sampling, Segment, ServedModel, Stats, StepModel, Stop, Tokenizer,
    Wants,
};
use belay_model::{CacheOptions, Checkpoint, Drafting, ExpertBank, LocalExperts, Model, Numerics};
use proptest::prelude::*;
use serde::Deserialize;

const MOST: usize = Drafting::MOST;

#[derive(Deserialize)]
struct Item {
    id: String,
    prompt_ids: Vec<u32>,
    greedy_ids: Vec<u32>,
}

fn nano() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../tests/fixtures/models/nano")
}

fn items() -> Vec<Item> {
    let text = std::fs::read_to_string(nano().join("eval.jsonl")).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn model() -> ServedModel<CpuBackend> {
    model_with(CacheOptions::default())
}

fn model_with(cache: CacheOptions) -> ServedModel<CpuBackend> {
    let backend = Arc::new(CpuBackend::detect());
    let drafting = Drafting::tokens(MOST).unwrap();
    let checkpoint = Arc::new(Checkpoint::open_with(&nano().join("bf16"), drafting).unwrap());
    let model = Model::load(backend.clone(), &checkpoint, Numerics::EXACT, cache, &mut |_, _| {}).unwrap();
    let bank = Arc::new(ExpertBank::new(backend, checkpoint.clone(), Numerics::EXACT));
    let card = checkpoint.card();
    let all = (0..card.layers).flat_map(|layer| (0..card.experts).map(move |expert| (layer, expert)));
    bank.load(all, &mut |_, _| {}).unwrap();
    ServedModel::new(model, Arc::new(LocalExperts::new(bank as Arc<dyn ExpertCompute>)))
}

/// An engine that guesses `draft_tokens` ahead.
fn engine(draft_tokens: usize) -> Engine {
    start(model(), EngineConfig { draft_tokens, ..EngineConfig::default() })
}

fn start(model: ServedModel<CpuBackend>, config: EngineConfig) -> Engine {
    let tokenizer = Arc::new(Tokenizer::load(&nano().join("bf16")).unwrap());
    Engine::start(model, tokenizer, config).unwrap()
}

fn submit(engine: &Engine, request: Request) -> Receiver<Event> {
    let (sender, receiver) = channel();
    engine.submit(request, Box::new(move |event| sender.send(event).is_ok())).unwrap();
    receiver
}

/// The tokens of each request, all submitted at once, in bounds of the queue.
fn run(engine: &Engine, requests: &[Request]) -> Vec<Vec<u32>> {
    let tokens = |events: Receiver<Event>| {
        let mut tokens = Vec::new();
        for event in events {
            match event {
                Event::Tokens { ids, .. } => tokens.extend(ids),
                Event::Finished { .. } => return tokens,
                other => panic!("{other:?}"),
            }
        }
        panic!("no last event");
    };
    let mut out = Vec::new();
    for some in requests.chunks(EngineConfig::default().max_queued) {
        let events: Vec<_> = some.iter().map(|request| submit(engine, request.clone())).collect();
        out.extend(events.into_iter().map(tokens));
    }
    out
}

fn greedy(item: &Item) -> Request {
    let stop = Stop { max_tokens: Some(128), ..Stop::default() };
    Request {
        id: item.id.clone(),
        prompt: item.prompt_ids.clone(),
        sampling: Sampling::greedy(),
        stop,
        ..Request::default()
    }
}

fn share(stats: &Stats) -> Vec<String> {
    let shares = stats.accepted.iter().zip(&stats.drafted).filter(|(_, drafted)| **drafted > 0);
    shares
        .map(|(accepted, drafted)| {
            format!("{accepted} of {drafted} ({:.1} %)", 100.0 * *accepted as f64 / *drafted as f64)
        })
        .collect()
}

/// All evaluation prompts, 32 at a time.
#[test]
fn greedy_replies_are_the_references_with_any_number_of_guesses() {
    let items = items();
    let requests: Vec<Request> = items.iter().map(greedy).collect();
    for draft_tokens in 1..=MOST {
        let engine = engine(draft_tokens);
        let found = run(&engine, &requests);
        let stats = engine.stats();
        println!("{draft_tokens} guesses: {} steps, right: {:?}", stats.steps, share(&stats));
        for (item, found) in items.iter().zip(&found) {
            assert_eq!(found, &item.greedy_ids, "{} with {draft_tokens} guesses", item.id);
        }
        assert_eq!(stats.drafted.iter().filter(|&&count| count > 0).count(), draft_tokens);
        assert!(10 * stats.accepted[0] > 9 * stats.drafted[0], "the stage is good at the first guess");
    }
}

#[test]
fn sampled_replies_are_the_same_with_guesses_for_the_same_seed() {
    let items = items();
    let requests: Vec<Request> = (0..3)
        .flat_map(|round| items.iter().skip(round).step_by(9))
        .enumerate()
        .map(|(seed, item)| {
            let (temperature, top_p) = ([0.7, 1.0, 1.5][seed % 3], [1.0, 0.95][seed % 2]);
            let sampling = Sampling {
                temperature,
                top_p,
                presence_penalty: [0.0, 0.5][seed / 2 % 2],
                seed: seed as u64,
                ..Sampling::default()
            };
            Request { sampling, ..greedy(item) }
        })
        .collect();
    let (plain, guessing) = (engine(0), engine(MOST));
    let (expected, found) = (run(&plain, &requests), run(&guessing, &requests));
    for ((request, expected), found) in requests.iter().zip(&expected).zip(&found) {
        assert_eq!(expected, found, "{} {:?}", request.id, request.sampling);
    }
    let stats = guessing.stats();
    println!("right: {:?}", share(&stats));
    assert!(stats.accepted[0] > 0 && stats.accepted[0] < stats.drafted[0]);
}

const TEMPERATURE: f32 = 1.8;

/// How far sampled tokens are from a distribution, in standard deviations, by two sums that are about normal with mean
/// 0 and deviation 1 if each token was drawn from its row's distribution: how often the likeliest token was drawn, and
/// the log-probability of what was drawn.
#[derive(Default)]
struct Distance {
    likeliest: [f64; 2],
    surprise: [f64; 2],
}

impl Distance {
    fn add(&mut self, logits: &[f32], temperature: f32, token: u32) {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weight = |&logit: &f32| f64::from((logit - max) / temperature).exp();
        let sum: f64 = logits.iter().map(weight).sum();
        let of = |logit: &f32| weight(logit) / sum;
        let best = sum.recip();
        self.likeliest[0] += f64::from(u8::from(logits[token as usize] == max)) - best;
        self.likeliest[1] += best * (1.0 - best);
        let moment = |power: i32| -> f64 {
            logits.iter().map(of).filter(|p| *p > 0.0).map(|p| p * (-p.ln()).powi(power)).sum()
        };
        self.surprise[0] += -of(&logits[token as usize]).ln() - moment(1);
        self.surprise[1] += moment(2) - moment(1).powi(2);
    }

    fn deviations(&self) -> [f64; 2] {
        [self.likeliest, self.surprise].map(|[sum, variance]| sum / variance.sqrt())
    }
}

/// 4 deviations: by chance once in 16,000 runs, and the seeds are fixed.
#[test]
fn tokens_with_guesses_follow_the_models_distribution() {
    let items = items();
    let engine = engine(MOST);
    let requests: Vec<Request> = (0..320u64)
        .map(|seed| {
            let sampling = Sampling { temperature: TEMPERATURE, seed, ..Sampling::default() };
            let item =
                items.iter().filter(|item| item.prompt_ids.len() < 60).nth(seed as usize % 16).unwrap();
            let stop = Stop { max_tokens: Some(16), ignore_eos: true, ..Stop::default() };
            Request { sampling, stop, ..greedy(item) }
        })
        .collect();
    let replies = run(&engine, &requests);
    let stats = engine.stats();
    println!("right: {:?}", share(&stats));
    assert!(stats.accepted.iter().all(|&count| count > 50), "many tokens came from guesses");

    let model = model();
    let (mut right, mut wrong) = (Distance::default(), Distance::default());
    for (request, reply) in requests.iter().zip(&replies) {
        let mut state = model.new_state().unwrap();
        let tokens = [request.prompt.as_slice(), &reply[..reply.len() - 1]].concat();
        model.reserve(&mut state, tokens.len()).unwrap();
        let mut logits = Vec::new();
        let wants = Wants::All;
        let mut segments = [Segment { state: &mut state, tokens: &tokens, wants, rewindable: false }];
        model.forward(&mut segments, &mut logits).unwrap();
        let rows = logits.chunks_exact(model.vocab_size()).skip(request.prompt.len() - 1);
        for (row, &token) in rows.zip(reply) {
            right.add(row, TEMPERATURE, token);
            wrong.add(row, 0.9 * TEMPERATURE, token);
        }
    }
    println!("deviations: {:?}; at another temperature: {:?}", right.deviations(), wrong.deviations());
    assert!(right.deviations().iter().all(|deviation| deviation.abs() < 4.0));
    assert!(wrong.deviations().iter().all(|deviation| deviation.abs() > 4.0), "it would be noticed");
}

/// Guesses together with everything else: shared steps, a pool so small that requests lose their states to others, cached
/// prefixes, resumed requests, and some that are cancelled.
fn crowd(
    picks: &[(usize, f32, u32, usize, bool)],
    draft_tokens: usize,
    max_sessions: usize,
    step_tokens: usize,
    prefix_cache: bool,
) -> Result<Stats, TestCaseError> {
    let items = items();
    let few = 300..420;
    let items: Vec<&Item> = items.iter().filter(|item| few.contains(&item.prompt_ids.len())).collect();
    let requests: Vec<Request> = picks
        .iter()
        .enumerate()
        .map(|(seed, &(item, temperature, max_tokens, ..))| {
            let sampling = Sampling { temperature, top_p: 0.95, seed: seed as u64, ..Sampling::default() };
            let stop = Stop { max_tokens: Some(max_tokens), ..Stop::default() };
            Request { sampling, stop, ..greedy(items[item % items.len()]) }
        })
        .collect();
    let lone =
        EngineConfig { draft_tokens: 0, max_sessions: 1, prefix_cache: false, ..EngineConfig::default() };
    let alone = start(model(), lone);
    let expected: Vec<Vec<u32>> =
        requests.iter().map(|request| run(&alone, std::slice::from_ref(request)).remove(0)).collect();

    let longest = alone_bytes(few.end + 64);
    let cache = CacheOptions { memory: 2 * longest, ..CacheOptions::default() };
    let config =
        EngineConfig { draft_tokens, max_sessions, step_tokens, prefix_cache, ..EngineConfig::default() };
    let crowded = start(model_with(cache), config);
    let mut heard = Vec::new();
    for ((request, &(.., cut, cancelled)), expected) in requests.iter().zip(picks).zip(&expected) {
        let cut = cut.min(expected.len() - 1);
        let request = Request { resume: expected[..cut].to_vec(), ..request.clone() };
        let (sender, receiver) = channel();
        let mut events = 0;
        let sink = move |event| {
            events += 1;
            sender.send(event).is_ok() && !(cancelled && events > 2)
        };
        crowded.submit(request, Box::new(sink)).unwrap();
        heard.push((cut, receiver));
    }
    for ((cut, receiver), (expected, &(.., cancelled))) in heard.into_iter().zip(expected.iter().zip(picks)) {
        let (mut tokens, mut finished) = (expected[..cut].to_vec(), false);
        for event in receiver {
            match event {
                Event::Tokens { ids, .. } => tokens.extend(ids),
                Event::Finished { .. } => finished = true,
                Event::Failed { .. } if cancelled => {}
                other => return Err(TestCaseError::fail(format!("{other:?}"))),
            }
        }
        prop_assert!(finished || cancelled);
        if finished {
            prop_assert_eq!(&tokens, expected);
        } else {
            prop_assert!(expected.starts_with(&tokens));
        }
    }
    Ok(crowded.stats())
}

/// Bytes of one state of so many tokens, with room for its next step.
fn alone_bytes(tokens: usize) -> usize {
    model().step_bytes(tokens, 1 + MOST)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 8, max_shrink_iters: 8, ..ProptestConfig::default() })]

    #[test]
    fn guesses_change_no_token_whatever_else_goes_on(
        picks in prop::collection::vec(
            (0usize..40, 0.0f32..1.5, 1u32..40, 0usize..20, prop::bool::weighted(0.2)),
            3..9,
        ),
        draft_tokens in 1..=MOST,
        max_sessions in 2usize..8,
        step_tokens in 4usize..200,
        prefix_cache in any::<bool>(),
    ) {
        println!("{:?}", crowd(&picks, draft_tokens, max_sessions, step_tokens, prefix_cache)?);
    }
}
