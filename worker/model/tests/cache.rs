//! What the caches promise: in any storage format the same bits however a sequence came about, and formats that cost
//! as little as they are said to.

#![allow(clippy::unwrap_used)]

mod common;

use belay_cpu::{CpuBackend, Level};
use belay_model::{
    CacheOptions, Checkpoint, ForwardError, KvFormat, Logits, Model, NoRoom, NoTrace, Numerics, Scratch,
    Segment, State,
};
use common::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

fn load_format(dir: &std::path::Path, format: KvFormat) -> Loaded {
    let backend = CpuBackend::with(Level::detect(), 1).unwrap();
    load_cached(dir, backend, Numerics::EXACT, 0, CacheOptions { memory: 64 << 20, format })
}

/// How a sequence goes on.
#[derive(Clone, Debug)]
enum Piece {
    /// Feeds so many tokens.
    Feed(usize),
    /// Feeds some tokens and then others, which it takes back.
    Guess { right: usize, wrong: usize },
    /// At a block's end: goes on from a snapshot, while the state that it came from goes elsewhere.
    Restore,
}

fn pieces() -> impl Strategy<Value = Vec<Piece>> {
    let piece = prop_oneof![
        (1usize..40).prop_map(Piece::Feed),
        (1usize..5, 0usize..4).prop_map(|(right, wrong)| Piece::Guess { right, wrong }),
        Just(Piece::Restore),
    ];
    prop::collection::vec(piece, 1..40)
}

/// Logits of all of `ids` but the last few, by the pieces; what the pieces leave over is fed at the end.
fn by_pieces(loaded: &Loaded, ids: &[u32], pieces: &[Piece]) -> Vec<f32> {
    let model = &loaded.model;
    let vocab = model.config().vocab_size;
    let mut scratch = Scratch::default();
    let mut out = Vec::new();
    let mut feed = |state: &mut State, tokens: &[u32], rewindable: bool| {
        let mut segments = [Segment { state, tokens, logits: Logits::All, rewindable }];
        model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
        out.clone()
    };
    let mut state = model.new_state();
    let mut all = Vec::new();
    for piece in pieces.iter().chain([&Piece::Feed(ids.len())]) {
        let rest = &ids[state.position()..];
        let mut tokens = match piece {
            Piece::Feed(tokens) => rest[..rest.len().min(*tokens)].to_vec(),
            Piece::Guess { right, .. } => rest[..rest.len().min(*right)].to_vec(),
            Piece::Restore => {
                let missing = model.block_tokens() - state.position() % model.block_tokens();
                rest[..rest.len().min(missing)].to_vec()
            }
        };
        if tokens.is_empty() {
            break;
        }
        let right = tokens.len();
        if let Piece::Guess { wrong, .. } = piece {
            let room = model.config().max_positions - state.position() - right;
            tokens.extend((0..room.min(*wrong) as u32).map(|i| (7 * i + 3) % vocab as u32));
        }
        let rewindable = matches!(piece, Piece::Guess { .. });
        all.extend_from_slice(&feed(&mut state, &tokens, rewindable)[..right * vocab]);
        if rewindable {
            let position = state.position() + right - tokens.len();
            model.rewind(&mut state, position).unwrap();
        }
        if matches!(piece, Piece::Restore) && state.position().is_multiple_of(model.block_tokens()) {
            let snapshot = model.snapshot(&state).unwrap();
            let other = std::mem::replace(&mut state, model.restore(&snapshot));
            let mut other = Some(other).filter(|state| state.position() < model.config().max_positions);
            if let Some(other) = &mut other {
                feed(other, &[2], false);
            }
        }
    }
    assert_eq!(state.position(), ids.len());
    drop(state);
    assert_eq!(model.memory().used, 0);
    all
}

#[test]
fn a_sequence_has_the_same_bits_however_it_came_about() {
    let dirs = CASES.map(golden_dir).into_iter().chain([nano_dir("bf16")]);
    for (dir, format) in dirs.flat_map(|dir| KvFormat::ALL.map(|format| (dir.clone(), format))) {
        let loaded = load_format(&dir, format);
        let config = loaded.model.config();
        let ids: Vec<u32> = (0..config.max_positions.min(300) as u32)
            .map(|i| i.wrapping_mul(2_654_435_761).rotate_left(11) % config.vocab_size as u32)
            .collect();
        let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 8, failure_persistence: None, ..<_>::default() });
        runner
            .run(&pieces(), |pieces| {
                assert_same_bits(&whole, &by_pieces(&loaded, &ids, &pieces), &format!("{dir:?} {format}"));
                Ok(())
            })
            .unwrap();
    }
}

