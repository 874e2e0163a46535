//! A placement in the making.
use std::rc::Rc;

use belay_proto::admin::{ExpertCopies, LayerPlacement};

use super::{
    Planned,
    document::moves,
    fleet::{Copies, Fleet, Model, PlacementError, Seats, number},
    load::{Load, Weights},
};

/// All that a plan works on.
pub(super) struct Draft {
    pub seats: Seats,
    pub layers: Vec<Layer>,
    /// By layer: whether its load is known.
    pub known: Vec<bool>,
    pub memory: Memory,
    /// Copies of each expert that the usable workers can have, each on another.
    pub min: u32,
    /// Copies of each expert that are asked for.
    asked: u32,
    /// Copies in each layer beyond those.
    pub redundant: u32,
}

impl Draft {
    /// What is in force, without the copies on ranks that are not usable.
    pub fn new(
        model: &Model,
        copies: &Copies,
        fleet: &Fleet,
        seats: Seats,
        load: Option<&Load>,
        current: Option<&[LayerPlacement]>,
    ) -> Self {
        let (layers, experts) = (model.layers as usize, model.experts as usize);
        let weights = Weights::of(layers, experts, load);
        let mut memory = Memory::of(model, fleet);
        let kept = |layer: usize| -> Vec<Vec<u32>> {
            let Some(current) = current else { return vec![vec![]; experts] };
            current[layer].experts.iter().map(|copies| usable(&seats, &copies.ranks)).collect()
        };
        let layers: Vec<Layer> = weights
            .layers
            .into_iter()
            .enumerate()
            .map(|(layer, weight)| Layer::new(kept(layer), weight, seats.ranks()))
            .collect();
        for rank in layers.iter().flat_map(|layer| layer.copies.iter().flatten()) {
            memory.take(seats.worker(*rank));
        }
        let asked = copies.min.max(1);
        Self {
            min: asked.min(number(seats.workers.len()).max(1)),
            asked,
            redundant: copies.redundant,
            known: weights.known,
            memory,
            layers,
            seats,
        }
    }

    /// Copies of an expert that count towards `min`, and those beyond.
    pub fn base_and_extra(&self, layer: usize, expert: u32) -> (u32, u32) {
        self.layers[layer].base_and_extra(&self.seats, self.min, expert)
    }

    /// Copies that a rank would have in a layer if all had as many, rounded up.
    pub fn even_fill(&self, layer: usize) -> usize {
        let asked = self.min as usize * self.layers[layer].copies.len() + self.redundant as usize;
        asked.div_ceil(self.seats.usable.len().max(1))
    }

    /// Gives a rank a copy.
    pub fn add(&mut self, layer: usize, expert: u32, rank: u32) {
        self.memory.gets(&self.seats, &self.layers[layer], expert, rank);
        self.layers[layer].add(expert, rank);
    }

    /// Takes a copy from a rank.
    pub fn remove(&mut self, layer: usize, expert: u32, rank: u32) {
        self.memory.loses(&self.seats, &self.layers[layer], expert, rank);
        self.layers[layer].remove(expert, rank);
    }

    /// A copy goes from one rank to another.
    pub fn relocate(&mut self, layer: usize, expert: u32, from: u32, to: u32) {
        self.memory.gets(&self.seats, &self.layers[layer], expert, to);
        self.memory.loses(&self.seats, &self.layers[layer], expert, from);
        self.layers[layer].relocate(expert, from, to);
    }

    /// Whether a rank has room for a copy. One that it holds already needs none.
    pub fn fits(&self, layer: usize, expert: u32, rank: u32) -> bool {
        self.layers[layer].was_on(expert, rank) || self.memory.fits(self.seats.worker(rank), 1)
    }

    /// The document. An expert without any copy keeps the ranks that it had.
    ///
    /// # Errors
    /// When it had none.
    pub fn finish(self, current: Option<&[LayerPlacement]>) -> Result<Planned, PlacementError> {
        let mut short = 0u32;
        let mut homeless = 0u64;
        let mut layers = Vec::with_capacity(self.layers.len());
        for (index, layer) in self.layers.iter().enumerate() {
            let mut missing = self.redundant;
            let mut experts = Vec::with_capacity(layer.copies.len());
            for expert in 0..number(layer.copies.len()) {
                let (base, extra) = self.base_and_extra(index, expert);
                short = short.saturating_add(self.asked - base);
                missing = missing.saturating_sub(extra);
                let mut ranks = layer.copies(expert).to_vec();
                if ranks.is_empty()
                    && let Some(current) = current
                {
                    ranks.clone_from(&current[index].experts[expert as usize].ranks);
                    ranks.retain(|&rank| (rank as usize) < self.seats.ranks());
                }
                homeless += u64::from(ranks.is_empty());
                experts.push(ExpertCopies { ranks });
            }
            short = short.saturating_add(missing);
            layers.push(LayerPlacement { experts });
        }
        if homeless > 0 {
            return Err(self.memory.does_not_fit(homeless, &self.seats));
        }
        let moves = moves(current.unwrap_or_default(), &layers);
        Ok(Planned { moves, layers, short })
    }
}

