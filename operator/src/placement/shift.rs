//! Makes the busiest ranks less busy, by as few copies to load as possible.
//!
//! Layers do not depend on each other but for the room and the number of moves that they share. So for each layer a
//! path is searched, step by step from where it is: every step takes load from its busiest rank and makes no other as
//! busy. Then pieces of the paths are taken, always the one that gains most for each copy to load.
use std::cmp::Reverse;

use super::{
    draft::{Draft, Layer, Memory},
    fleet::Seats,
};

/// Steps that gain less than this part of a rank's mean load are not worth a copy.
const FINEST: u64 = 500;

/// Redundant copies that are considered to give way in a step.
const GIVERS: usize = 4;

/// Ranks with little to do that are considered to be cleared for a copy.
const CALM: usize = 4;

/// Copies that leave a rank to make way for one.
const MOST_CLEARED: usize = 4;

/// Shifts load, loading at most so many copies, those that were added to the draft before among them.
pub(super) fn shift(draft: &mut Draft, most_moves: u32) {
    let budget = |draft: &Draft| i64::from(most_moves) - i64::from(draft.memory.loads());
    let left = budget(draft);
    let mut paths: Vec<Path> = Vec::with_capacity(draft.layers.len());
    for layer in 0..draft.layers.len() {
        let before = layer.checked_sub(1).filter(|&before| draft.known[before]);
        let path = match before.filter(|&before| draft.layers[layer].equals(&draft.layers[before])) {
            _ if !draft.known[layer] => Path::default(),
            // without load, layers are alike
            Some(before) => paths[before].clone(),
            None => Path::search(draft, layer, left),
        };
        paths.push(path);
    }
    let mut pieces: Vec<Option<Piece>> = paths.iter().map(|path| path.best_piece(left)).collect();
    loop {
        let best = pieces.iter().enumerate().filter_map(|(layer, piece)| Some((layer, piece.as_ref()?)));
        let Some((layer, piece)) = best.reduce(|a, b| if b.1.beats(a.1) { b } else { a }) else { return };
        let left = budget(draft);
        if piece.cost <= left {
            let whole = paths[layer].take(draft, layer, piece.end);
            if !whole {
                // others have taken the room
                paths[layer] = Path::search(draft, layer, budget(draft));
            }
        }
        pieces[layer] = paths[layer].best_piece(budget(draft));
    }
}

/// Whether a copy of an expert may be on a rank, instead of on another one or in addition: it has none, no other copy is
/// on its worker unless one is on every worker, and what is protected against stays protected against.
pub(super) fn may_go(
    seats: &Seats,
    layer: &Layer,
    min: u32,
    expert: u32,
    from: Option<u32>,
    to: u32,
) -> bool {
    let before = layer.copies(expert);
    if before.contains(&to) {
        return false;
    }
    let mut after: Vec<u32> = before.iter().copied().filter(|&rank| Some(rank) != from).collect();
    let shared = after.iter().any(|&rank| seats.worker(rank) == seats.worker(to));
    if shared && (seats.spread(&after).workers as usize) < seats.workers.len() {
        return false;
    }
    after.push(to);
    seats.spread(&after).keeps(seats.spread(before), min)
}

/// One change of a layer.
#[derive(Clone, Copy, Debug)]
enum Step {
    Move {
        expert: u32,
        from: u32,
        to: u32,
    },
    Swap {
        expert: u32,
        from: u32,
        other: u32,
        to: u32,
    },
    /// A redundant copy of one expert gives way to one of another.
    Exchange {
        expert: u32,
        to: u32,
        other: u32,
        from: u32,
    },
}

impl Step {
    fn fits(self, seats: &Seats, layer: &Layer, memory: &Memory) -> bool {
        let fits = |gets: &[(u32, u32)]| {
            let new = || gets.iter().filter(|(expert, rank)| !layer.was_on(*expert, *rank));
            new().all(|&(_, rank)| {
                let together = new().filter(|(_, other)| seats.worker(*other) == seats.worker(rank)).count();
                memory.fits(seats.worker(rank), together as u64)
            })
        };
        match self {
            Self::Move { expert, to, .. } | Self::Exchange { expert, to, .. } => fits(&[(expert, to)]),
            Self::Swap { expert, from, other, to } => fits(&[(expert, to), (other, from)]),
        }
    }

