//! The draft stage: against the reference's numbers, and the same guesses however a sequence came about.

#![allow(clippy::unwrap_used)]

mod common;

use std::sync::OnceLock;

use belay_backend::{Fabric, FabricError, Route};
use belay_cpu::{CpuBackend, Level};
use belay_model::{
    CacheOptions, Draft, ForwardError, KvFormat, Logits, NoTrace, Numerics, Scratch, Segment, Snapshot,
    State, Trace,
};
use common::*;
use proptest::prelude::*;

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

/// What the stage guesses behind each beginning of a sequence, and the logits of these guesses.
struct Straight {
    loaded: Loaded,
    ids: Vec<u32>,
    /// By the number of tokens taken, from 1.
    guesses: Vec<(Vec<u32>, Vec<f32>)>,
}

const DRAFTS: usize = 3;

/// The shortest of a case's sequences that is longer than a block.
fn sequence_with_a_block(case: &str) -> Vec<u32> {
    let block = load(&golden_dir(case)).model.block_tokens();
    let all = golden(case).0.sequences.into_iter().map(|sequence| sequence.ids());
    all.filter(|ids| ids.len() > block + 2).min_by_key(Vec::len).unwrap()
}

impl Straight {
    /// Each beginning is fed to a state of its own, in one step.
    fn new(case: &str) -> Self {
        let loaded = drafting(case, DRAFTS);
        let ids = sequence_with_a_block(case);
        let mut scratch = Scratch::default();
        let of_length = |taken: usize| {
            let mut state = loaded.model.new_state();
            step(&loaded, &mut scratch, &mut state, &ids[..taken]);
            draft(&loaded, &*loaded.fabric, &mut scratch, &mut state, ids[taken], DRAFTS)
        };
        let guesses = (1..ids.len()).map(of_length).collect();
        Self { loaded, ids, guesses }
    }

    /// Drafts behind what `state` has taken, which are ids of the sequence, and compares.
    fn check(&self, scratch: &mut Scratch<CpuBackend>, state: &mut State, count: usize) {
        let taken = state.position();
        let (guesses, logits) =
            draft(&self.loaded, &*self.loaded.fabric, scratch, state, self.ids[taken], count);
        let (expected, expected_logits) = &self.guesses[taken - 1];
        assert_eq!(guesses, expected[..count], "behind {taken} tokens");
        assert_same_bits(&logits, &expected_logits[..logits.len()], &format!("behind {taken} tokens"));
    }

    /// The same for several states in one call; each asks for so many guesses.
    fn check_all<'a>(
        &self,
        scratch: &mut Scratch<CpuBackend>,
        states: impl Iterator<Item = (&'a mut State, usize)>,
    ) {
        let mut drafts: Vec<_> =
            states.map(|(state, count)| Draft { token: self.ids[state.position()], state, count }).collect();
        let (mut guesses, mut trace) = (Vec::new(), DraftLogits::default());
        let (fabric, model) = (&*self.loaded.fabric, &self.loaded.model);
        model.draft_traced(scratch, &mut drafts, fabric, &mut guesses, &mut trace).unwrap();
        let behind = |draft: &Draft<'_>| &self.guesses[draft.state.position() - 1];
        let expected: Vec<u32> =
            drafts.iter().flat_map(|draft| behind(draft).0[..draft.count].to_vec()).collect();
        assert_eq!(guesses, expected);
        // logits come by distance
        let vocab = model.config().vocab_size;
        let expected: Vec<f32> = (0..DRAFTS)
            .flat_map(|ahead| {
                let asking = drafts.iter().filter(move |draft| draft.count > ahead);
                asking.flat_map(move |draft| behind(draft).1[ahead * vocab..][..vocab].to_vec())
            })
            .collect();
        assert_same_bits(&trace.0, &expected, "guesses in one call");
    }
}

#[test]
fn guesses_do_not_depend_on_how_the_sequence_was_cut() {
    for case in CASES {
        let straight = Straight::new(case);
        let mut scratch = Scratch::default();
        for chunk in [1, 2, 3, 5, 16, 64] {
            let mut state = straight.loaded.model.new_state();
            for tokens in straight.ids[..straight.ids.len() - 1].chunks(chunk) {
                step(&straight.loaded, &mut scratch, &mut state, tokens);
                let count = 1 + state.position() % DRAFTS;
                straight.check(&mut scratch, &mut state, count);
            }
        }
    }
}

