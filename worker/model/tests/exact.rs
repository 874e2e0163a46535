//! Contract 1: the same bits however a sequence is cut, whatever shares the step, wherever experts live.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use belay_backend::{Fabric, FabricError, Route};
use belay_cpu::{CpuBackend, Level};
use belay_model::{ForwardError, Logits, NoTrace, Numerics, Scratch, Segment};
use common::*;

fn levels() -> impl Iterator<Item = Level> {
    Level::ALL.into_iter().filter(|level| level.is_available())
}

#[test]
fn prefill_chunks_and_single_steps_give_the_same_bits() {
    for case in CASES {
        for level in levels() {
            let loaded = load_with(&golden_dir(case), CpuBackend::with(level, 1).unwrap(), Numerics::EXACT);
            let ids = golden(case).0.sequences[1].ids();
            let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
            for chunk in [1, 2, 3, 5, 7, 16, 64] {
                let cut = logits(&loaded, &*loaded.fabric, &ids, chunk, &mut NoTrace);
                assert_same_bits(&whole, &cut, &format!("{case} {level} in chunks of {chunk}"));
            }
        }
    }
}

/// The longest sequence crosses the boundary of every compressor window while the cut moves over it.
#[test]
fn a_cut_at_any_place_gives_the_same_bits() {
    let loaded = load(&golden_dir("public_hybrid"));
    let ids = golden("public_hybrid").0.sequences[1].ids();
    let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
    let vocab = loaded.model.config().vocab_size;
    let mut scratch = Scratch::default();
    for cut in 1..ids.len() {
        let mut state = loaded.model.new_state();
        step(&loaded, &mut scratch, &mut state, &ids[..cut]);
        let last = step(&loaded, &mut scratch, &mut state, &ids[cut..]);
        assert_same_bits(&last, &whole[whole.len() - vocab..], &format!("cut at {cut}"));
    }
}

#[test]
fn rounded_modes_are_exact_about_cuts_too() {
    for numerics in [Numerics::ROUNDED_CACHE, Numerics::REFERENCE] {
        let backend = CpuBackend::with(Level::detect(), 1).unwrap();
        let loaded = load_with(&golden_dir("public_fp"), backend, numerics);
        let ids = golden("public_fp").0.sequences[1].ids();
        let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
        for chunk in [1, 13] {
            let cut = logits(&loaded, &*loaded.fabric, &ids, chunk, &mut NoTrace);
            assert_same_bits(&whole, &cut, &format!("{numerics:?} in chunks of {chunk}"));
        }
    }
}

#[test]
fn any_number_of_ranks_gives_the_same_bits() {
    for case in CASES {
        let loaded = load(&golden_dir(case));
        let ids = golden(case).0.sequences[1].ids();
        let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
        for ranks in [1, 2, 3, 4] {
            let split = Split::new(&loaded.checkpoint, ranks);
            let shares: Vec<u64> = split.0.iter().map(|bank| bank.bytes()).collect();
            assert_eq!(shares.iter().sum::<u64>(), loaded.bank.bytes(), "{ranks} ranks");
            let found = logits(&loaded, &split, &ids, 50, &mut NoTrace);
            assert_same_bits(&whole, &found, &format!("{case} on {ranks} ranks"));
        }
    }
}

#[test]
fn any_number_of_threads_gives_the_same_bits() {
    let ids = golden("public_fp").0.sequences[2].ids();
    let of_threads = |threads| {
        let backend = CpuBackend::with(Level::detect(), threads).unwrap();
        let loaded = load_with(&golden_dir("public_fp"), backend, Numerics::EXACT);
        logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace)
    };
    let alone = of_threads(1);
    for threads in [2, 3, 8] {
        assert_same_bits(&alone, &of_threads(threads), &format!("{threads} threads"));
    }
}

/// Sequences of different lengths and phases share steps: prompts beside single tokens.
#[test]
fn sequences_in_one_step_do_not_touch_each_other() {
    for case in CASES {
        let loaded = load(&golden_dir(case));
        let all: Vec<Vec<u32>> = golden(case).0.sequences.iter().map(|sequence| sequence.ids()).collect();
        let alone: Vec<Vec<f32>> =
            all.iter().map(|ids| logits(&loaded, &*loaded.fabric, ids, usize::MAX, &mut NoTrace)).collect();
        let mut states: Vec<_> = all.iter().map(|_| loaded.model.new_state()).collect();
        let mut found = vec![Vec::new(); all.len()];
        let (mut scratch, mut out) = (Scratch::default(), Vec::new());
        let vocab = loaded.model.config().vocab_size;
        for round in 0.. {
            // sequence i feeds 1, 3, 9, … tokens, so that each step mixes long and short segments
            let mut segments = Vec::new();
            let mut places = Vec::new();
            for (i, (state, ids)) in states.iter_mut().zip(&all).enumerate() {
                let size = 1 + (round + i) % 3 * (7 * i + 1);
                let from = state.position();
                let tokens = &ids[from..ids.len().min(from + size)];
                if !tokens.is_empty() {
                    places.push((i, tokens.len()));
                    segments.push(Segment { state, tokens, logits: Logits::All, rewindable: false });
                }
            }
            if segments.is_empty() {
                break;
            }
            loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
            let mut rest = out.as_slice();
            for (i, rows) in places {
                let (mine, others) = rest.split_at(rows * vocab);
                found[i].extend_from_slice(mine);
                rest = others;
            }
        }
        for (i, (alone, found)) in alone.iter().zip(&found).enumerate() {
            assert_same_bits(alone, found, &format!("{case} sequence {i}"));
        }
    }
}

