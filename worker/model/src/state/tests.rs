use std::collections::{HashMap, HashSet};
use std::hash::{DefaultHasher, Hash, Hasher};

use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::cache::{KvFormat, REWINDABLE};
use crate::config::Config;

fn layout(draft_tokens: usize, changes: &Value) -> CacheLayout {
    let text = include_str!("../../../../tests/fixtures/models/nano/bf16/config.json");
    let mut config: Value = serde_json::from_str(text).unwrap();
    for (key, value) in changes.as_object().unwrap() {
        config[key] = value.clone();
    }
    let mut config = Config::parse(&config.to_string()).unwrap();
    if draft_tokens > 0 {
        config.add_draft_stage(draft_tokens).unwrap();
    }
    CacheLayout::new(&config, KvFormat::F32).unwrap()
}

/// Nano's layers, and smaller windows and ratios that come round more often; without a compressor too.
fn layouts() -> impl Strategy<Value = CacheLayout> {
    let changes = prop_oneof![
        Just(json!({})),
        Just(json!({"compress_ratios": [0, 8, 4, 8, 4, 0], "sliding_window": 6})),
        Just(json!({"compress_ratios": [0, 6, 4, 6, 4, 0], "sliding_window": 70})),
        Just(json!({"compress_ratios": [0, 0, 0, 0, 0, 0], "sliding_window": 9})),
    ];
    (0usize..4, changes).prop_map(|(draft_tokens, changes)| layout(draft_tokens, &changes))
}

/// What one sequence does next; numbers are taken modulo what there is.
#[derive(Clone, Debug)]
enum Action {
    Feed { sequence: usize, tokens: usize },
    Speculate { sequence: usize, tokens: usize, kept: usize },
    Reserve { sequence: usize, tokens: usize },
    Snapshot { sequence: usize },
    Restore { snapshot: usize },
    Drop { sequence: usize },
    Forget { snapshot: usize },
}

fn actions() -> impl Strategy<Value = Vec<Action>> {
    let any = 0usize..64;
    let action = prop_oneof![
        6 => (any.clone(), 1usize..90).prop_map(|(sequence, tokens)| Action::Feed { sequence, tokens }),
        6 => (any.clone(), 1..=REWINDABLE, 0..=REWINDABLE)
            .prop_map(|(sequence, tokens, kept)| Action::Speculate { sequence, tokens, kept }),
        1 => (any.clone(), 1usize..90).prop_map(|(sequence, tokens)| Action::Reserve { sequence, tokens }),
        3 => any.clone().prop_map(|sequence| Action::Snapshot { sequence }),
        3 => any.clone().prop_map(|snapshot| Action::Restore { snapshot }),
        1 => any.clone().prop_map(|sequence| Action::Drop { sequence }),
        1 => any.prop_map(|snapshot| Action::Forget { snapshot }),
    ];
    prop::collection::vec(action, 1..60)
}

/// States without numbers: a row is a hash of the tokens that it depends on.
struct World {
    pool: Arc<Pool>,
    layout: Arc<CacheLayout>,
    /// By page and offset.
    rows: HashMap<(u32, usize), u64>,
    /// With a hash of each beginning.
    sequences: Vec<(State, Vec<u64>)>,
    snapshots: Vec<(Snapshot, Vec<u64>)>,
    next_token: u32,
}

impl World {
    fn new(layout: CacheLayout, pages: usize) -> Self {
        let pool = Arc::new(Pool::new(pages, layout.page_bytes));
        let mut world = Self {
            pool,
            layout: Arc::new(layout),
            rows: HashMap::new(),
            sequences: Vec::new(),
            snapshots: Vec::new(),
            next_token: 0,
        };
        world.begin();
        world
    }

    fn begin(&mut self) {
        let state = State::new(Arc::clone(&self.pool), Arc::clone(&self.layout));
        self.sequences.push((state, Vec::new()));
    }

    fn act(&mut self, action: Action) {
        match action {
            Action::Feed { sequence, tokens } => {
                self.feed(sequence % self.sequences.len(), tokens, false);
            }
            Action::Speculate { sequence, tokens, kept } => {
                let index = sequence % self.sequences.len();
                let before = self.sequences[index].1.len();
                if self.feed(index, tokens, true) {
                    let (state, history) = &mut self.sequences[index];
                    let position = before + kept.min(tokens);
                    assert!(before == 0 || state.rewind(before - 1).is_err(), "before the step");
                    assert!(state.rewind(before + tokens + 1).is_err(), "behind the step");
                    state.rewind(position).unwrap();
                    history.truncate(position);
                    assert_eq!(state.bytes(), self.layout.state_bytes(position));
                }
            }
            Action::Reserve { sequence, tokens } => {
                let index = sequence % self.sequences.len();
                self.reserve(index, tokens);
            }
            Action::Snapshot { sequence } => {
                let index = sequence % self.sequences.len();
                let (state, history) = &self.sequences[index];
                let missing = self.layout.block - history.len() % self.layout.block;
                assert_eq!(state.snapshot().is_ok(), missing == self.layout.block);
                if self.feed(index, missing, false) {
                    let (state, history) = &mut self.sequences[index];
                    self.snapshots.push((state.snapshot().unwrap(), history.clone()));
                }
            }
            Action::Restore { snapshot } => {
                if let Some((snapshot, history)) = pick(&self.snapshots, snapshot) {
                    self.sequences.push((snapshot.restore(), history.clone()));
                }
            }
            Action::Drop { sequence } => {
                self.sequences.swap_remove(sequence % self.sequences.len());
                if self.sequences.is_empty() {
                    self.begin();
                }
            }
            Action::Forget { snapshot } => {
                if !self.snapshots.is_empty() {
                    self.snapshots.swap_remove(snapshot % self.snapshots.len());
                }
            }
        }
        self.check_account();
    }