fn usable(seats: &Seats, ranks: &[u32]) -> Vec<u32> {
    let mut kept = vec![];
    for &rank in ranks {
        if seats.is_usable(rank) && !kept.contains(&rank) {
            kept.push(rank);
        }
    }
    kept
}

/// One layer: copies by expert and by rank, and what each rank has to do.
#[derive(Clone)]
pub(super) struct Layer {
    /// By expert.
    copies: Vec<Vec<u32>>,
    /// By rank: its experts.
    on: Vec<Vec<u32>>,
    /// By expert.
    weight: Vec<u64>,
    /// By rank.
    load: Vec<u64>,
    /// By expert: copies that there will be.
    expected: Vec<u32>,
    /// By expert: usable ranks that have a copy now. They keep it until the change is over.
    was: Rc<Vec<Vec<u32>>>,
}

impl Layer {
    fn new(copies: Vec<Vec<u32>>, weight: Vec<u64>, ranks: usize) -> Self {
        let mut layer = Self {
            copies: vec![vec![]; copies.len()],
            on: vec![vec![]; ranks],
            load: vec![0; ranks],
            expected: vec![0; copies.len()],
            was: Rc::new(vec![]),
            weight,
        };
        for (expert, ranks) in (0u32..).zip(&copies) {
            ranks.iter().for_each(|&rank| layer.add(expert, rank));
        }
        layer.was = Rc::new(copies);
        layer
    }

    /// Whether another layer has the same copies and loads, now and before the change.
    pub fn equals(&self, other: &Self) -> bool {
        self.copies == other.copies && self.weight == other.weight && self.was == other.was
    }

    pub fn experts(&self) -> u32 {
        number(self.copies.len())
    }

    /// Ranks that have an expert, preferred first.
    pub fn copies(&self, expert: u32) -> &[u32] {
        &self.copies[expert as usize]
    }

    /// Experts that a rank has.
    pub fn on(&self, rank: u32) -> &[u32] {
        &self.on[rank as usize]
    }

    /// Copies of an expert on different workers, up to `min`, and the others.
    pub fn base_and_extra(&self, seats: &Seats, min: u32, expert: u32) -> (u32, u32) {
        let copies = self.copies(expert);
        let base = seats.spread(copies).workers.min(min);
        (base, number(copies.len()) - base)
    }

    /// Whether the rank has a copy now, before the change.
    pub fn was_on(&self, expert: u32, rank: u32) -> bool {
        self.was.get(expert as usize).is_some_and(|ranks| ranks.contains(&rank))
    }

    pub fn load(&self, rank: u32) -> u64 {
        self.load[rank as usize]
    }

    /// Load of the busiest rank.
    pub fn peak(&self) -> u64 {
        self.load.iter().max().copied().unwrap_or(0)
    }

    /// Load of all ranks.
    pub fn total(&self) -> u64 {
        self.load.iter().sum()
    }

    pub fn weight(&self, expert: u32) -> u64 {
        self.weight[expert as usize]
    }

    /// What a copy of an expert has to do if there are so many.
    pub fn share_of(&self, expert: u32, copies: usize) -> u64 {
        let copies = copies.max(self.expected[expert as usize] as usize);
        self.weight(expert) / copies.max(1) as u64
    }

    /// From now on, copies that are still to be placed do their share already. By expert; 0: as many as there are.
    pub fn expect(&mut self, copies: Vec<u32>) {
        self.expected = copies;
        self.load.fill(0);
        for expert in 0..self.experts() {
            let share = self.share(expert);
            for &rank in &self.copies[expert as usize] {
                self.load[rank as usize] += share;
            }
        }
    }

    /// From now on, only copies that are there do something.
    pub fn settle(&mut self) {
        self.expect(vec![0; self.copies.len()]);
    }

    /// What a copy of an expert has to do.
    pub fn share(&self, expert: u32) -> u64 {
        self.share_of(expert, self.copies(expert).len())
    }

