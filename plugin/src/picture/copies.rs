//! Every copy of every expert: where it should be, where it is, and what load goes to it.
use std::collections::{BTreeMap, BTreeSet};

use belay_proto::admin::{Placement, ResidentExperts};
use serde::Serialize;

use super::workers::Slots;
use crate::answers::{GroupAnswers, WorkerAnswer};

/// What a copy is at this moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
pub enum State {
    /// Here, the first of the placement.
    First,
    /// Here, beyond the first.
    Further,
    /// Here beyond the placement, for ranks that are lost.
    Adopted,
    /// Here already, for the placement that is being prepared.
    Arriving,
    /// Here still, though no placement needs it.
    Leaving,
    /// Its worker does not answer this program, but others reach it.
    Unseen,
    /// It should be here, and is not.
    Missing,
}

impl State {
    /// Whether it answers asks for the placement in force.
    pub fn is_live(self) -> bool {
        matches!(self, Self::First | Self::Further | Self::Adopted | Self::Unseen)
    }

    /// Whether the rank itself says that it has it.
    pub fn is_resident(self) -> bool {
        !matches!(self, Self::Unseen | Self::Missing)
    }
}

/// One (layer, expert) on one rank.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Copy {
    /// Layer.
    pub layer: u32,
    /// Expert within the layer.
    pub expert: u32,
    /// Rank within the group.
    pub rank: u32,
    /// What it is.
    pub state: State,
    /// Live copies of this expert, this one included if it is live.
    pub live_copies: u32,
    /// Thousandths of a token that go to it: the expert's, split over its live copies. 0 if it is not live.
    pub load: u64,
}

/// Layers, and experts in a layer: the most that anybody speaks of.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Shape {
    /// Layers.
    pub layers: u32,
    /// Experts in a layer.
    pub experts: u32,
}

impl Shape {
    /// (layer, expert) pairs.
    pub fn total(self) -> u32 {
        self.layers.saturating_mul(self.experts)
    }
}

/// All copies of a group, by layer, expert and rank.
#[derive(Clone, Debug, Default)]
pub struct Copies {
    /// Shape of the model.
    pub shape: Shape,
    /// The layer that these are restricted to.
    pub only: Option<u32>,
    /// The copies.
    pub list: Vec<Copy>,
    /// Thousandths of a token that go to each expert, by layer; empty if no worker told.
    pub load: Vec<Vec<u64>>,
}

/// What is known of one (layer, expert) on one rank.
#[derive(Default)]
struct Facts {
    /// Position in the placement in force.
    placed: Option<usize>,
    resident: bool,
}

impl Copies {
    /// Puts together what the placement asks for and what the ranks hold.
    pub fn of(group: &GroupAnswers, slots: &Slots) -> Self {
        let answers =
            || group.pods.iter().filter_map(|pod| Some((pod.pod.worker, pod.worker.as_ref().ok()?)));
        let mut facts: BTreeMap<(u32, u32), BTreeMap<u32, Facts>> = BTreeMap::new();
        for (layer, expert, position, rank) in group.placement.iter().flat_map(placed) {
            let known = facts.entry((layer, expert)).or_default().entry(rank).or_default();
            // a rank that is named twice holds one copy: the first counts
            known.placed.get_or_insert(position);
        }
        for (layer, expert, rank) in answers().flat_map(|(_, answer)| resident(answer)) {
            facts.entry((layer, expert)).or_default().entry(rank).or_default().resident = true;
        }
        let load = sum(answers().filter_map(|(_, answer)| answer.load.as_ref().ok()));
        let arriving: BTreeSet<(u32, u32, u32)> = group
            .operation
            .iter()
            .filter_map(|operation| operation.target.as_ref())
            .flat_map(placed)
            .map(|(layer, expert, _, rank)| (layer, expert, rank))
            .collect();

        let shape = shape(group, &load, facts.keys());
        let mut list = Vec::with_capacity(facts.len());
        for ((layer, expert), ranks) in facts {
            let owners: Vec<u32> =
                ranks.iter().filter(|(_, facts)| facts.placed.is_some()).map(|(rank, _)| *rank).collect();
            let states: Vec<(u32, State)> = ranks
                .iter()
                .map(|(rank, facts)| {
                    let is_target = arriving.contains(&(layer, expert, *rank));
                    // without a placement, the lowest rank that has it stands for the first
                    let first = if group.placement.is_some() {
                        facts.placed == Some(0)
                    } else {
                        ranks.keys().next() == Some(rank)
                    };
                    (*rank, state(*rank, facts, first, is_target, &owners, group.placement.is_some(), slots))
                })
                .collect();
            let live = states.iter().filter(|(_, state)| state.is_live()).count();
            let of_expert = cell(&load, layer, expert);
            list.extend(states.into_iter().map(|(rank, state)| Copy {
                layer,
                expert,
                rank,
                state,
                live_copies: u32::try_from(live).unwrap_or(u32::MAX),
                load: if state.is_live() { of_expert / live as u64 } else { 0 },
            }));
        }
        Self { shape, only: None, list, load }
    }

    /// Thousandths of a token that go to an expert.
    pub fn load_of(&self, layer: u32, expert: u32) -> u64 {
        cell(&self.load, layer, expert)
    }

