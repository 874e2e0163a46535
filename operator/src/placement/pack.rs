//! Which rank takes a copy.
use std::cmp::Reverse;

use super::{
    draft::{Draft, Layer},
    fleet::{PlacementError, Seats, number},
    replicas,
};

/// Rounds of looking for a better order of copies.
const ROUNDS: usize = 8;

/// What a copy is for, most important first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Class {
    /// The expert has no other.
    Only,
    /// It has fewer than it must have.
    Base,
    /// It has more to do than others.
    Redundant,
}

/// A copy that is to be placed.
#[derive(Clone, Copy, Debug)]
pub(super) struct Wanted {
    pub layer: usize,
    pub expert: u32,
    pub class: Class,
    /// What it will have to do once all copies of the expert are placed.
    pub share: u64,
}

/// Copies of each class that are still to be placed: less important ones must not take their room.
#[derive(Debug, Default)]
pub(super) struct Ahead {
    only: u64,
    base: u64,
}

impl Ahead {
    pub fn count(&mut self, class: Class, copies: u64) {
        match class {
            Class::Only => self.only += copies,
            Class::Base => self.base += copies,
            Class::Redundant => {}
        }
    }

    fn done(&mut self, class: Class) {
        match class {
            Class::Only => self.only = self.only.saturating_sub(1),
            Class::Base => self.base = self.base.saturating_sub(1),
            Class::Redundant => {}
        }
    }

    /// Room that a copy of a class must leave.
    fn before(&self, class: Class) -> u64 {
        match class {
            Class::Only => 0,
            Class::Base => self.only,
            Class::Redundant => self.only + self.base,
        }
    }
}

/// Places everything anew. Without load, the first copies are contiguous ranges.
///
/// # Errors
/// When not even one copy of each expert fits.
pub(super) fn spread(draft: &mut Draft, loaded: bool) -> Result<(), PlacementError> {
    let layers = draft.layers.len();
    let experts = draft.layers.first().map_or(0, |layer| layer.experts());
    let all = layers as u64 * u64::from(experts);
    if draft.memory.left_together(&draft.seats).is_some_and(|left| left < all) {
        return Err(draft.memory.does_not_fit(all, &draft.seats));
    }
    let ranks = number(draft.seats.usable.len());
    let usable = draft.seats.usable.clone();
    let range = |expert: u32| usable[expert as usize * usable.len() / experts.max(1) as usize];
    let contiguous = !loaded && ranges_fit(draft, experts);
    let mut ahead = Ahead::default();
    ahead.count(Class::Only, all);
    ahead.count(Class::Base, all * u64::from(draft.min - 1));
    if contiguous {
        for (layer, expert) in (0..layers).flat_map(|layer| (0..experts).map(move |expert| (layer, expert))) {
            draft.add(layer, expert, range(expert));
            ahead.done(Class::Only);
        }
    }

    for layer in 0..layers {
        let mut counts = vec![draft.min; experts as usize];
        replicas::hand_out(&draft.layers[layer], &mut counts, draft.redundant, ranks, ranks);
        let quota = quota(draft, layers - layer);
        let mut wanted = vec![];
        for (expert, &count) in (0u32..).zip(&counts) {
            for copy in u32::from(contiguous)..count {
                let class = match copy {
                    0 => Class::Only,
                    copy if copy < draft.min => Class::Base,
                    _ => Class::Redundant,
                };
                let share = draft.layers[layer].share_of(expert, count as usize);
                wanted.push(Wanted { layer, expert, class, share });
            }
        }
        wanted.sort_by_key(|wanted| (Reverse(wanted.share), wanted.expert, wanted.class));
        draft.layers[layer].expect(counts);
        place(draft, &wanted, &mut ahead, &quota);
        draft.layers[layer].settle();
    }
    Ok(())
}

/// Whether each worker has room for its ranges in all layers.
fn ranges_fit(draft: &Draft, experts: u32) -> bool {
    let ranks = draft.seats.usable.len() as u64;
    let first = |rank: u64| (rank * u64::from(experts)).div_ceil(ranks);
    let mut needs = vec![0u64; draft.seats.ranks()];
    for (index, &rank) in (0u64..).zip(&draft.seats.usable) {
        let worker = draft.seats.worker(rank) as usize;
        needs[worker] += (first(index + 1) - first(index)) * draft.layers.len() as u64;
    }
    draft.seats.workers.iter().all(|&worker| draft.memory.fits(worker, needs[worker as usize]))
}

