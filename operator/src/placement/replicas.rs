//! Which experts have more copies than others.
use std::cmp::Reverse;

use super::{draft::Layer, fleet::number};

/// Hands out so many copies, one after the other to the expert whose copies have most to do. `counts` is by expert, and
/// no expert gets more than `most`.
///
/// Among equals, experts of different ranks come first, if each rank has a contiguous range: so the copies of a layer
/// of which nothing is known relieve as many ranks as possible.
pub(super) fn hand_out(layer: &Layer, counts: &mut [u32], copies: u32, most: u32, ranks: u32) {
    let place = |expert: u32| u64::from(expert) * u64::from(ranks) % u64::from(layer.experts().max(1));
    for _ in 0..copies {
        let neediest = (0..number(counts.len())).filter(|&expert| counts[expert as usize] < most).max_by_key(
            |&expert| {
                let share = layer.share_of(expert, counts[expert as usize] as usize);
                (share, Reverse(place(expert)), Reverse(expert))
            },
        );
        let Some(expert) = neediest else { return };
        counts[expert as usize] += 1;
    }
}

/// Takes so many copies back, one after the other from the expert whose copies have least to do without it. `spare`
/// says how many each can give.
pub(super) fn take_back(layer: &Layer, counts: &mut [u32], spare: &mut [u32], copies: u32) -> Vec<u32> {
    let mut losers = vec![];
    for _ in 0..copies {
        let least =
            (0..number(counts.len())).filter(|&expert| spare[expert as usize] > 0).min_by_key(|&expert| {
                let left = counts[expert as usize].saturating_sub(1) as usize;
                (layer.share_of(expert, left), Reverse(expert))
            });
        let Some(expert) = least else { break };
        counts[expert as usize] -= 1;
        spare[expert as usize] -= 1;
        losers.push(expert);
    }
    losers
}