    fn cost(self, layer: &Layer) -> i64 {
        let new = |expert, rank| i64::from(!layer.was_on(expert, rank));
        match self {
            Self::Move { expert, from, to } => new(expert, to) - new(expert, from),
            Self::Swap { expert, from, other, to } => {
                new(expert, to) - new(expert, from) + new(other, from) - new(other, to)
            }
            Self::Exchange { expert, to, other, from } => new(expert, to) - new(other, from),
        }
    }

    fn apply(self, seats: &Seats, layer: &mut Layer, memory: &mut Memory) {
        let relocate = |layer: &mut Layer, memory: &mut Memory, expert, from, to| {
            memory.gets(seats, layer, expert, to);
            memory.loses(seats, layer, expert, from);
            layer.relocate(expert, from, to);
        };
        match self {
            Self::Move { expert, from, to } => relocate(layer, memory, expert, from, to),
            Self::Swap { expert, from, other, to } => {
                relocate(layer, memory, expert, from, to);
                relocate(layer, memory, other, to, from);
            }
            Self::Exchange { expert, to, other, from } => {
                memory.loses(seats, layer, other, from);
                layer.remove(other, from);
                memory.gets(seats, layer, expert, to);
                layer.add(expert, to);
            }
        }
    }
}

/// Where a layer can go from where it is.
#[derive(Clone, Default)]
struct Path {
    /// Load of the busiest rank at the start, and after each step.
    peaks: Vec<u64>,
    /// Copies to load up to there.
    costs: Vec<i64>,
    steps: Vec<Step>,
    /// Steps that were taken.
    taken: usize,
}

/// Steps of a path up to `end`.
struct Piece {
    end: usize,
    gain: u64,
    cost: i64,
}

impl Piece {
    fn beats(&self, other: &Self) -> bool {
        beats((self.gain, self.cost), (other.gain, other.cost))
    }
}

/// Whether one gain is more than another for what it costs. What costs nothing counts as a quarter of a copy.
fn beats(a: (u64, i64), b: (u64, i64)) -> bool {
    let price = |cost: i64| u128::try_from(cost.max(0) * 4 + 1).unwrap_or(1);
    u128::from(a.0) * price(b.1) > u128::from(b.0) * price(a.1)
}

impl Path {
    fn search(draft: &Draft, index: usize, budget: i64) -> Self {
        let (mut layer, mut memory) = (draft.layers[index].clone(), draft.memory.clone());
        let even = draft.even_fill(index);
        let start = i64::from(memory.loads());
        let mut path = Self { peaks: vec![layer.peak()], costs: vec![0], ..Self::default() };
        loop {
            let one = best_step(&draft.seats, &layer, &memory, draft.min, even);
            let steps = one
                .map_or_else(|| make_way(&draft.seats, &layer, &memory, draft.min, even), |step| vec![step]);
            if steps.is_empty() {
                return path;
            }
            for step in steps {
                step.apply(&draft.seats, &mut layer, &mut memory);
                let cost = i64::from(memory.loads()) - start;
                if cost > budget {
                    return path;
                }
                path.steps.push(step);
                path.peaks.push(layer.peak());
                path.costs.push(cost);
            }
        }
    }

    fn best_piece(&self, budget: i64) -> Option<Piece> {
        let (peak, cost) = (*self.peaks.get(self.taken)?, *self.costs.get(self.taken)?);
        let mut best: Option<Piece> = None;
        for end in self.taken + 1..self.peaks.len() {
            let piece =
                Piece { end, gain: peak.saturating_sub(self.peaks[end]), cost: self.costs[end] - cost };
            if piece.gain > 0 && piece.cost <= budget && best.as_ref().is_none_or(|best| piece.beats(best)) {
                best = Some(piece);
            }
        }
        best
    }

    /// Takes steps up to `end`; stops at one for which there is no room any more, and says so.
    fn take(&mut self, draft: &mut Draft, layer: usize, end: usize) -> bool {
        while self.taken < end {
            let step = self.steps[self.taken];
            if !step.fits(&draft.seats, &draft.layers[layer], &draft.memory) {
                return false;
            }
            step.apply(&draft.seats, &mut draft.layers[layer], &mut draft.memory);
            self.taken += 1;
        }
        true
    }
}

