//! The indexer's choice of compressed entries.

use std::cell::RefCell;
use std::ops::Range;

use belay_backend::Select;

use super::rows;
use crate::backend::CpuBackend;
use crate::kernel::{Kernels, SCORED};
use crate::pool::Pool;
use crate::shared::{SharedSlice, each_row, split};

/// Keys that one task scores; a multiple of [`SCORED`]. Read and transposed once for all queries of a block.
const TILE: usize = 8 * SCORED;

/// Scores that a block of queries keeps at once, in elements, so that long contexts do not take ever more memory.
const BLOCK_SCORES: usize = 1 << 21;

/// Queries that are scored together at most.
const BLOCK_ROWS: usize = 64;

thread_local! {
    static SCRATCH: RefCell<Scratch> = RefCell::default();
    /// Scores of a block of queries; apart, because the thread that holds them takes tasks as well.
    static SCORES: RefCell<Vec<f32>> = const { RefCell::new(Vec::new()) };
}

/// Working memory of one thread.
#[derive(Default)]
struct Scratch {
    /// `[TILE, width]`
    keys: Vec<f32>,
    /// `[width, SCORED]`
    transposed: Vec<f32>,
    /// A query's head weights, scaled.
    weights: Vec<f32>,
    /// A query's candidates, as [`ranked`] numbers.
    candidates: Vec<u64>,
}

/// Writes the choice of every query of the sequence to `chosen`, `[rows, k]`. Returns how many keys were scored, each
/// once for each query.
pub(crate) fn select(kernels: Kernels, pool: &Pool, op: &Select<'_, CpuBackend>, chosen: &mut [i32]) -> u64 {
    if op.k == 0 {
        return 0;
    }
    let visible = |row: usize| (op.start + row + 1) / op.ratio;
    // with room for all there is nothing to choose
    let scored = (0..op.rows.len()).find(|&row| visible(row) > op.k).unwrap_or(op.rows.len());
    for (row, chosen) in chosen.chunks_exact_mut(op.k).take(scored).enumerate() {
        all(visible(row), chosen);
    }
    let (mut first, mut read) = (scored, 0);
    SCORES.with_borrow_mut(|scores| {
        while first < op.rows.len() {
            let count = (BLOCK_SCORES / visible(first)).clamp(1, BLOCK_ROWS).min(op.rows.len() - first);
            let block = first..first + count;
            let keys = visible(block.end - 1);
            if scores.len() < count * keys {
                scores.resize(count * keys, 0.0);
            }
            score(kernels, pool, op, block.clone(), keys, &mut scores[..count * keys]);
            let chosen = &mut chosen[block.start * op.k..block.end * op.k];
            each_row(pool, chosen, op.k, 4 * count * keys, |place, chosen| {
                let scores = &scores[place * keys..][..visible(block.start + place)];
                SCRATCH.with_borrow_mut(|scratch| best(scores, &mut scratch.candidates, chosen));
            });
            read += block.map(|row| visible(row) as u64).sum::<u64>();
            first += count;
        }
    });
    read
}

/// `scores` = `[rows of the block, keys]`. Keys that a query does not see yet get a score too, which is not used.
fn score(
    kernels: Kernels,
    pool: &Pool,
    op: &Select<'_, CpuBackend>,
    block: Range<usize>,
    keys: usize,
    scores: &mut [f32],
) {
    let work = block.len() * keys * op.heads * op.width;
    let scores = SharedSlice::new(scores);
    split(pool, keys.div_ceil(TILE), work, |tiles| {
        SCRATCH.with_borrow_mut(|scratch| {
            for tile in tiles {
                let tile = tile * TILE..keys.min((tile + 1) * TILE);
                score_tile(kernels, op, block.clone(), tile, scratch, &mut |place, first, values| {
                    let start = place * keys + first;
                    // SAFETY: tiles are disjoint, and `split` gives each to one task.
                    unsafe { scores.part(start..start + values.len()) }.copy_from_slice(values);
                });
            }
        });
    });
}