    pub fn add(&mut self, expert: u32, rank: u32) {
        let before = self.share(expert);
        let after = self.share_of(expert, self.copies(expert).len() + 1);
        let holders = &mut self.copies[expert as usize];
        for &holder in holders.iter() {
            self.load[holder as usize] -= before - after;
        }
        holders.push(rank);
        self.load[rank as usize] += after;
        self.on[rank as usize].push(expert);
    }

    pub fn remove(&mut self, expert: u32, rank: u32) {
        let before = self.share(expert);
        let after = self.share_of(expert, self.copies(expert).len() - 1);
        let holders = &mut self.copies[expert as usize];
        holders.retain(|&holder| holder != rank);
        for &holder in holders.iter() {
            self.load[holder as usize] += after - before;
        }
        self.load[rank as usize] -= before;
        self.on[rank as usize].retain(|&other| other != expert);
    }

    /// A copy goes from one rank to another. Its place among the copies stays.
    pub fn relocate(&mut self, expert: u32, from: u32, to: u32) {
        let share = self.share(expert);
        for holder in self.copies[expert as usize].iter_mut().filter(|holder| **holder == from) {
            *holder = to;
        }
        self.load[from as usize] -= share;
        self.load[to as usize] += share;
        self.on[from as usize].retain(|&other| other != expert);
        self.on[to as usize].push(expert);
    }

    /// Makes a rank the preferred one of an expert that it has.
    pub fn put_first(&mut self, expert: u32, rank: u32) {
        let holders = &mut self.copies[expert as usize];
        if let Some(place) = holders.iter().position(|&holder| holder == rank) {
            holders[..=place].rotate_right(1);
        }
    }
}

/// What workers can take besides what they hold now.
#[derive(Clone, Debug)]
pub(super) struct Memory {
    /// By worker, in copies; `None`: no limit.
    left: Vec<Option<u64>>,
    /// Bytes of a copy.
    expert_bytes: u64,
    /// Copies to load so far.
    loads: u32,
}

impl Memory {
    fn of(model: &Model, fleet: &Fleet) -> Self {
        let copies = |limit: u64| limit.checked_div(model.expert_bytes);
        Self {
            left: fleet.workers.iter().map(|worker| worker.bytes_limit.and_then(copies)).collect(),
            expert_bytes: model.expert_bytes,
            loads: 0,
        }
    }

    /// Copies that a worker can still take; `None`: no limit.
    pub fn left(&self, worker: u32) -> Option<u64> {
        self.left[worker as usize]
    }

    /// Copies that the usable workers can still take; `None`: no limit.
    pub fn left_together(&self, seats: &Seats) -> Option<u64> {
        seats.workers.iter().try_fold(0u64, |sum, &worker| Some(sum.saturating_add(self.left(worker)?)))
    }

    pub fn fits(&self, worker: u32, copies: u64) -> bool {
        self.left(worker).is_none_or(|left| left >= copies)
    }

    pub fn loads(&self) -> u32 {
        self.loads
    }

    fn take(&mut self, worker: u32) {
        if let Some(left) = &mut self.left[worker as usize] {
            *left = left.saturating_sub(1);
        }
    }

    /// A rank gets a copy: it is to be loaded if it is not there already.
    pub fn gets(&mut self, seats: &Seats, layer: &Layer, expert: u32, rank: u32) {
        if !layer.was_on(expert, rank) {
            self.take(seats.worker(rank));
            self.loads += 1;
        }
    }

    /// A rank loses a copy. One that is there stays until the change is over; one that was to be loaded is not any more.
    pub fn loses(&mut self, seats: &Seats, layer: &Layer, expert: u32, rank: u32) {
        if !layer.was_on(expert, rank) {
            if let Some(left) = &mut self.left[seats.worker(rank) as usize] {
                *left += 1;
            }
            self.loads -= 1;
        }
    }

    /// Names what is missing for so many copies.
    pub fn does_not_fit(&self, copies: u64, seats: &Seats) -> PlacementError {
        let limited = seats.workers.iter().filter_map(|&worker| Some((self.left(worker)?, worker)));
        let Some((least, worker)) = limited.min() else { return PlacementError::NoUsableRank };
        let workers = seats.workers.len() as u64;
        PlacementError::DoesNotFit {
            bytes: copies.saturating_mul(self.expert_bytes),
            allowed: self.left_together(seats).unwrap_or(u64::MAX).saturating_mul(self.expert_bytes),
            workers: number(seats.workers.len()),
            worker,
            worker_bytes: copies.div_ceil(workers).saturating_mul(self.expert_bytes),
            worker_allowed: least.saturating_mul(self.expert_bytes),
        }
    }
}