/// The search for the next step of a layer.
struct Search<'a> {
    seats: &'a Seats,
    layer: &'a Layer,
    memory: &'a Memory,
    min: u32,
    /// Copies that a rank has if all have as many.
    even: usize,
    /// The busiest rank.
    busiest: u32,
    peak: u64,
    mean: u64,
    best: Option<(Step, (u64, i64))>,
}

fn best_step(seats: &Seats, layer: &Layer, memory: &Memory, min: u32, even: usize) -> Option<Step> {
    let mut search = Search::new(seats, layer, memory, min, even)?;
    search.moves_and_swaps();
    search.exchanges();
    search.best.map(|(step, _)| step)
}

/// Where no single step helps: a busy expert gets another copy, on a rank that is cleared for it first. Its steps one by
/// one make no rank as busy as the busiest.
fn make_way(seats: &Seats, layer: &Layer, memory: &Memory, min: u32, even: usize) -> Vec<Step> {
    let Some(search) = Search::new(seats, layer, memory, min, even) else { return vec![] };
    let givers = search.givers();
    let mut calm = seats.usable.clone();
    calm.sort_by_key(|&rank| (layer.load(rank), rank));
    let mut experts = layer.on(search.busiest).to_vec();
    experts.sort_by_key(|&expert| (Reverse(layer.share(expert)), expert));
    for expert in experts {
        for &to in calm.iter().filter(|&&to| search.may_go(expert, None, to)).take(CALM) {
            for giver in givers.iter().filter(|giver| giver.expert != expert) {
                if let Some(steps) = search.cleared(expert, to, *giver) {
                    return steps;
                }
            }
        }
    }
    vec![]
}

impl<'a> Search<'a> {
    fn new(seats: &'a Seats, layer: &'a Layer, memory: &'a Memory, min: u32, even: usize) -> Option<Self> {
        let (peak, Reverse(busiest)) =
            seats.usable.iter().map(|&rank| (layer.load(rank), Reverse(rank))).max()?;
        let mean = layer.total() / seats.usable.len() as u64;
        Some(Self { seats, layer, memory, min, even, busiest, peak, mean, best: None })
    }

    /// Clears a rank until another copy of an expert fits, then exchanges a redundant copy for it.
    fn cleared(&self, expert: u32, to: u32, giver: Giver) -> Option<Vec<Step>> {
        let goal = self.peak - (self.mean / FINEST).max(1);
        let share = self.layer.share_of(expert, self.layer.copies(expert).len() + 1);
        let (mut layer, mut memory) = (self.layer.clone(), self.memory.clone());
        let mut steps = vec![];
        while layer.load(to) + share > goal || layer.on(to).len() > self.even {
            if steps.len() == MOST_CLEARED {
                return None;
            }
            let step = self.outward(&layer, &memory, to, giver.expert, goal)?;
            step.apply(self.seats, &mut layer, &mut memory);
            steps.push(step);
        }
        let from = giver.from;
        let step = Step::Exchange { expert, to, other: giver.expert, from };
        if (from != to && layer.on(from).len() == 1) || !step.fits(self.seats, &layer, &memory) {
            return None;
        }
        step.apply(self.seats, &mut layer, &mut memory);
        steps.push(step);
        let better = layer.load(self.busiest) <= goal
            && self.seats.usable.iter().all(|&rank| layer.load(rank) <= goal.max(self.layer.load(rank)));
        better.then_some(steps)
    }

    /// Moves the copy with most to do, but for that of one expert, from a rank to the one with least to do that may have
    /// it.
    fn outward(&self, layer: &Layer, memory: &Memory, from: u32, but: u32, goal: u64) -> Option<Step> {
        let mut experts: Vec<u32> = layer.on(from).iter().copied().filter(|&expert| expert != but).collect();
        experts.sort_by_key(|&expert| (Reverse(layer.share(expert)), expert));
        experts.into_iter().find_map(|expert| {
            let may = |to: &&u32| {
                let step = Step::Move { expert, from, to: **to };
                layer.on(**to).len() <= self.even
                    && layer.load(**to) + layer.share(expert) <= goal
                    && step.fits(self.seats, layer, memory)
                    && may_go(self.seats, layer, self.min, expert, Some(from), **to)
            };
            let to = self.seats.usable.iter().filter(may).min_by_key(|&&to| (layer.load(to), to))?;
            Some(Step::Move { expert, from, to: *to })
        })
    }