#[test]
fn only_the_wanted_logits_come_back() {
    let loaded = load(&golden_dir("public_hybrid"));
    let ids = golden("public_hybrid").0.sequences[1].ids();
    let whole = logits(&loaded, &*loaded.fabric, &ids, usize::MAX, &mut NoTrace);
    let vocab = loaded.model.config().vocab_size;
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let mut states: Vec<_> = (0..3).map(|_| loaded.model.new_state()).collect();
    let wanted = [Logits::Last, Logits::None, Logits::All];
    let mut segments: Vec<_> = states
        .iter_mut()
        .zip(wanted)
        .map(|(state, logits)| Segment { state, tokens: &ids, logits, rewindable: false })
        .collect();
    loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
    assert_same_bits(&out[..vocab], &whole[whole.len() - vocab..], "last");
    assert_same_bits(&out[vocab..], &whole, "all");
}

/// Fails at a given exchange.
struct Failing {
    inner: Arc<dyn Fabric>,
    left: AtomicUsize,
}

impl Fabric for Failing {
    fn exchange(
        &self,
        layer: u32,
        x: &[f32],
        routes: &[Route],
        y: &mut [f32],
        meanwhile: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        if self.left.fetch_sub(1, Ordering::Relaxed) == 1 {
            return Err(FabricError::PeerLost { worker: 1, cause: "reset".to_owned() });
        }
        self.inner.exchange(layer, x, routes, y, meanwhile)
    }
}

#[test]
fn a_failed_step_poisons_its_states_and_no_others() {
    let loaded = load(&golden_dir("public_hybrid"));
    let mut states: Vec<_> = (0..3).map(|_| loaded.model.new_state()).collect();
    let fabric = Failing { inner: Arc::new(Split::new(&loaded.checkpoint, 2)), left: AtomicUsize::new(3) };
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let mut segments: Vec<_> = states[..2]
        .iter_mut()
        .map(|state| Segment { state, tokens: &[1, 2], logits: Logits::Last, rewindable: false })
        .collect();
    let error = loaded.model.forward(&mut scratch, &mut segments, &fabric, &mut out).unwrap_err();
    assert_eq!(error.to_string(), "layer 2: worker 1 is not reachable: reset");
    assert!(matches!(error, ForwardError::Fabric { layer: 2, .. }));
    assert_eq!(states.iter().map(|state| state.is_poisoned()).collect::<Vec<_>>(), [true, true, false]);

    let mut segments: Vec<_> = states[1..]
        .iter_mut()
        .map(|state| Segment { state, tokens: &[1], logits: Logits::Last, rewindable: false })
        .collect();
    let error = loaded.model.forward(&mut scratch, &mut segments, &fabric, &mut out).unwrap_err();
    assert_eq!(error, ForwardError::Poisoned { segment: 0 });
    assert!(!states[2].is_poisoned(), "a refused step touches nothing");
}

#[test]
fn steps_that_cannot_be_computed_are_refused_before_anything_is_touched() {
    let loaded = load(&golden_dir("public_hybrid"));
    let mut state = loaded.model.new_state();
    let mut refusal = |tokens: &[u32]| {
        let mut segments = [Segment { state: &mut state, tokens, logits: Logits::Last, rewindable: false }];
        let error = loaded
            .model
            .forward(&mut Scratch::default(), &mut segments, &*loaded.fabric, &mut Vec::new())
            .unwrap_err();
        assert!(!segments[0].state.is_poisoned());
        error.to_string()
    };
    assert_eq!(refusal(&[]), "segment 0: no tokens");
    assert_eq!(refusal(&[3, 256]), "segment 0: token 256 is outside the vocabulary of 256");
    assert_eq!(refusal(&[0; 129]), "segment 0: 129 tokens are more than max_position_embeddings 128");
    let mut segments =
        [Segment { state: &mut state, tokens: &[0; 9], logits: Logits::Last, rewindable: true }];
    let error = loaded
        .model
        .forward(&mut Scratch::default(), &mut segments, &*loaded.fabric, &mut Vec::new())
        .unwrap_err();
    assert_eq!(error.to_string(), "segment 0: 9 tokens are more than the 8 that can be taken back");
}

#[test]
fn an_expert_that_is_not_resident_is_named() {
    let loaded = load(&golden_dir("public_hybrid"));
    loaded.bank.unload([(1, 3), (1, 4)]);
    assert!(!loaded.bank.holds(1, 3) && loaded.bank.holds(1, 5));
    let routes = [Route { row: 0, expert: 3, weight: 1.0 }];
    let width = loaded.model.config().hidden_size;
    let (x, mut y) = (vec![0.5; width], vec![0.0; width]);
    let error = loaded.fabric.exchange(1, &x, &routes, &mut y, &mut || {}).unwrap_err();
    assert_eq!(error, FabricError::NotResident { layer: 1, expert: 3 });
    let (mut done, mut total) = (0, 0);
    loaded.bank.load([(1, 3)], &mut |bytes, of| (done, total) = (bytes, of)).unwrap();
    assert_eq!((done, total), (loaded.checkpoint.expert_bytes(1, 3), loaded.checkpoint.expert_bytes(1, 3)));
    loaded.fabric.exchange(1, &x, &routes, &mut y, &mut || {}).unwrap();
    assert!(y.iter().any(|&value| value != 0.0));
}
