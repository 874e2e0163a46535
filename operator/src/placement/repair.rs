//! What is missing, and what is too much.
use std::cmp::Reverse;

use super::{
    draft::{Draft, Layer},
    fleet::number,
    pack::{Ahead, Class, Wanted, place},
    replicas,
};

/// Gives every expert the copies that are asked for, and takes away what is too much. All other copies stay where they
/// are.
pub(super) fn repair(draft: &mut Draft) {
    let mut wanted = vec![];
    let mut surplus = vec![];
    for layer in 0..draft.layers.len() {
        let change = layer_change(draft, layer);
        wanted.extend(change.wanted);
        draft.layers[layer].expect(change.counts);
        surplus.extend(change.surplus.into_iter().map(|expert| (layer, expert)));
    }
    wanted.sort_by_key(|wanted| (wanted.class, Reverse(wanted.share), wanted.layer, wanted.expert));
    let mut ahead = Ahead::default();
    wanted.iter().for_each(|wanted| ahead.count(wanted.class, 1));
    place(draft, &wanted, &mut ahead, &[]);
    draft.layers.iter_mut().for_each(Layer::settle);
    // what is asked for comes first: a copy that shares a worker may be all that there is for now
    for (layer, expert) in surplus {
        let (base, extra) = draft.base_and_extra(layer, expert);
        if base == draft.min && extra > 0 {
            drop_one(draft, layer, expert);
        }
    }
}

struct Change {
    wanted: Vec<Wanted>,
    /// By expert: copies that there will be.
    counts: Vec<u32>,
    /// Experts that have a copy too many; once for each.
    surplus: Vec<u32>,
}

fn layer_change(draft: &Draft, index: usize) -> Change {
    let layer = &draft.layers[index];
    let ranks = number(draft.seats.usable.len());
    let have: Vec<(u32, u32)> =
        (0..layer.experts()).map(|expert| draft.base_and_extra(index, expert)).collect();
    let mut counts: Vec<u32> = have.iter().map(|(_, extra)| draft.min + extra).collect();
    let before = counts.clone();
    let extras: u32 = have.iter().map(|(_, extra)| extra).sum();
    let mut spare: Vec<u32> = have.iter().map(|(_, extra)| *extra).collect();
    let surplus = replicas::take_back(layer, &mut counts, &mut spare, extras.saturating_sub(draft.redundant));
    let missing = draft.redundant.saturating_sub(extras);
    replicas::hand_out(layer, &mut counts, missing, ranks, ranks);

    let mut wanted = vec![];
    for expert in 0..layer.experts() {
        let (base, _) = have[expert as usize];
        let count = counts[expert as usize];
        let share = layer.share_of(expert, count as usize);
        let mut want = |class| wanted.push(Wanted { layer: index, expert, class, share });
        for copy in base..draft.min {
            want(if copy == 0 { Class::Only } else { Class::Base });
        }
        for _ in before[expert as usize]..count {
            want(Class::Redundant);
        }
    }
    Change { wanted, counts, surplus }
}

/// Takes one copy of an expert away: one that shares a worker, host or domain with another, else the one on the
/// busiest rank, else the last.
fn drop_one(draft: &mut Draft, index: usize, expert: u32) {
    let (seats, layer) = (&draft.seats, &draft.layers[index]);
    let holders = layer.copies(expert);
    let shares = |rank: u32, place: &dyn Fn(u32) -> u32| {
        holders.iter().any(|&other| other != rank && place(other) == place(rank))
    };
    let worst = (0usize..).zip(holders).max_by_key(|&(at, &rank)| {
        (
            shares(rank, &|rank| seats.worker(rank)),
            shares(rank, &|rank| seats.host(rank)),
            shares(rank, &|rank| seats.domain(rank)),
            layer.load(rank),
            at,
        )
    });
    if let Some((_, &rank)) = worst {
        draft.remove(index, expert, rank);
    }
}