/// What a sequence may go through between two drafts.
#[derive(Clone, Debug)]
enum Event {
    Feed(usize),
    /// A step with so many right and so many wrong tokens behind the confirmed one; the wrong ones are taken back.
    Speculate {
        right: usize,
        wrong: usize,
    },
    /// Keeps the state for later if it is at a block's end.
    Snapshot,
    /// Goes on from the last snapshot.
    Restore,
    Draft(usize),
}

fn events() -> impl Strategy<Value = Vec<Event>> {
    let event = prop_oneof![
        2 => (1..40usize).prop_map(Event::Feed),
        4 => (0..=DRAFTS, 0..=DRAFTS).prop_map(|(right, wrong)| Event::Speculate { right, wrong }),
        1 => Just(Event::Snapshot),
        1 => Just(Event::Restore),
        4 => (1..=DRAFTS).prop_map(Event::Draft),
    ];
    prop::collection::vec(event, 1..40)
}

/// One sequence of a batch.
struct Lane {
    state: State,
    snapshot: Option<Snapshot>,
    /// What this round feeds.
    tokens: Vec<u32>,
    rewindable: bool,
    /// Where the sequence stands when wrong tokens are taken back.
    stays: usize,
}

impl Lane {
    fn plan(&mut self, straight: &Straight, event: &Event) {
        let Straight { loaded, ids, .. } = straight;
        let (taken, block) = (self.state.position(), loaded.model.block_tokens());
        let left = ids.len() - 1 - taken;
        self.tokens.clear();
        self.rewindable = matches!(event, Event::Speculate { .. });
        match *event {
            Event::Feed(count) if left > 0 => {
                // so that snapshots come about
                let count = count.min(left).min(block - taken % block);
                self.tokens.extend(&ids[taken..][..count]);
                self.stays = taken + count;
            }
            Event::Speculate { right, wrong } if left > 0 => {
                let right = right.min(left - 1);
                let wrong = wrong.min(DRAFTS - right);
                self.tokens.extend(&ids[taken..][..1 + right]);
                self.tokens.extend((0..wrong as u32).map(|n| (ids[taken + 1 + right] + 1 + n) % 199));
                self.stays = taken + 1 + right;
            }
            Event::Snapshot if taken > 0 && taken % block == 0 => {
                self.snapshot = Some(loaded.model.snapshot(&self.state).unwrap());
            }
            Event::Restore => {
                if let Some(snapshot) = &self.snapshot {
                    self.state = loaded.model.restore(snapshot);
                }
            }
            _ => {}
        }
    }
}

/// Event n of all sequences is one step, and one call for the guesses of those that draft.
fn run(straight: &Straight, batch: &[Vec<Event>]) {
    let loaded = &straight.loaded;
    let (mut scratch, mut out) = (Scratch::default(), Vec::new());
    let lane = |_: &_| Lane {
        state: loaded.model.new_state(),
        snapshot: None,
        tokens: Vec::new(),
        rewindable: false,
        stays: 0,
    };
    let mut lanes: Vec<Lane> = batch.iter().map(lane).collect();
    for round in 0..batch.iter().map(Vec::len).max().unwrap_or(0) {
        let event = |lane: usize| batch[lane].get(round).unwrap_or(&Event::Feed(1));
        for (index, lane) in lanes.iter_mut().enumerate() {
            lane.plan(straight, event(index));
        }
        let feeding = lanes.iter_mut().filter(|lane| !lane.tokens.is_empty());
        let mut segments: Vec<_> = feeding
            .map(|Lane { state, tokens, rewindable, .. }| Segment {
                state,
                tokens,
                logits: Logits::Last,
                rewindable: *rewindable,
            })
            .collect();
        loaded.model.forward(&mut scratch, &mut segments, &*loaded.fabric, &mut out).unwrap();
        for lane in lanes.iter_mut().filter(|lane| !lane.tokens.is_empty()) {
            if lane.rewindable {
                loaded.model.rewind(&mut lane.state, lane.stays).unwrap();
            }
            assert_eq!(lane.state.position(), lane.stays);
            assert_eq!(lane.state.bytes(), loaded.model.state_bytes(lane.stays), "exact at {}", lane.stays);
        }
        straight.check_all(
            &mut scratch,
            lanes.iter_mut().enumerate().filter_map(|(index, lane)| match *event(index) {
                Event::Draft(count) if lane.state.position() > 0 => Some((&mut lane.state, count)),
                _ => None,
            }),
        );
    }
    drop(lanes);
    assert_eq!(loaded.model.memory().used, 0);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(40))]

    #[test]
    fn guesses_do_not_depend_on_what_came_between_or_beside(
        batch in prop::collection::vec(events(), 1..4),
        case in 0..CASES.len(),
    ) {
        static STRAIGHT: [OnceLock<Straight>; CASES.len()] = [const { OnceLock::new() }; CASES.len()];
        run(STRAIGHT[case].get_or_init(|| Straight::new(CASES[case])), &batch);
    }
}