    /// Keeps a step if it is the best so far; `after` is the load of the busiest rank that it touches.
    fn consider(&mut self, step: Step, after: u64, allowed: impl Fn(&Self) -> bool) {
        let gain = self.peak.saturating_sub(after.max(self.mean));
        if gain == 0 || gain < self.mean / FINEST {
            return;
        }
        let worth = (gain, step.cost(self.layer));
        let better = self.best.as_ref().is_none_or(|(_, best)| beats(worth, *best));
        if better && step.fits(self.seats, self.layer, self.memory) && allowed(self) {
            self.best = Some((step, worth));
        }
    }

    fn may_go(&self, expert: u32, from: Option<u32>, to: u32) -> bool {
        may_go(self.seats, self.layer, self.min, expert, from, to)
    }

    fn has_place(&self, rank: u32) -> bool {
        self.layer.on(rank).len() <= self.even
    }

    fn moves_and_swaps(&mut self) {
        let (layer, from) = (self.layer, self.busiest);
        for &expert in layer.on(from) {
            let share = layer.share(expert);
            for &to in self.seats.usable.iter().filter(|&&to| to != from) {
                let after = (self.peak - share).max(layer.load(to) + share);
                self.consider(Step::Move { expert, from, to }, after, |this| {
                    this.has_place(to) && layer.on(from).len() > 1 && this.may_go(expert, Some(from), to)
                });
                for &other in layer.on(to) {
                    let back = layer.share(other);
                    if back >= share {
                        continue;
                    }
                    let after = (self.peak - share + back).max(layer.load(to) + share - back);
                    self.consider(Step::Swap { expert, from, other, to }, after, |this| {
                        this.may_go(expert, Some(from), to) && this.may_go(other, Some(to), from)
                    });
                }
            }
        }
    }

    fn exchanges(&mut self) {
        let (layer, busiest) = (self.layer, self.busiest);
        for Giver { after: others_after, expert: other, from } in self.givers() {
            let (gone, others) = (layer.share(other), layer.copies(other));
            let more = layer.share_of(other, others.len() - 1) - gone;
            let change = |rank: u32| -> (u64, u64) {
                if rank == from {
                    (0, gone)
                } else if others.contains(&rank) {
                    (more, 0)
                } else {
                    (0, 0)
                }
            };
            for &expert in layer.on(busiest).iter().filter(|&&expert| expert != other) {
                let count = layer.copies(expert).len() + 1;
                let share = layer.share_of(expert, count);
                let (plus, minus) = change(busiest);
                let busiest_after = self.peak + plus + share - minus - layer.share(expert);
                for &to in &self.seats.usable {
                    let (plus, minus) = change(to);
                    let after = (layer.load(to) + share + plus - minus).max(busiest_after).max(others_after);
                    self.consider(Step::Exchange { expert, to, other, from }, after, |this| {
                        (to == from || (this.has_place(to) && layer.on(from).len() > 1))
                            && this.may_go(expert, None, to)
                    });
                }
            }
        }
    }

    /// Redundant copies whose work falls to ranks with little to do.
    fn givers(&self) -> Vec<Giver> {
        let (seats, layer) = (self.seats, self.layer);
        let mut givers = vec![];
        for expert in 0..layer.experts() {
            let copies = layer.copies(expert);
            if copies.len() <= self.min as usize || layer.base_and_extra(seats, self.min, expert).1 == 0 {
                continue;
            }
            let more = layer.share_of(expert, copies.len() - 1) - layer.share(expert);
            let before = seats.spread(copies);
            for &from in copies {
                let left: Vec<u32> = copies.iter().copied().filter(|&rank| rank != from).collect();
                let after = left.iter().map(|&rank| layer.load(rank) + more).max().unwrap_or(u64::MAX);
                let spread = seats.spread(&left);
                let apart = spread.workers as usize == left.len().min(seats.workers.len());
                if after < self.peak && apart && spread.keeps(before, self.min) {
                    givers.push(Giver { after, expert, from });
                }
            }
        }
        givers.sort_unstable();
        givers.truncate(GIVERS);
        givers
    }
}

/// A redundant copy that could give way.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct Giver {
    /// Load of the busiest rank that then does its work.
    after: u64,
    expert: u32,
    from: u32,
}