/// By worker: copies that it should take in this layer, so that it has room in the ones that follow.
fn quota(draft: &Draft, layers_left: usize) -> Vec<u64> {
    let workers = draft.seats.ranks() / draft.seats.per_worker.max(1) as usize;
    let of = |worker| draft.memory.left(worker).map_or(u64::MAX, |left| left.div_ceil(layers_left as u64));
    (0..number(workers)).map(of).collect()
}

/// Places copies in this order, as far as there is room. `quota` says, by worker, how many copies of a layer it should
/// have at most (empty: any number).
pub(super) fn place(draft: &mut Draft, wanted: &[Wanted], ahead: &mut Ahead, quota: &[u64]) {
    for wanted in wanted {
        ahead.done(wanted.class);
        let left = draft.memory.left_together(&draft.seats);
        if left.is_some_and(|left| left <= ahead.before(wanted.class)) {
            continue;
        }
        if let Some(rank) = best_rank(draft, *wanted, quota) {
            draft.add(wanted.layer, wanted.expert, rank);
        }
    }
}

/// The rank for a copy: on another worker; not much fuller than others; on another host, then in another domain; then
/// the one with least to do.
fn best_rank(draft: &Draft, wanted: Wanted, quota: &[u64]) -> Option<u32> {
    let Wanted { layer: index, expert, class, share } = wanted;
    let (seats, layer) = (&draft.seats, &draft.layers[index]);
    let holders = layer.copies(expert);
    let even = draft.even_fill(index);
    let full: Vec<bool> = (0u32..)
        .zip(quota)
        .map(|(worker, &quota)| {
            let ranks = worker * seats.per_worker..(worker + 1) * seats.per_worker;
            ranks.map(|rank| layer.on(rank).len() as u64).sum::<u64>() >= quota
        })
        .collect();
    let candidates = seats.usable.iter().copied().filter(|&rank| {
        let shared = holders.iter().any(|&holder| seats.worker(holder) == seats.worker(rank));
        !holders.contains(&rank) && (!shared || class == Class::Redundant) && draft.fits(index, expert, rank)
    });
    candidates.min_by_key(|&rank| {
        let fill = layer.on(rank).len();
        let crowded = fill > even || full.get(seats.worker(rank) as usize).copied().unwrap_or(false);
        let shares = |place: fn(&Seats, u32) -> u32| {
            holders.iter().any(|&holder| place(seats, holder) == place(seats, rank))
        };
        let filled = fill >= even;
        (
            shares(Seats::worker),
            crowded,
            // redundant copies are there for balance; the others for safety
            class == Class::Redundant && filled,
            shares(Seats::host),
            shares(Seats::domain),
            filled,
            layer.load(rank) + share,
            fill,
            rank,
        )
    })
}

/// Puts the copies of each expert into an order in which ranks are preferred for about as much load as others.
pub(super) fn prefer(draft: &mut Draft) {
    for layer in &mut draft.layers {
        let mut preferred = vec![0u64; draft.seats.ranks()];
        let weight = |layer: &Layer, expert| layer.weight(expert).max(1);
        for expert in 0..layer.experts() {
            if let Some(&first) = layer.copies(expert).first() {
                preferred[first as usize] += weight(layer, expert);
            }
        }
        // each round makes the sum of squares smaller; a few do nearly all that can be done
        for _ in 0..ROUNDS {
            let mut changed = false;
            for expert in 0..layer.experts() {
                let weight = weight(layer, expert);
                let least = layer.copies(expert).iter().min_by_key(|&&rank| (preferred[rank as usize], rank));
                let (Some(&first), Some(&least)) = (layer.copies(expert).first(), least) else { continue };
                if preferred[least as usize] + weight < preferred[first as usize] {
                    preferred[first as usize] -= weight;
                    preferred[least as usize] += weight;
                    layer.put_first(expert, least);
                    changed = true;
                }
            }
            if !changed {
                break;
            }
        }
    }
}