/// Room for exactly 50 tokens: the step that asks for more touches nothing, and what one sequence gives back another gets.
#[test]
fn a_step_without_room_is_refused_and_harms_nobody() {
    let dir = golden_dir("public_hybrid");
    let backend = || CpuBackend::with(Level::detect(), 1).unwrap();
    let cache = |memory| CacheOptions { memory, format: KvFormat::F32 };
    let model = load_format(&dir, KvFormat::F32).model;
    let memory = (0..50).map(|tokens| model.step_bytes(tokens, 1)).max().unwrap();
    let loaded = load_cached(&dir, backend(), Numerics::EXACT, 0, cache(memory));
    assert_eq!(loaded.model.memory().limit, memory);
    let mut scratch = Scratch::default();
    let mut feed = |state: &mut State| {
        let tokens = [(state.position() % 256) as u32];
        let mut out = Vec::new();
        let mut segments = [Segment { state, tokens: &tokens, logits: Logits::Last, rewindable: false }];
        loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).map(|()| out)
    };
    let mut first = loaded.model.new_state();
    let fed: Vec<_> = (0..50).map(|_| feed(&mut first).unwrap()).collect();
    let error = loop {
        match feed(&mut first) {
            Ok(_) => assert!(first.position() < 128, "no end"),
            Err(error) => break error,
        }
    };
    assert!(matches!(error, ForwardError::NoRoom(NoRoom { needed, free }) if needed > free), "{error}");
    let (position, used) = (first.position(), loaded.model.memory().used);
    let mut second = loaded.model.new_state();
    assert!(matches!(feed(&mut second), Err(ForwardError::NoRoom(_))), "all memory is in use");
    assert!(!first.is_poisoned() && !second.is_poisoned());
    assert_eq!((first.position(), second.position(), loaded.model.memory().used), (position, 0, used));
    drop(first);
    for expected in fed {
        assert_same_bits(&expected, &feed(&mut second).unwrap(), "in pages that another sequence has used");
    }

    let checkpoint = Checkpoint::open(&dir).unwrap();
    let load =
        |memory| Model::load(backend().into(), &checkpoint, Numerics::EXACT, cache(memory), &mut |_, _| {});
    let needed = model.step_bytes(0, 1);
    let message = format!("memory: {} bytes are too few: the state of one token takes {needed}", needed - 1);
    assert_eq!(load(needed - 1).err().unwrap().to_string(), message);
    assert!(load(needed).is_ok());
}

/// How far rows of logits are from what they should be.
#[derive(Default)]
struct Differences {
    largest: f32,
    sum: f64,
    rows: usize,
    /// Rows whose largest logit is the same.
    equal: usize,
    elements: usize,
}

impl Differences {
    fn add(&mut self, found: &[f32], expected: &[f32], vocab: usize) {
        let rows = found.chunks_exact(vocab).zip(expected.chunks_exact(vocab));
        self.equal += rows.filter(|(found, expected)| argmax(found) == argmax(expected)).count();
        self.largest = self.largest.max(largest_difference(found, expected));
        self.sum += found.iter().zip(expected).map(|(a, b)| f64::from((a - b).abs())).sum::<f64>();
        self.rows += found.len() / vocab;
        self.elements += found.len();
    }

    fn mean(&self) -> f64 {
        self.sum / self.elements as f64
    }
}

/// A key that is rounded may turn an expert's choice, which moves a row's logits by much; random weights amplify what a
/// trained model tolerates. So the gates only find a format that is broken.
#[test]
fn formats_stay_near_the_reference_on_random_models() {
    for (format, mean, least) in
        [(KvFormat::F32, 1e-4, 100), (KvFormat::Bf16, 0.1, 90), (KvFormat::Fp8, 1.0, 70)]
    {
        for case in CASES {
            let loaded = load_format(&golden_dir(case), format);
            let (golden, tensors) = golden(case);
            let mut all = Differences::default();
            for sequence in &golden.sequences {
                let found = logits(&loaded, &*loaded.fabric, &sequence.ids(), usize::MAX, &mut NoTrace);
                let expected = tensors.f32(&format!("{}.logits", sequence.name));
                all.add(&found, &expected, loaded.model.config().vocab_size);
            }
            println!(
                "{format} {case}: |Δlogit| {:.1e} at most, {:.1e} on average, argmax {} of {}",
                all.largest,
                all.mean(),
                all.equal,
                all.rows
            );
            assert!(all.mean() <= mean && all.equal * 100 >= all.rows * least, "{format} {case}");
        }
    }
}

/// On the trained model: of the reference's reply tokens, how many come out the same behind the reference's beginning,
/// and how many replies are therefore the same as a whole.
#[test]
fn formats_stay_near_the_reference_on_the_trained_model() {
    let exact = load(&nano_dir("bf16"));
    let others = [(KvFormat::Bf16, 995, 210), (KvFormat::Fp8, 990, 200)];
    let loaded = others.map(|(format, ..)| load_format(&nano_dir("bf16"), format));
    let vocab = exact.model.config().vocab_size;
    let prompts = prompts();
    let (mut all, mut replies): ([Differences; 2], [usize; 2]) = Default::default();
    for prompt in &prompts {
        let ids = [prompt.prompt_ids.as_slice(), &prompt.greedy_ids].concat();
        let of_reply = |loaded: &Loaded| {
            let all = logits(loaded, &*loaded.fabric, &ids[..ids.len() - 1], usize::MAX, &mut NoTrace);
            all[(prompt.prompt_ids.len() - 1) * vocab..].to_vec()
        };
        let expected = of_reply(&exact);
        for (i, loaded) in loaded.iter().enumerate() {
            let equal = all[i].equal;
            all[i].add(&of_reply(loaded), &expected, vocab);
            replies[i] += usize::from(all[i].equal - equal == prompt.greedy_ids.len());
        }
    }
    for (i, (format, least_tokens, least_replies)) in others.into_iter().enumerate() {
        let Differences { largest, rows, equal, .. } = all[i];
        println!(
            "{format} nano: |Δlogit| {largest:.1e} at most, {:.1e} on average, tokens {equal} of {rows}, replies {} of {}",
            all[i].mean(),
            replies[i],
            prompts.len()
        );
        assert!(equal * 1000 >= rows * least_tokens && replies[i] >= least_replies, "{format}");
    }
}