/// Two sequences that go on from one snapshot with different tokens do not see each other's keys.
#[test]
fn sequences_from_one_snapshot_guess_apart() {
    let straight = Straight::new("public_hybrid");
    let Straight { loaded, ids, .. } = &straight;
    let mut scratch = Scratch::default();
    let block = loaded.model.block_tokens();
    let mut state = loaded.model.new_state();
    step(loaded, &mut scratch, &mut state, &ids[..block]);
    let snapshot = loaded.model.snapshot(&state).unwrap();
    let mut mine = loaded.model.restore(&snapshot);
    let mut other = loaded.model.restore(&snapshot);
    step(loaded, &mut scratch, &mut mine, &ids[block..=block]);
    draft(loaded, &*loaded.fabric, &mut scratch, &mut other, (ids[block] + 1) % 256, DRAFTS);
    step(loaded, &mut scratch, &mut other, &[(ids[block] + 1) % 256]);
    straight.check(&mut scratch, &mut mine, DRAFTS);
    straight.check(&mut scratch, &mut state, DRAFTS);
}

/// Sequences of different lengths ask for different numbers of guesses in one call.
#[test]
fn drafts_in_one_call_do_not_touch_each_other() {
    let straight = Straight::new("public_fp");
    let Straight { loaded, ids, .. } = &straight;
    let mut scratch = Scratch::default();
    let asked = [(3, 2), (130, 0), (1, 3), (40, 1), (100, 3)];
    let mut states: Vec<State> = asked
        .iter()
        .map(|&(taken, _)| {
            let mut state = loaded.model.new_state();
            step(loaded, &mut scratch, &mut state, &ids[..taken]);
            state
        })
        .collect();
    let states = states.iter_mut().zip(asked).map(|(state, (_, count))| (state, count));
    straight.check_all(&mut scratch, states);
}

#[test]
fn a_draft_that_fails_costs_nothing_but_the_draft() {
    let straight = Straight::new("public_hybrid");
    let Straight { loaded, ids, .. } = &straight;
    let mut scratch = Scratch::default();
    let mut state = loaded.model.new_state();
    step(loaded, &mut scratch, &mut state, &ids[..10]);
    let mut drafts = [Draft { state: &mut state, token: ids[10], count: 2 }];
    let mut guesses = Vec::new();
    let error = loaded.model.draft(&mut scratch, &mut drafts, &Unreachable, &mut guesses).unwrap_err();
    assert_eq!(error.to_string(), "layer 6: worker 1 is not reachable: reset");
    assert!(!state.is_poisoned());
    straight.check(&mut scratch, &mut state, DRAFTS);
    step(loaded, &mut scratch, &mut state, &ids[10..20]);
    straight.check(&mut scratch, &mut state, DRAFTS);
}

struct Unreachable;

impl Fabric for Unreachable {
    fn exchange(
        &self,
        _: u32,
        _: &[f32],
        _: &[Route],
        _: &mut [f32],
        _: &mut dyn FnMut(),
    ) -> Result<(), FabricError> {
        Err(FabricError::PeerLost { worker: 1, cause: "reset".to_owned() })
    }
}

/// The storage formats and roundings change the guesses, but not with the cut.
#[test]
fn guesses_in_other_formats_do_not_depend_on_the_cut_either() {
    let backend = || CpuBackend::with(Level::detect(), 1).unwrap();
    for format in [KvFormat::Bf16, KvFormat::Fp8] {
        let cache = CacheOptions { format, ..CacheOptions::default() };
        let loaded = load_cached(&golden_dir("public_fp"), backend(), Numerics::REFERENCE, 1, cache);
        let ids = golden("public_fp").0.sequences[1].ids();
        let stepped = all_draft_logits(&loaded, &*loaded.fabric, &ids);
        let vocab = loaded.model.config().vocab_size;
        let mut scratch = Scratch::default();
        for taken in [1, 16, 17, 100, 128, 140] {
            let mut state = loaded.model.new_state();
            step(&loaded, &mut scratch, &mut state, &ids[..taken]);
            let found = draft(&loaded, &*loaded.fabric, &mut scratch, &mut state, ids[taken], 1).1;
            assert_same_bits(&stepped[(taken - 1) * vocab..][..vocab], &found, &format!("{format} {taken}"));
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
