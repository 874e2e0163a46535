//! A step in two halves: the same bits, and each half attends while the experts of the other are out.

#![allow(clippy::unwrap_used)]

mod common;

use std::path::PathBuf;
use std::sync::Mutex;

use belay_backend::{Fabric, FabricError, Route};
use belay_cpu::{CpuBackend, Level};
use belay_model::{ForwardError, Logits, NoTrace, Numerics, Scratch, Segment, State, Trace};
use common::*;
use proptest::prelude::*;
use proptest::test_runner::TestRunner;

fn load_halves(dir: PathBuf, draft_tokens: usize) -> (Loaded, Loaded) {
    let backend = || CpuBackend::with(Level::detect(), 1).unwrap();
    let whole = load_drafting(&dir, backend(), Numerics::EXACT, draft_tokens);
    let mut halves = load_drafting(&dir, backend(), Numerics::EXACT, draft_tokens);
    halves.model = halves.model.with_halves(2);
    (whole, halves)
}

/// Logits of steps in which sequences of random tokens go on by `lengths`, step by step.
fn logits_of(loaded: &Loaded, steps: &[Vec<usize>]) -> Vec<Vec<f32>> {
    let (vocab, most) = (loaded.model.config().vocab_size as u32, loaded.model.config().max_positions);
    let count = steps.iter().map(Vec::len).max().unwrap_or(0);
    let mut states: Vec<State> = (0..count).map(|_| loaded.model.new_state()).collect();
    let mut scratch = Scratch::default();
    steps
        .iter()
        .map(|lengths| {
            let tokens: Vec<Vec<u32>> = lengths
                .iter()
                .zip(&states)
                .enumerate()
                .map(|(at, (&length, state))| {
                    let first = state.position();
                    let end = (first + length).min(most);
                    (first..end).map(|i| (i as u32 * 7919 + at as u32 * 104_729) % vocab).collect()
                })
                .collect();
            let mut segments: Vec<Segment<'_>> = states
                .iter_mut()
                .zip(&tokens)
                .enumerate()
                .filter(|(_, (_, tokens))| !tokens.is_empty())
                .map(|(at, (state, tokens))| {
                    let logits = [Logits::All, Logits::Last, Logits::None][at % 3];
                    Segment { state, tokens, logits, rewindable: false }
                })
                .collect();
            let mut out = Vec::new();
            loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
            out
        })
        .collect()
}

#[test]
fn halves_have_the_bits_of_the_whole() {
    let dirs = CASES.map(|case| (golden_dir(case), 0)).into_iter().chain([(nano_dir("bf16"), 2)]);
    for (dir, drafts) in dirs {
        let (whole, halves) = load_halves(dir.clone(), drafts);
        let mut runner =
            TestRunner::new(ProptestConfig { cases: 12, failure_persistence: None, ..<_>::default() });
        let lengths = prop::collection::vec(prop::collection::vec(0usize..9, 1..6), 1..6);
        runner
            .run(&lengths, |steps| {
                for (step, (a, b)) in
                    logits_of(&whole, &steps).iter().zip(logits_of(&halves, &steps)).enumerate()
                {
                    assert_same_bits(a, &b, &format!("{dir:?}, step {step} of {steps:?}"));
                }
                Ok(())
            })
            .unwrap();
    }
}

/// What happens, in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    Routed(usize),
    Asked(u32),
    Answered(u32),
}

struct Watched<'a>(&'a dyn Fabric, &'a Mutex<Vec<Event>>);

impl Fabric for Watched<'_> {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        self.1.lock().unwrap().push(Event::Asked(layer));
        let done = self.0.exchange(layer, x, routes, y, meanwhile);
        self.1.lock().unwrap().push(Event::Answered(layer));
        done
    }
}

struct Routes<'a>(&'a Mutex<Vec<Event>>);

impl Trace for Routes<'_> {
    fn routes(&mut self, layer: usize, _: &[Route]) {
        self.0.lock().unwrap().push(Event::Routed(layer));
    }
}

#[test]
fn one_half_attends_while_the_other_is_out() {
    use Event::{Answered, Asked, Routed};
    let (whole, halves) = load_halves(nano_dir("bf16"), 0);
    let layers = whole.checkpoint.card().layers as usize;
    let events = |loaded: &Loaded| {
        let events = Mutex::new(Vec::new());
        let mut states = [loaded.model.new_state(), loaded.model.new_state()];
        let mut segments: Vec<Segment<'_>> = states
            .iter_mut()
            .map(|state| Segment { state, tokens: &[1, 2], logits: Logits::Last, rewindable: false })
            .collect();
        let fabric = Watched(&*loaded.fabric, &events);
        let mut trace = Routes(&events);
        let mut out = Vec::new();
        let scratch = &mut Scratch::default();
        loaded.model.forward_traced(scratch, &mut segments, &fabric, &mut out, &mut trace).unwrap();
        events.into_inner().unwrap()
    };
    let alone = |layer: usize| [Routed(layer), Asked(layer as u32), Answered(layer as u32)];
    assert_eq!(events(&whole), (0..layers).flat_map(alone).collect::<Vec<_>>());
    let mut expected = vec![Routed(0)];
    for layer in 0..layers {
        let number = layer as u32;
        expected.extend([Asked(number), Routed(layer), Answered(number), Asked(number)]);
        expected.extend((layer + 1 < layers).then_some(Routed(layer + 1)));
        expected.push(Answered(number));
    }
    assert_eq!(events(&halves), expected);
}

#[test]
fn a_segment_of_the_second_half_is_named_by_its_place_in_the_call() {
    let (_, halves) = load_halves(nano_dir("bf16"), 0);
    let mut states: Vec<State> = (0..3).map(|_| halves.model.new_state()).collect();
    let tokens: [&[u32]; 3] = [&[1], &[2], &[u32::MAX]];
    let mut segments: Vec<Segment<'_>> = states
        .iter_mut()
        .zip(tokens)
        .map(|(state, tokens)| Segment { state, tokens, logits: Logits::Last, rewindable: false })
        .collect();
    let mut out = Vec::new();
    let refused = halves.model.forward_traced(
        &mut Scratch::default(),
        &mut segments,
        &*halves.fabric,
        &mut out,
        &mut NoTrace,
    );
    assert!(matches!(refused, Err(ForwardError::Invalid { segment: 2, .. })), "{refused:?}");
}
