//! Workers that came back empty.
//!
//! After a loss, a repair gives what is missing to the survivors. The worker that comes back has nothing, and nothing is
//! missing: without this it would idle, and the others would keep what they took over.
use std::cmp::Reverse;

use super::{draft::Draft, shift::may_go};

/// Fills the ranks of workers that lack experts, out of the ranks that hold more than theirs.
/// No rank gets more to do than the busiest had.
pub(super) fn refill(draft: &mut Draft) {
    let lacking = lacking(draft);
    if lacking.is_empty() {
        return;
    }
    for layer in 0..draft.layers.len() {
        let slots: usize = draft.seats.usable.iter().map(|&rank| draft.layers[layer].on(rank).len()).sum();
        let even = slots / draft.seats.usable.len().max(1);
        let ranks: Vec<u32> = draft
            .seats
            .usable
            .iter()
            .copied()
            .filter(|&rank| lacking.contains(&draft.seats.worker(rank)))
            .collect();
        // one each in turn, so that all are filled alike where not all can be filled
        for _ in 0..even {
            for &rank in &ranks {
                if draft.layers[layer].on(rank).len() < even {
                    take_one(draft, layer, rank, even);
                }
            }
        }
    }
}

/// Usable workers that hold less than a quarter of an even share, and have less than a quarter of one to do: few experts
/// that are used much are a fair share as well.
fn lacking(draft: &Draft) -> Vec<u32> {
    let workers = draft.seats.workers.len() as u128;
    let mut by_worker = vec![(0u128, 0u128); draft.seats.ranks() / draft.seats.per_worker.max(1) as usize];
    for &rank in &draft.seats.usable {
        let (held, load) = &mut by_worker[draft.seats.worker(rank) as usize];
        *held += draft.layers.iter().map(|layer| layer.on(rank).len() as u128).sum::<u128>();
        *load += draft.layers.iter().map(|layer| u128::from(layer.load(rank))).sum::<u128>();
    }
    let total = |of: fn(&(u128, u128)) -> u128| by_worker.iter().map(of).sum::<u128>();
    let (held, load) = (total(|worker| worker.0), total(|worker| worker.1));
    let lacks = |worker: &&u32| {
        let (mine, to_do) = by_worker[**worker as usize];
        mine * workers * 4 < held && to_do * workers * 4 < load
    };
    draft.seats.workers.iter().filter(lacks).copied().collect()
}

/// A copy comes from the busiest rank that has more than an even share: the one with most to do that does not make
/// this rank the busiest.
fn take_one(draft: &mut Draft, index: usize, to: u32, even: usize) {
    let layer = &draft.layers[index];
    let peak = layer.peak();
    let mut donors: Vec<u32> =
        draft.seats.usable.iter().copied().filter(|&rank| layer.on(rank).len() > even).collect();
    donors.sort_by_key(|&rank| (Reverse(layer.load(rank)), Reverse(layer.on(rank).len()), rank));
    let found = donors.into_iter().find_map(|from| {
        let fits = |expert: &u32| {
            layer.load(to) + layer.share(*expert) <= peak
                && draft.fits(index, *expert, to)
                && may_go(&draft.seats, layer, draft.min, *expert, Some(from), to)
        };
        // copies that had to share a worker come first
        let shared = |expert: u32| {
            let copies = layer.copies(expert);
            (draft.seats.spread(copies).workers as usize) < copies.len()
        };
        let best = layer.on(from).iter().copied().filter(fits);
        best.max_by_key(|&expert| (shared(expert), layer.share(expert), Reverse(expert)))
            .map(|expert| (expert, from))
    });
    if let Some((expert, from)) = found {
        draft.relocate(index, expert, from, to);
    }
}