/// Scores the queries of a block against a tile of keys. `out` gets a query's place in the block, the number of the
/// first key, and the scores of up to [`SCORED`] keys.
fn score_tile(
    kernels: Kernels,
    op: &Select<'_, CpuBackend>,
    block: Range<usize>,
    tile: Range<usize>,
    scratch: &mut Scratch,
    out: &mut impl FnMut(usize, usize, &[f32]),
) {
    let width = op.width;
    let Scratch { keys, transposed, weights, .. } = scratch;
    // keys behind the last one are what was there before: their scores are not used
    keys.resize(tile.len().next_multiple_of(SCORED) * width, 0.0);
    rows::fetch(kernels, op.arena, op.keys, tile.clone(), &mut keys[..tile.len() * width]);
    transposed.resize(width * SCORED, 0.0);
    for (keys, first) in keys.chunks_exact(SCORED * width).zip(tile.clone().step_by(SCORED)) {
        kernels.transpose(keys, width, transposed);
        for (place, row) in block.clone().enumerate() {
            let row = op.rows.start + row;
            let head_weights = &op.head_weights.0[row * op.heads..][..op.heads];
            weights.clear();
            weights.extend(head_weights.iter().map(|weight| weight * op.scale));
            let q = &op.q.0[row * op.heads * width..][..op.heads * width];
            let mut scores = [0.0; SCORED];
            kernels.index_scores(q, weights, transposed, &mut scores);
            out(place, first, &scores[..SCORED.min(tile.end - first)]);
        }
    }
}

/// Chooses every entry.
fn all(visible: usize, chosen: &mut [i32]) {
    let (taken, rest) = chosen.split_at_mut(visible);
    for (entry, chosen) in taken.iter_mut().enumerate() {
        *chosen = entry as i32;
    }
    rest.fill(-1);
}

/// Writes the best of more entries than can be chosen, ascending. The lower index wins a tie.
fn best(scores: &[f32], candidates: &mut Vec<u64>, chosen: &mut [i32]) {
    let k = chosen.len();
    candidates.clear();
    // what a score must exceed to be among the best so far; entries come in order, so an equal one comes too late
    let mut threshold = None;
    for (group, scores) in scores.chunks(SCORED).enumerate() {
        if threshold.is_some_and(|threshold| !scores.iter().any(|&score| score > threshold)) {
            continue;
        }
        for (i, &score) in scores.iter().enumerate() {
            if threshold.is_none_or(|threshold| score > threshold) {
                candidates.push(ranked(score, group * SCORED + i));
            }
        }
        if candidates.len() > 4 * k {
            threshold = Some(score_of(keep_best(candidates, k)));
        }
    }
    keep_best(candidates, k);
    for (chosen, &candidate) in chosen.iter_mut().zip(&*candidates) {
        *chosen = !(candidate as u32) as i32;
    }
    chosen.sort_unstable();
}

/// Leaves the k greatest, and returns the least of them. There are at least k, and k is not 0.
fn keep_best(candidates: &mut Vec<u64>, k: usize) -> u64 {
    let (_, &mut least, _) = candidates.select_nth_unstable_by(k - 1, |a, b| b.cmp(a));
    candidates.truncate(k);
    least
}

/// A number that is the greater the better an entry is: by score in `total_cmp`'s order, then the lower index first.
fn ranked(score: f32, entry: usize) -> u64 {
    let bits = score.to_bits();
    let order = if bits >> 31 == 0 { bits | 1 << 31 } else { !bits };
    u64::from(order) << 32 | u64::from(!(entry as u32))
}

/// The score that went into [`ranked`].
fn score_of(ranked: u64) -> f32 {
    let order = (ranked >> 32) as u32;
    f32::from_bits(if order >> 31 == 1 { order & !(1 << 31) } else { !order })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn chosen(scores: &[f32], k: usize) -> Vec<i32> {
        let mut chosen = vec![0; k];
        if scores.len() > k {
            best(scores, &mut Vec::new(), &mut chosen);
        } else {
            all(scores.len(), &mut chosen);
        }
        chosen
    }

    #[test]
    fn the_best_come_ascending_and_ties_go_to_the_lower_index() {
        assert_eq!(chosen(&[1.0, 5.0, 1.0, 7.0, 1.0], 3), [0, 1, 3]);
        assert_eq!(chosen(&[2.0, 1.0], 3), [0, 1, -1]);
        assert_eq!(chosen(&[], 3), [-1; 3]);
    }

    proptest! {
        #[test]
        fn best_is_what_sorting_gives(
            scores in prop::collection::vec((-3i8..4).prop_map(f32::from), 1..600),
            k in 1usize..40,
            rising in any::<bool>(),
        ) {
            let mut scores = scores;
            if rising {
                scores.sort_by(f32::total_cmp);
            }
            let mut order: Vec<i32> = (0..scores.len() as i32).collect();
            order.sort_by(|&a, &b| scores[b as usize].total_cmp(&scores[a as usize]).then(a.cmp(&b)));
            order.truncate(k);
            order.sort_unstable();
            order.resize(k, -1);
            prop_assert_eq!(chosen(&scores, k), order);
        }

        #[test]
        fn ranks_keep_the_score(score in any::<f32>(), entry in 0usize..1 << 20) {
            prop_assert_eq!(score_of(ranked(score, entry)).to_bits(), score.to_bits());
        }
    }
}