    /// The layers that these are of.
    pub fn layers(&self) -> std::ops::Range<u32> {
        self.only.map_or(0..self.shape.layers, |layer| layer..layer.saturating_add(1).min(self.shape.layers))
    }

    /// Those of one layer.
    #[must_use]
    pub fn of_layer(&self, layer: u32) -> Self {
        let list = self.list.iter().filter(|copy| copy.layer == layer).cloned().collect();
        Self { shape: self.shape, only: Some(layer), list, load: self.load.clone() }
    }

    /// Live copies of the expert that has the fewest, and how many have none.
    pub fn coverage(&self) -> (u32, u32) {
        let mut live = BTreeMap::new();
        for copy in &self.list {
            live.insert((copy.layer, copy.expert), copy.live_copies);
        }
        let known = live.len() as u64;
        let unknown = u32::try_from(u64::from(self.shape.total()).saturating_sub(known)).unwrap_or(u32::MAX);
        let none = u32::try_from(live.values().filter(|live| **live == 0).count()).unwrap_or(u32::MAX);
        let fewest = if unknown > 0 { 0 } else { live.values().min().copied().unwrap_or(0) };
        (fewest, none.saturating_add(unknown))
    }
}

fn state(
    rank: u32,
    facts: &Facts,
    first: bool,
    is_target: bool,
    owners: &[u32],
    has_placement: bool,
    slots: &Slots,
) -> State {
    let here = |first| if first { State::First } else { State::Further };
    let slot = slots.of_rank(rank);
    match (facts.placed.is_some(), facts.resident) {
        // of a pod that is not the one of the placement, nobody asks for anything yet
        (true, true) if !slot.is_member => State::Arriving,
        (true, true) => here(first),
        (true, false) if slot.is_unseen => State::Unseen,
        (true, false) => State::Missing,
        (false, _) if !has_placement => here(first),
        (false, _) if is_target || !slot.is_member => State::Arriving,
        (false, _) if slot.adopts && owners.iter().all(|owner| slot.misses(slots, *owner)) => State::Adopted,
        (false, _) => State::Leaving,
    }
}

/// (layer, expert, position, rank) of every copy of a placement.
fn placed(placement: &Placement) -> impl Iterator<Item = (u32, u32, usize, u32)> {
    (0u32..).zip(&placement.layers).flat_map(|(layer, experts)| {
        (0u32..).zip(&experts.experts).flat_map(move |(expert, copies)| {
            copies.ranks.iter().enumerate().map(move |(position, rank)| (layer, expert, position, *rank))
        })
    })
}

/// (layer, expert, rank) of every copy that a worker's ranks hold.
fn resident(answer: &WorkerAnswer) -> impl Iterator<Item = (u32, u32, u32)> {
    let ranks = answer.experts.as_ref().map_or(&[][..], |ResidentExperts { ranks }| ranks);
    ranks.iter().flat_map(|held| {
        (0u32..).zip(&held.layers).flat_map(move |(layer, bits)| {
            (0u32..).zip(bits).flat_map(move |(byte, bits)| {
                (0..8)
                    .filter(move |bit| bits & (1 << bit) != 0)
                    .map(move |bit| (layer, 8 * byte + bit, held.rank))
            })
        })
    })
}

fn sum<'a>(loads: impl Iterator<Item = &'a belay_proto::admin::ExpertLoad>) -> Vec<Vec<u64>> {
    let mut sum: Vec<Vec<u64>> = vec![];
    for load in loads {
        if sum.len() < load.layers.len() {
            sum.resize(load.layers.len(), vec![]);
        }
        for (sum, layer) in sum.iter_mut().zip(&load.layers) {
            if sum.len() < layer.millitokens.len() {
                sum.resize(layer.millitokens.len(), 0);
            }
            for (sum, tokens) in sum.iter_mut().zip(&layer.millitokens) {
                *sum = sum.saturating_add(*tokens);
            }
        }
    }
    sum
}

fn cell(load: &[Vec<u64>], layer: u32, expert: u32) -> u64 {
    load.get(layer as usize).and_then(|layer| layer.get(expert as usize)).copied().unwrap_or(0)
}

fn shape<'a>(group: &GroupAnswers, load: &[Vec<u64>], pairs: impl Iterator<Item = &'a (u32, u32)>) -> Shape {
    let number = |count: usize| u32::try_from(count).unwrap_or(u32::MAX);
    let mut shape =
        Shape { layers: number(load.len()), experts: number(load.iter().map(Vec::len).max().unwrap_or(0)) };
    for (layer, expert) in pairs {
        shape.layers = shape.layers.max(layer + 1);
        shape.experts = shape.experts.max(expert + 1);
    }
    // experts that nobody holds are part of the model as well
    if let Some(placement) = &group.placement {
        shape.layers = shape.layers.max(number(placement.layers.len()));
        let experts = placement.layers.iter().map(|layer| layer.experts.len()).max();
        shape.experts = shape.experts.max(number(experts.unwrap_or(0)));
    }
    for card in group.pods.iter().filter_map(|pod| pod.worker.as_ref().ok()?.status.card.as_ref()) {
        shape.layers = shape.layers.max(card.layers);
        shape.experts = shape.experts.max(card.experts);
    }
    shape
}