    /// Whether there was room; if not, nothing has changed.
    fn reserve(&mut self, index: usize, tokens: usize) -> bool {
        let used = self.pool.memory().used;
        let (state, history) = &mut self.sequences[index];
        let bytes = state.bytes();
        match state.reserve(tokens) {
            Ok(()) => assert_eq!(state.bytes(), self.layout.step_bytes(history.len(), tokens)),
            Err(NoRoom { needed, free }) => {
                let memory = self.pool.memory();
                assert!(needed > free && free == memory.limit - memory.used);
                assert!(memory.used <= used && state.bytes() <= bytes);
                return false;
            }
        }
        true
    }

    fn feed(&mut self, index: usize, tokens: usize, rewindable: bool) -> bool {
        if !self.reserve(index, tokens) {
            return false;
        }
        let layout = Arc::clone(&self.layout);
        let (state, history) = &mut self.sequences[index];
        let start = history.len();
        // tokens of different sequences never agree
        for token in (self.next_token..).take(tokens) {
            let mut hasher = DefaultHasher::new();
            (history.last(), token).hash(&mut hasher);
            history.push(hasher.finish());
        }
        self.next_token += tokens as u32;
        let row = |part: &Part, row: usize| {
            let run = state.rows(part).run_from(row);
            (run.page, run.offset)
        };
        let hash = |tokens: usize| history[tokens - 1];
        for (part, read, written, ratio) in needs(&layout, start, start + tokens, rewindable) {
            for number in read {
                let found = self.rows.get(&row(&part, number));
                let expected = hash((number + 1) * ratio + layout.rows(&part, &[], 0).shift);
                assert_eq!(found, Some(&expected), "row {number} of {part:?} at {start}");
            }
            for number in written {
                let place = row(&part, number);
                assert!(self.pool.sole_holder(std::iter::once(place.0)), "a page that others hold");
                let tokens = (number + 1) * ratio + layout.rows(&part, &[], 0).shift;
                self.rows.insert(place, hash(tokens));
            }
        }
        state.commit(tokens, rewindable);
        if !rewindable {
            assert_eq!(state.bytes(), self.layout.state_bytes(history.len()), "{} tokens", history.len());
        }
        true
    }

    /// What the pool says is in use is what somebody holds, each page once.
    fn check_account(&self) {
        let states = self.sequences.iter().map(|(state, _)| &state.pages);
        let snapshots = self.snapshots.iter().map(|(snapshot, _)| &snapshot.pages);
        let held: HashSet<u32> = states.chain(snapshots).flat_map(Pages::all).collect();
        assert_eq!(self.pool.memory().used, held.len() * self.layout.page_bytes);
    }
}

fn pick<T>(all: &[T], number: usize) -> Option<&T> {
    all.get(number.checked_rem(all.len())?)
}

/// Rows that a step from `start` to `end` reads of earlier steps, and rows that it writes, with the tokens of a row.
fn needs(
    layout: &CacheLayout,
    start: usize,
    end: usize,
    rewindable: bool,
) -> Vec<(Part, Range<usize>, Range<usize>, usize)> {
    let mut all = Vec::new();
    let length = layout.window_length();
    for layer in &layout.layers {
        // the stage's row of a token is made in the step that brings the next one
        let shift = layout.rows(&layer.window, &[], 0).shift;
        let back = |position: usize| position.saturating_sub(shift);
        all.push((
            layer.window,
            back((start + 1).saturating_sub(length))..back(start),
            back(start)..back(end),
            1,
        ));
        for parts in layer.main.iter().chain(&layer.index) {
            let ratio = layout.block / layout.rows(&parts.entries, &[], 0).rows_per_block;
            let overlap = ratio == 4;
            let open_from = |position| CacheLayout::open_from(ratio, overlap, position);
            let keep = if rewindable { start } else { start.max(open_from(end)) };
            all.push((parts.open, open_from(start)..start, keep..end, 1));
            all.push((parts.entries, 0..start / ratio, start / ratio..end / ratio, ratio));
        }
    }
    if let Some(streams) = layout.streams {
        let kept = if rewindable { start } else { end - 1 };
        all.push((streams, start.saturating_sub(1)..start, kept..end, 1));
    }
    all
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, ..ProptestConfig::default() })]

    /// Whatever sequences do, each finds its own rows, and the account is what they hold. Some pools are too small.
    #[test]
    fn sequences_find_their_rows_and_the_account_is_exact(
        layout in layouts(),
        pages in prop_oneof![Just(1000usize), 8usize..60],
        actions in actions(),
    ) {
        let mut world = World::new(layout, pages);
        for action in actions {
            world.act(action);
        }
        world.sequences.clear();
        world.check_account();
        world.snapshots.clear();
        prop_assert_eq!(world.pool.memory().used, 0);
    }
}

/// A snapshot pins what is behind it.
#[test]
fn rows_of_a_snapshot_cannot_be_taken_back() {
    let mut world = World::new(layout(0, &json!({})), 100);
    assert!(world.feed(0, 126, false) && world.feed(0, 2, true));
    let (state, _) = &mut world.sequences[0];
    let snapshot = state.snapshot().unwrap();
    let error = state.rewind(127).unwrap_err();
    assert_eq!(error.to_string(), "segment 0: rows behind position 127 are part of a snapshot");
    drop(snapshot);
    state.rewind(127).unwrap();
    assert_eq!(state.position(), 127);
}
